"""Files to look at: videos, previews, pictures, thumbnails; with ranges, ETags and 304.

A client names a job, or a file of the outputs folder by its bare name. A file is opened once, without following a link,
and what was opened is what is sent, whatever is renamed meanwhile. Changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from framepack_daemon.errors import ImageError
from framepack_daemon.job import Role, State
from framepack_daemon.scratch import POSTER
from framepack_daemon.spool import previews
from framepack_daemon.spool.queue import is_name
from framepack_daemon.web import thumbnail
from framepack_daemon.web.gateway import Gateway, Here
from framepack_daemon.web.models import JobId, Videos
from framepack_daemon.web.problems import NothingThereError, documented

MP4 = "video/mp4"
_PICTURES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".jfif": "image/jpeg", ".png": "image/png", ".webp": "image/webp",
    ".gif": "image/gif", ".bmp": "image/bmp", ".tif": "image/tiff", ".tiff": "image/tiff", ".avif": "image/avif",
}  # fmt: skip
_UNPUBLISHED = re.compile(r"\.(preview|partial)\.mp4$", re.IGNORECASE)
_DOCUMENTED = documented(404, 422)
_VIDEO: dict[int | str, dict[str, Any]] = {
    200: {"content": {MP4: {}}, "description": "The video, or the range of it that was asked for."}
}

router = APIRouter(tags=["media"])


class OpenFile(FileResponse):
    """An open file as an answer; it is closed afterwards."""

    def __init__(self, descriptor: int, **more: object) -> None:
        self._descriptor = descriptor
        super().__init__(f"/proc/self/fd/{descriptor}", **more)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._descriptor)


@router.head("/download/video/{job_id}", include_in_schema=False)
@router.get("/download/video/{job_id}", response_class=FileResponse, responses={**_VIDEO, **_DOCUMENTED})
def download_video(request: Request, here: Here, job_id: JobId) -> Response:
    """The MP4 of a completed job."""
    name = video_of(here, job_id)
    return send(request, here.outputs / name, MP4, save_as=name)


@router.head("/preview/{job_id}", include_in_schema=False)
@router.get("/preview/{job_id}", response_class=FileResponse, responses={**_VIDEO, **_DOCUMENTED})
def preview(request: Request, here: Here, job_id: JobId) -> Response:
    """What is rendered so far of a job that runs, waits to go on, or ended without its video. It always plays."""
    here.state(job_id)
    name = previews.published(here.outputs, job_id)
    if name is None:
        raise NothingThereError(f"{job_id}: has no preview", hint="there is one after the first section")
    return send(request, here.outputs / name, MP4)


@router.get("/videos")
def videos(here: Here) -> Videos:
    """Names of the MP4s in the outputs folder."""
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(here.outputs) as entries:
        names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False) and _is_video(entry.name)]
    return Videos(videos=sorted(name for name in names if name.isprintable()))


@router.head("/videos/{filename}", include_in_schema=False)
@router.get("/videos/{filename}", response_class=FileResponse, responses={**_VIDEO, **_DOCUMENTED})
def video(
    request: Request, here: Here, filename: Annotated[str, PathParameter(min_length=1, max_length=255)]
) -> Response:
    """One of the MP4s that `GET /videos` lists."""
    if not is_name(filename) or not _is_video(filename):
        raise NothingThereError(f"{filename}: is no video here", hint="GET /videos lists them")
    return send(request, here.outputs / filename, MP4)


@router.head("/input_image/{job_id}", include_in_schema=False)
@router.get("/input_image/{job_id}", response_class=FileResponse, responses={
    200: {"content": {"image/*": {}}, "description": "The picture, as it was dropped."}, **_DOCUMENTED,
})  # fmt: skip
def input_image(request: Request, here: Here, job_id: JobId) -> Response:
    """The picture that the job begins with."""
    path = _picture(here, job_id)
    return send(request, path, _PICTURES.get(path.suffix.lower(), "application/octet-stream"))


@router.get("/thumbnail/{job_id}", response_class=Response, responses={
    200: {"content": {"image/jpeg": {}}, "description": f"A JPEG of at most {thumbnail.SIDE} pixels."}, **_DOCUMENTED,
})  # fmt: skip
def small_picture(request: Request, here: Here, job_id: JobId) -> Response:
    """A small picture of the job: the first frame of its video, or else what it begins with."""
    jpeg = thumbnail_of(here, job_id)
    if jpeg is None:
        raise NothingThereError(f"{job_id}: has no picture")
    etag = f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _is_known(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(jpeg, headers=headers, media_type="image/jpeg")


def video_of(here: Gateway, job: str) -> str:
    """Name of the job's video in outputs; `NothingThereError` until it is published."""
    body = here.body(job)
    made = body.get("video")
    name = str(made.get("file")) if isinstance(made, dict) else ""
    if body["state"] != State.DONE or not is_name(name) or not _is_video(name):
        raise NothingThereError(f"{job}: has no video; it is {body['state']}", hint="GET /status/… says how far it is")
    return name


def thumbnail_of(here: Gateway, job: str) -> bytes | None:
    """A small JPEG of the job, where one can be made."""
    here.state(job)
    places: tuple[Callable[[], Path], ...] = (
        lambda: here.outputs / f"{job}.{POSTER}",
        lambda: _picture(here, job),
    )
    for place in places:
        try:
            return thumbnail.make(place())
        except (FileNotFoundError, NothingThereError, ImageError):
            continue
    return None


def send(request: Request, path: Path, media_type: str, *, save_as: str | None = None) -> Response:
    """The file at `path`, the range of it that is asked for, or 304; `NothingThereError` when it is no plain file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EACCES):
            raise NothingThereError(f"{path.name}: is not there") from error
        raise
    found = os.fstat(descriptor)
    etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    is_plain, is_known = stat.S_ISREG(found.st_mode), _is_known(request, etag)
    if is_plain and not is_known:
        return OpenFile(descriptor, headers=headers, media_type=media_type, filename=save_as, stat_result=found)
    os.close(descriptor)
    if not is_plain:
        raise NothingThereError(f"{path.name}: is no file")
    return Response(status_code=304, headers=headers)


def _picture(here: Gateway, job: str) -> Path:
    """Where the job's picture stands."""
    state = here.state(job)
    run = here.queue.run(state, job)
    file = run.file(Role.IMAGE) if run else None
    if file is None or not is_name(file.name):
        raise NothingThereError(f"{job}: has no picture")
    return here.queue.path(state, job) / file.name


def _is_video(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(".mp4") and _UNPUBLISHED.search(name) is None


def _is_known(request: Request, etag: str) -> bool:
    """Whether the client has this very content already."""
    given = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return "*" in given or etag in given
