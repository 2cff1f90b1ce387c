"""Entering jobs without a drop folder: what the command line and the gateway call.

Copies go through the same door as drops; nothing of the caller's is moved. Needs no daemon.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from framepack_daemon import atomic
from framepack_daemon.errors import UnknownJobError
from framepack_daemon.job import JOB_ID, REQUEST_FILE, Role
from framepack_daemon.media import clip
from framepack_daemon.media import image as pictures
from framepack_daemon.request import build, draw_seed, effective
from framepack_daemon.spool import continuation
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.drop import Drop, Part
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter


def submit(
    queue: Queue,
    outputs: Path,
    *,
    image: Path | None,
    sidecar: dict[str, Any],
    last_image: Path | None,
    model: str,
    video: Path | None = None,
) -> list[str]:
    """Enter copies of a picture and of a sidecar's fields; the ids of the jobs, new or known.

    What is continued, a `video` or the job that the sidecar names, takes the place of the picture. Raises
    `FramepackError` before anything is written.
    """
    request = build(sidecar)
    effective(request, model)
    named = request.continue_from or ""
    stem = next((path.stem for path in (image, video) if path), named.rpartition("-")[0])
    parts = [_written_sidecar(stem, sidecar)]
    if image is not None:
        pictures.check(image)
        parts.append(Part(Role.IMAGE, image.name, image))
    elif video is not None:
        clip.check(video)
        parts.append(Part(Role.VIDEO, video.name, video))
    else:
        continuation.find(queue, named, stem)
    if last_image is not None:
        pictures.check(last_image)
        parts.append(Part(Role.END_FRAME, f"{stem}.last{last_image.suffix}", last_image))
    return _enter_copies(queue, outputs, Drop(stem, tuple(parts)), model)


def retake(queue: Queue, outputs: Path, job: str, model: str) -> list[str]:
    """Enter a job again with a freshly drawn seed; the id of the new job."""
    state = queue.state_of(job)
    run = queue.run(state, job) if state else None
    if state is None or run is None:
        raise UnknownJobError(f"{job}: no such job")
    folder = queue.path(state, job)
    fields = atomic.read_json(folder / REQUEST_FILE)
    files = [item for item in run.files if item.role in (Role.IMAGE, Role.VIDEO, Role.LATENTS, Role.END_FRAME)]
    if fields is None or not files or not all((folder / item.name).exists() for item in files):
        raise UnknownJobError(f"{job}: its picture or its request is no longer there", hint="drop the picture again")
    named = run.file(Role.SIDECAR) or files[0]
    parts = [
        _written_sidecar(Path(named.original).stem, fields | {"seed": draw_seed()}),
        *(Part(item.role, item.original, folder / item.name) for item in files),
    ]
    found = JOB_ID.fullmatch(job)
    drop = Drop(found["stem"] if found else job, tuple(parts), continued=run.continued)
    return _enter_copies(queue, outputs, drop, model)


def _written_sidecar(stem: str, fields: dict[str, Any]) -> Part:
    return Part(Role.SIDECAR, f"{stem}.json", atomic.encode_json(fields))


def _enter_copies(queue: Queue, outputs: Path, drop: Drop, model: str) -> list[str]:
    queue.make()
    atomic.make_folder(outputs)
    added = Door(queue, StatusWriter(queue, outputs), model).add(drop)
    if added.refusal is not None:
        raise added.refusal
    return added.jobs + added.known
