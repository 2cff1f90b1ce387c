"""Entering jobs without a drop folder: what the command line and the gateway call.

Copies go through the same door as drops; nothing of the caller's is moved. Needs no daemon.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from framepack_daemon import atomic
from framepack_daemon.errors import UnknownJobError
from framepack_daemon.job import JOB_ID, REQUEST_FILE, Role
from framepack_daemon.media import image as pictures
from framepack_daemon.request import build, draw_seed, effective
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.drop import Drop, Part
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter


def submit(
    queue: Queue, outputs: Path, *, image: Path, sidecar: dict[str, Any], last_image: Path | None, model: str
) -> list[str]:
    """Enter copies of a picture and of a sidecar's fields; the ids of the jobs, new or known.

    Raises `RequestError` or `ImageError` before anything is written.
    """
    effective(build(sidecar), model)
    parts = [Part(Role.IMAGE, image.name, image), _written_sidecar(image.stem, sidecar)]
    if last_image is not None:
        parts.append(Part(Role.END_FRAME, f"{image.stem}.last{last_image.suffix}", last_image))
    for part in parts:
        if isinstance(part.source, Path):
            pictures.check(part.source)
    return _enter_copies(queue, outputs, Drop(image.stem, tuple(parts)), model)


def retake(queue: Queue, outputs: Path, job: str, model: str) -> list[str]:
    """Enter a job again with a freshly drawn seed; the id of the new job."""
    state = queue.state_of(job)
    run = queue.run(state, job) if state else None
    if state is None or run is None:
        raise UnknownJobError(f"{job}: no such job")
    folder = queue.path(state, job)
    fields = atomic.read_json(folder / REQUEST_FILE)
    picture = run.file(Role.IMAGE)
    if fields is None or picture is None or not (folder / picture.name).exists():
        raise UnknownJobError(f"{job}: its picture or its request is no longer there", hint="drop the picture again")
    parts = [
        Part(Role.IMAGE, picture.original, folder / picture.name),
        _written_sidecar(Path(picture.original).stem, fields | {"seed": draw_seed()}),
    ]
    end_frame = run.file(Role.END_FRAME)
    if end_frame is not None:
        parts.append(Part(Role.END_FRAME, end_frame.original, folder / end_frame.name))
    found = JOB_ID.fullmatch(job)
    return _enter_copies(queue, outputs, Drop(found["stem"] if found else job, tuple(parts)), model)


def _written_sidecar(stem: str, fields: dict[str, Any]) -> Part:
    return Part(Role.SIDECAR, f"{stem}.json", atomic.encode_json(fields))


def _enter_copies(queue: Queue, outputs: Path, drop: Drop, model: str) -> list[str]:
    queue.make()
    atomic.make_folder(outputs)
    added = Door(queue, StatusWriter(queue, outputs), model).add(drop)
    if added.refusal is not None:
        raise added.refusal
    return sorted(added.jobs + added.known)
