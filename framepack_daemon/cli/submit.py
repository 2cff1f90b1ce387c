"""`submit`: a picture and its fields go into the queue, and their video can be waited for."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from framepack_daemon import atomic
from framepack_daemon.cli.context import face, note, say
from framepack_daemon.errors import RequestError
from framepack_daemon.printable import printable
from framepack_daemon.request import Request, as_take, build

ImageFile = Annotated[
    Path | None,
    typer.Argument(metavar="[IMAGE]", exists=True, dir_okay=False, help="The picture.", show_default=False),
]


def submit(  # noqa: PLR0917 typer's options are parameters
    ctx: typer.Context,
    image: ImageFile = None,
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
    continue_from: Annotated[
        str | None,
        typer.Option("--continue", metavar="JOB|VIDEO", help="Go on from a done job or a video, without a picture."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for the video and print its path.")] = False,
) -> None:
    """Put a picture into the queue, or a video to be continued, and print the job's id.

    The picture is copied. A seed is drawn unless one is given, so that the same picture twice makes two videos.
    After waiting, the path of the video follows, and the exit code is 1 if the job failed. Ctrl-C ends the waiting,
    not the job.

    Fields and their ranges: framepack-daemon schema
    """
    from framepack_daemon.spool import moves, names
    from framepack_daemon.spool.lock import daemon_runs
    from framepack_daemon.spool.submit import submit as enter

    settings, queue, outputs = face(ctx).mounted
    over = dict(map(assignment, fields or []))
    if prompt is not None:
        over["prompt"] = prompt
    if continue_from is not None:
        is_video = names.is_video(continue_from)
        over["continue_from"] = Path(continue_from).name if is_video else moves.resolve(queue, continue_from)
    wanted = compose(over, sidecar, image, last_image)
    video = continued_video(wanted, Path(continue_from) if continue_from else None, sidecar)
    atomic.make_folder(outputs)
    jobs = enter(queue, outputs, image=image, sidecar=wanted, last_image=last_image, model=settings.model, video=video)
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


def compose(over: dict[str, Any], sidecar: Path | None, image: Path | None, last_image: Path | None) -> dict[str, Any]:
    """The sidecar of a job: `over` laid over the fields of a file, checked, its seed drawn."""
    from framepack_daemon.spool.drop import sidecar_fields

    under = sidecar_fields(sidecar.name, sidecar.read_bytes()) if sidecar else {}
    if last_image is not None:
        begin = image or Path(str(over.get("continue_from") or "beach"))
        over["last_image"] = f"{begin.stem}.last{last_image.suffix}"
    request: Request = build(over, under)
    if request.last_image is not None and last_image is None:
        raise RequestError("last_image: there is no end frame", hint="name its file with --last-image")
    if (image is None) == (request.continue_from is None):
        raise RequestError(
            "there is nothing to begin with" if image is None else f"{image}: stands beside what is continued",
            hint="name a picture, or what is to be continued with --continue",
        )
    return as_take(request)


def continued_video(wanted: dict[str, Any], given: Path | None, sidecar: Path | None) -> Path | None:
    """The video that a job goes on from: the one given, or the one beside the sidecar that names it."""
    from framepack_daemon.spool import names

    named = wanted.get("continue_from")
    if named is None or not names.is_video(named):
        return None
    video = given or (sidecar.parent if sidecar else Path()) / named
    if not video.is_file():
        raise RequestError(f"{video}: there is no such video", hint="name a video or a job with --continue")
    return video
