"""`submit`: a picture and its fields go into the queue, and their video can be waited for."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from framepack_daemon import atomic
from framepack_daemon.cli.context import daemon_runs, face, note, say
from framepack_daemon.errors import RequestError
from framepack_daemon.printable import printable
from framepack_daemon.request import Request, build, draw_seed

ImageFile = Annotated[
    Path, typer.Argument(metavar="IMAGE", exists=True, dir_okay=False, help="The picture.", show_default=False)
]


def submit(  # noqa: PLR0917 typer's options are parameters
    ctx: typer.Context,
    image: ImageFile,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="What happens in the video.")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="FIELD=VALUE", help="A field of the sidecar, as in --set seconds=3."),
    ] = None,
    sidecar: Annotated[
        Path | None,
        typer.Option(
            "--sidecar", exists=True, dir_okay=False, metavar="FILE", help="Start from the fields of this JSON file."
        ),
    ] = None,
    last_image: Annotated[
        Path | None,
        typer.Option("--last-image", exists=True, dir_okay=False, metavar="FILE", help="The picture at the end."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for the video and print its path.")] = False,
) -> None:
    """Put a picture into the queue and print the job's id.

    The picture is copied. A seed is drawn unless one is given, so that the same picture twice makes two videos.
    After waiting, the path of the video follows, and the exit code is 1 if the job failed. Ctrl-C ends the waiting,
    not the job.

    Fields and their ranges: framepack-daemon schema
    """
    from framepack_daemon.spool.submit import submit as enter

    settings, queue, outputs = face(ctx).spool
    over = dict(map(assignment, fields or []))
    if prompt is not None:
        over["prompt"] = prompt
    wanted = compose(over, sidecar, image, last_image)
    atomic.make_folder(outputs)
    jobs = enter(queue, outputs, image=image, sidecar=wanted, last_image=last_image, model=settings.model)
    for job in jobs:
        say(job)
    if not daemon_runs(settings.queue_dir):
        note("no daemon seems to run on this queue; start one with: framepack-daemon run")
    if wait:
        _wait(ctx, jobs)


def _wait(ctx: typer.Context, jobs: list[str]) -> None:
    from framepack_daemon.cli import waiting

    _, queue, outputs = face(ctx).spool
    try:
        statuses = waiting.follow(queue, outputs, jobs)
    except KeyboardInterrupt:
        names = " ".join(jobs)
        note(f"no longer waiting; in the queue all the same: {names}")
        note(f"to see it: framepack-daemon status {names}; to stop it: framepack-daemon cancel {names}")
        raise typer.Exit(130) from None
    raise typer.Exit(waiting.results(outputs, statuses, lambda path: say(str(path))))


def assignment(text: str) -> tuple[str, Any]:
    """The field and value in `field=value`; the value is read as JSON where it is JSON, as text otherwise."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise RequestError(f"--set {printable(text)}: is no field=value", hint="write it like --set seconds=3")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def compose(over: dict[str, Any], sidecar: Path | None, image: Path, last_image: Path | None) -> dict[str, Any]:
    """The sidecar of a job: `over` laid over the fields of a file, checked, its seed drawn."""
    from framepack_daemon.spool.drop import sidecar_fields

    under = sidecar_fields(sidecar.name, sidecar.read_bytes()) if sidecar else {}
    if last_image is not None:
        over["last_image"] = f"{image.stem}.last{last_image.suffix}"
    request: Request = build(over, under)
    if request.last_image is not None and last_image is None:
        raise RequestError("last_image: there is no end frame", hint="name its file with --last-image")
    drawn = {"seed": draw_seed()} if request.seed == -1 else {}
    return request.model_dump(exclude_unset=True, exclude_none=True) | drawn
