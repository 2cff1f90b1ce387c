"""What people do on the page: entering jobs from the form, and the buttons on the cards.

Each is what the command line and the API do too, by the same functions. Knows neither HTML nor events.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from framepack_daemon.errors import RequestError, StateError, UnknownJobError
from framepack_daemon.job import Role, State
from framepack_daemon.media import image as pictures
from framepack_daemon.request import Request
from framepack_daemon.spool import moves
from framepack_daemon.spool.queue import Queue
from framepack_daemon.web import entering
from framepack_daemon.web.gateway import Gateway
from framepack_daemon.web.uploads import Upload

_PRIORITY = Request.model_json_schema()["properties"]["priority"]


def enter(
    here: Gateway, fields: dict[str, Any], files: Mapping[str, list[Path]], like: str, *, first: bool
) -> list[str]:
    """Enter a job for each picture, or the one that continues another; the ids.

    `files` has the pictures under `image` and an end frame under `last_image`; without any, the picture of the job
    `like` is taken. With `first` they come before all that waits, and a paused queue goes on. Raises `FramepackError`
    before the first job is entered.
    """
    images, ends = files.get("image", []), files.get("last_image", [])
    if ends and len(images) > 1:
        raise RequestError("last_image: belongs to one picture", hint="pick one picture, or no end frame")
    for image in images:
        pictures.check(image, max_pixels=here.web.max_pixels)
    if first and "priority" not in fields:
        fields = fields | {"priority": min(_highest(here.queue) + 1, _PRIORITY["maximum"])}
    with tempfile.TemporaryDirectory(prefix="framepack-") as folder:
        if not images and like and "continue_from" not in fields:
            images = [_picture_of(here.queue, like, Path(folder))]
        uploads = [{"image": image} for image in images] or [{}]
        ending = {"last_image": ends[0]} if ends else {}
        entered = [entering.enter(here, fields, Upload(files=each | ending)) for each in uploads]
    if first:
        moves.resume(here.queue)
    return [job for jobs in entered for job in jobs]


def _highest(queue: Queue) -> int:
    """The highest priority among the jobs that wait; -1 when none does."""
    waiting = queue.waiting()
    run = queue.run(State.PENDING, waiting[0]) if waiting else None
    return run.priority if run else -1


def _picture_of(queue: Queue, job: str, folder: Path) -> Path:
    """A copy in `folder` of the picture that a job began with; `UnknownJobError` when that is no longer there."""
    state = queue.state_of(job)
    run = queue.run(state, job) if state else None
    image = run.file(Role.IMAGE) if run else None
    if state is None or image is None or not (queue.path(state, job) / image.name).is_file():
        raise UnknownJobError(f"{job}: its picture is no longer there", hint="pick the picture again")
    return Path(shutil.copy(queue.path(state, job) / image.name, folder))


def up(queue: Queue, job: str) -> str:
    """Have a job that waits change places with the one before it: each gets the other's priority and time."""
    waiting = queue.waiting()
    place = waiting.index(job) if job in waiting else 0
    mine, other = (queue.run(State.PENDING, each) for each in (job, waiting[place - 1] if place else job))
    if mine is None or other is None or mine == other:
        raise StateError(f"{job}: nothing waits before it", hint="it runs next, or does not wait")
    # A job that starts meanwhile is no longer there to be changed.
    with contextlib.suppress(FileNotFoundError):
        queue.save_run(State.PENDING, replace(mine, priority=other.priority, queued_at=other.queued_at))
        queue.save_run(State.PENDING, replace(other, priority=mine.priority, queued_at=mine.queued_at))
    return f"{job}: moved up"


ACTS: Mapping[str, Callable[[Queue, str], str]] = {
    "interrupt": moves.interrupt,
    "cancel": moves.cancel,
    "retry": moves.retry,
    "remove": moves.remove,
    "up": up,
}
