"""A drop: files that are to become a job, and what follows from their content alone.

Its request, its record and its id. Reads the files where they have been put together; moves nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framepack_daemon import atomic
from framepack_daemon.errors import DropError, FramepackError, RequestError
from framepack_daemon.job import (
    DEFAULTS_FILE,
    REQUEST_FILE,
    Continued,
    JobFile,
    Role,
    Run,
    State,
    job_id,
    stored_name,
)
from framepack_daemon.request import Request, build
from framepack_daemon.spool import names
from framepack_daemon.spool.capture import Source, signature
from framepack_daemon.spool.continuation import lay_over
from framepack_daemon.spool.queue import PRECEDENCE, Queue
from framepack_daemon.strict_json import MAX_SIDECAR_BYTES, parse_json

_IDENTITY = {role: place for place, role in enumerate(Role)}  # the order in which contents enter the id


@dataclass(frozen=True)
class Part:
    """One file of a drop: a source to be taken away, a path to be copied, or bytes."""

    role: Role
    name: str
    source: Source | Path | bytes


@dataclass(frozen=True)
class Drop:
    """Files that are to become a job."""

    stem: str
    parts: tuple[Part, ...]
    folder: Path | None = None  # where sources are taken from
    defaults: bytes | None = None  # the folder's preset
    continued: Continued | None = None  # the job that it continues, once that is known
    refusal: FramepackError | None = None  # why it cannot become a job, where that is known already

    def of(self, *roles: Role) -> list[Part]:
        """The parts of those roles."""
        return [part for part in self.parts if part.role in roles]


def read_request(drop: Drop, place: Path) -> Request:
    """The request of the files in `place`; RequestError or DropError names what is wrong with it."""
    sidecar = next((part.name for part in drop.of(Role.SIDECAR)), None)
    end_frame = next((part.name for part in drop.of(Role.END_FRAME)), None)
    data = sidecar_bytes(place / stored_name(sidecar)) if sidecar else b"{}"
    fields = sidecar_fields(sidecar or "", data)
    defaults = parse_json(drop.defaults, "defaults.json") if drop.defaults is not None else {}
    if end_frame:
        fields["last_image"] = end_frame
    if drop.continued:
        fields, defaults = lay_over(drop.continued, fields, defaults)
    request = build(fields, defaults)
    if request.last_image and not end_frame:
        raise RequestError("last_image: there is no end frame", hint="put it beside the picture, as in beach.last.jpg")
    _require_beginning(drop, request.continue_from)
    return request


def _require_beginning(drop: Drop, named: str | None) -> None:
    """Raises unless the drop begins with one thing: a picture, or the video or the job that it continues."""
    begins, whole = drop.of(Role.IMAGE, Role.VIDEO), drop.of(Role.LATENTS) != []
    if named is None or whole:
        if len(begins) != 1:
            raise DropError(
                f"holds {len(begins)} pictures",
                hint="a job is one picture and its sidecar; drop them into the inbox again",
            )
        return
    by_name = [part for part in drop.of(Role.VIDEO) if names.is_same(part.name, named)]
    if others := [part.name for part in begins if part not in by_name]:
        raise DropError(
            f"{others[0]}: stands beside continue_from, which gives the beginning",
            hint="remove the picture, or continue_from, and drop again",
        )
    if names.is_video(named) and not by_name:
        raise DropError(f"continue_from: there is no video {named}", hint="put it beside the sidecar, under its name")


def continued_by(path: Path, unreadable: str | None = None) -> str | None:
    """What the sidecar at `path` continues; None when it continues nothing, `unreadable` when it cannot be read."""
    try:
        named = parse_json(sidecar_bytes(path)).get("continue_from")
    except (RequestError, OSError):
        return unreadable
    return None if named is None else str(named)


def sidecar_bytes(path: Path) -> bytes:
    """The content of a sidecar, or so much of it that parsing refuses it for its size."""
    with path.open("rb") as stream:
        return stream.read(MAX_SIDECAR_BYTES + 1)


def sidecar_fields(name: str, data: bytes) -> dict[str, Any]:
    """The fields that a sidecar gives: those of its JSON, or the prompt that a `.txt` holds."""
    if names.is_sidecar(name) or not name.casefold().endswith(".txt"):
        return parse_json(data)
    try:
        return {"prompt": data.decode("utf-8-sig").strip()}
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: byte {error.start} is not UTF-8", hint="save it as UTF-8 text") from error


def record(drop: Drop, place: Path, variation: int | None, time: str, *, taken: bool = True) -> Run:
    """The record of the job that the files in `place` make, its id drawn from their content; it waits since `time`.

    Those that were not `taken` yet have the names under which they were dropped.
    """
    total = hashlib.sha256()
    files = []
    aside_counts = not drop.of(Role.IMAGE, Role.VIDEO)
    for part in sorted(drop.parts, key=lambda part: (_IDENTITY[part.role], part.name)):
        name = stored_name(part.name)
        path = place / (name if taken else part.name)
        size, digest = atomic.digest(path, *((total, part.role) if _counts(part, aside=aside_counts) else ()))
        files.append(JobFile(part.role, name, part.name, size, digest))
    if drop.defaults is not None:
        size, digest = atomic.digest(place / DEFAULTS_FILE, total, Role.DEFAULTS)
        files.append(JobFile(Role.DEFAULTS, DEFAULTS_FILE, names.DEFAULTS_NAME, size, digest))
    if variation is not None:
        total.update(f"variation\0{variation}\0".encode())
    job = job_id(drop.stem, total.hexdigest())
    return Run(job, tuple(files), time, time, variation=variation, continued=drop.continued)


def _counts(part: Part, *, aside: bool) -> bool:
    return part.role is not Role.ASIDE or aside


def known_as(queue: Queue, run: Run) -> State | None:
    """The state in which this very content is known already."""
    for state in PRECEDENCE * 2:  # as in Queue.state_of
        earlier = queue.run(state, run.job)
        if earlier is not None and [item.sha256 for item in earlier.files] == [item.sha256 for item in run.files]:
            return state
    return None


def is_repeat(queue: Queue, drop: Drop) -> bool:
    """Whether a job was made, and not refused, of the very content that lies in the drop's folder."""
    assert drop.folder is not None
    run = record(drop, drop.folder, None, "", taken=False)
    state = known_as(queue, run)
    return state is not None and (queue.path(state, run.job) / REQUEST_FILE).exists()


def is_unchanged(folder: Path, run: Run) -> bool:
    """Whether every file of the job in `folder` is a plain file with the content that was taken."""
    files = [(folder / item.name, item.sha256) for item in run.files]
    return all(signature(path) is not None and atomic.digest(path)[1] == sha256 for path, sha256 in files)
