"""`status`: the queue or one job, once or live, for people or as JSON."""

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from framepack_daemon.cli import completion
from framepack_daemon.cli.context import Face, console, face, say

WATCH_SECONDS = 0.5  # between two looks
PIPE_WIDTH = 160  # columns where there is no terminal


def status(
    ctx: typer.Context,
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB]",
            help="A job's id, or the beginning of one.",
            show_default=False,
            autocompletion=completion.jobs,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it, until Ctrl-C.")] = False,
    rows: Annotated[int, typer.Option("--rows", "-n", metavar="N", min=1, help="Jobs shown of each state.")] = 10,
) -> None:
    """Show the queue, or one job in full.

    Jobs that run, those that come next, the latest that are done or failed, and files in the inbox that wait for
    another.
    """
    look = _job_look(face(ctx), job) if job is not None else _queue_look(face(ctx), rows)
    if watch:
        _watch(look, as_json=as_json)
    elif as_json:
        say(json.dumps(look(), indent=2))
    else:
        _console().print(_render(look()))


def _queue_look(asked: Face, rows: int) -> Callable[[], dict[str, Any]]:
    from framepack_daemon.cli import overview

    return lambda: overview.read(asked, rows)


def _job_look(asked: Face, text: str) -> Callable[[], dict[str, Any]]:
    from framepack_daemon.errors import UnknownJobError
    from framepack_daemon.spool import moves
    from framepack_daemon.spool.status import current

    _, queue, outputs = asked.spool
    job = moves.resolve(queue, text)

    def look() -> dict[str, Any]:
        state = queue.state_of(job)
        if state is None:
            raise UnknownJobError(f"{job}: is no longer in the queue")
        return current(queue, outputs, state, job)

    return look


def _render(found: dict[str, Any]) -> Any:
    from framepack_daemon.cli import table

    return table.job(found) if "job" in found else table.queue(found)


def _console() -> Any:
    screen = console()
    if not screen.is_terminal:
        screen.width = PIPE_WIDTH
    return screen


def _watch(look: Callable[[], dict[str, Any]], *, as_json: bool) -> None:
    """Show what `look` gives until Ctrl-C: in place on a terminal, otherwise again at each change."""
    screen = _console()
    try:
        if screen.is_terminal and not as_json:
            _live(screen, look)
        else:
            _again(screen, look, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _live(screen: Any, look: Callable[[], dict[str, Any]]) -> None:
    from rich.live import Live

    with Live(_render(look()), console=screen, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(_render(look()), refresh=True)


def _again(screen: Any, look: Callable[[], dict[str, Any]], *, as_json: bool) -> None:
    before = None
    while True:
        found = look()
        if found != before:
            before = found
            if as_json:
                say(json.dumps(found))
            else:
                screen.print(_render(found))
                say("")
        time.sleep(WATCH_SECONDS)
