"""Commands that move jobs: cancel, interrupt, retry, remove, pause, resume, prune. Each answers with a line per job."""

import re
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from framepack_daemon.cli import completion
from framepack_daemon.cli.context import face, report, say
from framepack_daemon.errors import EXIT_DONE, FramepackError
from framepack_daemon.printable import printable

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

Jobs = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB...", help="Job ids, or the beginning of one.", show_default=False, autocompletion=completion.jobs
    ),
]


def cancel(ctx: typer.Context, jobs: Jobs) -> None:
    """Cancel jobs that wait or run; they end in failed/."""
    from framepack_daemon.spool import moves

    _, queue, _ = face(ctx).spool
    _each(jobs, lambda job: moves.cancel(queue, moves.resolve(queue, job)))


def interrupt(ctx: typer.Context, jobs: Jobs) -> None:
    """Put running jobs back into the queue; what they have rendered is kept."""
    from framepack_daemon.spool import moves

    _, queue, _ = face(ctx).spool
    _each(jobs, lambda job: moves.interrupt(queue, moves.resolve(queue, job)))


def retry(
    ctx: typer.Context,
    jobs: Jobs,
    new_seed: Annotated[bool, typer.Option("--new-seed", help="Make a new job of it, with another seed.")] = False,
) -> None:
    """Run finished jobs again, from the beginning."""
    from framepack_daemon.spool import moves
    from framepack_daemon.spool.submit import retake

    settings, queue, outputs = face(ctx).mounted

    def again(job: str) -> str:
        known = moves.resolve(queue, job)
        if new_seed:
            return "\n".join(retake(queue, outputs, known, settings.model))
        return moves.retry(queue, known)

    _each(jobs, again)


def remove(ctx: typer.Context, jobs: Jobs) -> None:
    """Remove jobs from the queue; their videos stay."""
    from framepack_daemon.spool import moves

    _, queue, _ = face(ctx).spool
    _each(jobs, lambda job: moves.remove(queue, moves.resolve(queue, job)))


def pause(ctx: typer.Context) -> None:
    """Start no further job until resume."""
    from framepack_daemon.spool import moves

    say(moves.pause(face(ctx).mounted.queue))


def resume(ctx: typer.Context) -> None:
    """Start jobs again after pause."""
    from framepack_daemon.spool import moves

    say(moves.resume(face(ctx).spool.queue))


def prune(
    ctx: typer.Context,
    keep: Annotated[
        int | None, typer.Option("--keep", metavar="N", min=0, help="Keep the newest N finished jobs.")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Only jobs that ended so long ago: 45m, 12h, 7d, 2w."),
    ] = None,
    videos: Annotated[bool, typer.Option("--videos", help="Remove their videos and pictures in outputs too.")] = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget", help="Forget them, status files too: the same pair, dropped again, will be a new job."
        ),
    ] = False,
) -> None:
    """Remove old finished jobs from the queue; their videos stay."""
    from framepack_daemon.spool import moves

    if keep is None and older_than is None:
        raise FramepackError("prune needs to know which jobs", hint="say --keep 100, or --older-than 30d, or both")
    _, queue, outputs = face(ctx).spool
    age = None if older_than is None else seconds(older_than)
    pruned = moves.prune(queue, outputs, keep=keep, older_than_seconds=age, videos=videos, forget=forget)
    for job in pruned:
        say(printable(job))
    say(f"{len(pruned)} {'job' if len(pruned) == 1 else 'jobs'} removed")


def seconds(age: str) -> float:
    """The seconds in a text like 90s, 45m, 12h, 7d or 2w."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", age.strip().lower())
    if match is None:
        raise FramepackError(
            f"--older-than: {printable(age)!r} is no age", hint="a number and a unit: 45m, 12h, 7d, 2w"
        )
    return float(match[1]) * UNIT_SECONDS[match[2]]


def _each(jobs: Iterable[str], act: Callable[[str], str]) -> None:
    """Act on every job, also after one that could not be acted on; the exit code is that of the last error."""
    code = EXIT_DONE
    for job in jobs:
        try:
            say(printable(act(job), keep="\n"))
        except FramepackError as error:
            report(error)
            code = error.exit_code
    raise typer.Exit(code)
