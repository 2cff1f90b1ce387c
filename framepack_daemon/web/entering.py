"""From an upload to jobs in the queue: pictures checked, the seed drawn, and then the one door.

Runs outside the event loop. Raises `FramepackError` for whatever is wrong, before anything stands in the queue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from framepack_daemon.errors import ImageError, RequestError
from framepack_daemon.media import image
from framepack_daemon.request import as_take, build
from framepack_daemon.spool.submit import submit
from framepack_daemon.web import views
from framepack_daemon.web.gateway import Gateway
from framepack_daemon.web.uploads import Upload


def enter(here: Gateway, fields: dict[str, Any], upload: Upload) -> list[str]:
    """The ids of the jobs that the fields of a sidecar and the files beside it make, new or known."""
    files = dict(upload.files)
    first, last, video = files.get("image"), files.get("last_image"), files.get("video")
    fields = dict(fields)
    if video is not None:
        fields["continue_from"] = video.name
    if last is not None:
        last = _named(here, "last_image", last)
        fields["last_image"] = last.name
    request = build(fields)
    if first is not None and request.continue_from is not None:
        raise RequestError("image: stands beside what is continued", hint="send one or the other")
    if first is None and request.continue_from is None:
        raise RequestError("image: is missing", hint="send the picture as a file, in a part of the form called image")
    if request.last_image is not None and last is None:
        raise RequestError("last_image: there is no end frame", hint="send it as a file, in a part called last_image")
    if first is not None:
        first = _named(here, "image", first)
    here.expect()
    return submit(
        here.queue,
        here.outputs,
        image=first,
        sidecar=as_take(request),
        last_image=last,
        model=here.settings.model,
        video=video,
    )


def told(here: Gateway, job: str) -> str:
    """What goes on with a job that was just entered, in words."""
    return str(views.clean(here.body(job).get("message")) or "")


def _named(here: Gateway, part: str, path: Path) -> Path:
    """A picture that was looked into, under a name with the suffix of what it is."""
    try:
        facts = image.check(path, max_pixels=here.web.max_pixels)
    except ImageError as error:
        raise type(error)(f"{part}: {error.message}", hint=error.hint) from error
    if path.suffix.lower() in image.SUFFIXES:
        return path
    suffix = f".{facts.format.lower()}"
    return path.rename(path.with_name(path.name + (suffix if suffix in image.SUFFIXES else ".png")))
