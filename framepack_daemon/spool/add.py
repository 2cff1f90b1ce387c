"""The one door into the queue: a directory is put together aside and renamed into `pending/`.

Intake, command line and gateway all come through here. The id is drawn from the content, so what is known already is
consumed and starts nothing; what cannot become a job goes to `failed/` whole, with the reason. Knows neither the drop
folder's rules nor the workers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from framepack_daemon import atomic
from framepack_daemon.errors import DropError, FramepackError, RequestError
from framepack_daemon.job import (
    DEFAULTS_FILE,
    JOB_ID,
    OUTCOME_FILE,
    OWN_FILES,
    REQUEST_FILE,
    RUN_FILE,
    JobFile,
    Outcome,
    Role,
    Run,
    State,
    job_id,
    now,
    safe_stem,
    stored_name,
)
from framepack_daemon.media import image as pictures
from framepack_daemon.request import Request, build, effective, parse_json
from framepack_daemon.spool import names, status
from framepack_daemon.spool.capture import (
    ORIGIN_FILE,
    DropChangedError,
    Source,
    capture,
    capture_beside,
    discard,
    release,
    signature,
)
from framepack_daemon.spool.queue import PRECEDENCE, Queue

# Prefixes of folders under queue/.building: what recovery does with one that a crash left there.
TAKING = "take-"  # holds files that exist nowhere else: they go back, or the job is completed
COPYING = "copy-"  # holds copies only: it is removed

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
    refusal: FramepackError | None = None  # why it cannot become a job, where that is known already


@dataclass(frozen=True)
class Added:
    """What became of a drop."""

    jobs: list[str] = field(default_factory=list)  # that are new, in their order
    known: list[str] = field(default_factory=list)  # that were there already; nothing was started
    refusal: FramepackError | None = None  # why the one new job stands in failed/


@dataclass
class Door:
    """The way into one queue, with what every entry needs to know."""

    queue: Queue
    writer: status.StatusWriter
    model: str  # of requests that name none

    def add(self, drop: Drop) -> Added:
        """Make a job (or several, or a refused one) of a drop.

        Raises `DropChangedError` when a source changed meanwhile (nothing was taken), OSError when the queue cannot
        be written (everything was put back).
        """
        try:
            return self._add(drop, TAKING if drop.folder else COPYING)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        return self._add(drop, COPYING)

    def _add(self, drop: Drop, prefix: str) -> Added:
        """`add` by taking the files into the queue, or by copies of files that are taken beside the drop."""
        place = self.queue.building / (prefix + secrets.token_hex(8))
        atomic.make_folder(place)
        taken: list[Path] = []
        try:
            with atomic.locked(place):
                self._gather(drop, place, taken)
                added = self._enter(drop, place)
        except (OSError, DropChangedError):
            for folder in {place, *taken}:
                release(folder)
            raise
        for folder in taken:
            discard(folder)
        return added

    def add_again(self, path: Path) -> Added:
        """Make a job of a directory in `pending/` that is not what its record says, or has none.

        So a late write to a file that was taken already becomes a job of its own content, and a folder of files that
        someone put into `pending/` by hand becomes a job.
        """
        place = self.queue.building / f"{TAKING}{secrets.token_hex(8)}-{safe_stem(path.name)}"
        atomic.move(path, place)
        with atomic.locked(place):
            return self._enter(self._drop_in(place, path.name), place)

    def complete(self, place: Path) -> None:
        """Finish or undo what a crash left in `queue/.building`."""
        for torn in place.glob(".*.tmp"):
            torn.unlink()  # ours, half written: what was dropped is never stored under a hidden name
        if place.name.startswith(COPYING):
            atomic.remove_tree(place)
        elif (place / ORIGIN_FILE).exists():
            release(place)
        elif any(place.iterdir()):
            with atomic.locked(place):
                self._enter(self._drop_in(place, place.name.split("-", 2)[-1]), place)
        else:
            place.rmdir()

    def _gather(self, drop: Drop, place: Path, taken: list[Path]) -> None:
        """Bring the drop's files into `place`; a folder beside the drop that holds the originals joins `taken`."""
        sources = [part.source for part in drop.parts if isinstance(part.source, Source)]
        if drop.folder and place.name.startswith(TAKING):
            capture(sources, drop.folder, place)
        elif drop.folder:
            taken.append(capture_beside(sources, drop.folder, place))
        for part in drop.parts:
            if isinstance(part.source, bytes):
                atomic.write_bytes(place / stored_name(part.name), part.source)
            elif isinstance(part.source, Path):
                atomic.copy(part.source, place / stored_name(part.name))
        if drop.defaults is not None:
            atomic.write_bytes(place / DEFAULTS_FILE, drop.defaults)

    def _enter(self, drop: Drop, place: Path) -> Added:
        """Turn the files in `place` into jobs; `place` is gone afterwards."""
        refusal, request = drop.refusal, None
        if refusal is None:
            try:
                request = read_request(drop, place)
                effective(request, self.model)
            except RequestError as error:
                refusal = error
        count = request.variations if request else 1
        jobs: list[str] = []
        known: list[str] = []
        # The directory that holds the originals goes last: until then a crash puts them back and all is done again.
        for variation in reversed(range(count)):
            here = place if variation == 0 else self._twin(place, drop)
            run = record(drop, here, variation if count > 1 else None)
            if request:
                filled = effective(request, self.model, variation=variation)
                run = replace(run, priority=filled.priority)
                atomic.write_json(here / REQUEST_FILE, filled.as_sidecar())
            elif refusal:
                atomic.write_json(here / OUTCOME_FILE, refused(refusal))
            (jobs if self._settle(here, run) else known).insert(0, run.job)
        return Added(jobs, known, refusal if jobs else None)

    def _settle(self, place: Path, run: Run) -> bool:
        """Give the finished directory its place in the queue; False when the job was there already."""
        earlier = known_as(self.queue, run)
        if earlier is not None:
            self.queue.discard(place)
            self.writer.amend(run.job, message=status.DROPPED_AGAIN)
            return False
        atomic.write_json(place / RUN_FILE, run.as_dict())
        (place / ORIGIN_FILE).unlink(missing_ok=True)
        atomic.sync_folder(place)
        state = State.FAILED if (place / OUTCOME_FILE).exists() else State.PENDING
        try:
            atomic.move(place, self.queue.path(state, run.job))
        except FileExistsError:
            # Another content under this id, or someone was faster; either way nothing is lost.
            self.queue.set_aside(place)
            return False
        self.writer.write(run.job, state)
        return True

    def _twin(self, place: Path, drop: Drop) -> Path:
        """A copy of the drop's files for one more job."""
        twin = self.queue.building / (COPYING + secrets.token_hex(8))
        atomic.make_folder(twin)
        wanted = [stored_name(part.name) for part in drop.parts]
        for name in [*wanted, *([DEFAULTS_FILE] if drop.defaults is not None else [])]:
            atomic.copy(place / name, twin / name)
        return twin

    def _drop_in(self, place: Path, name: str) -> Drop:
        """The drop that the files of a directory make: by their record, or by their names."""
        run = _run_in(place)
        found = JOB_ID.fullmatch(run.job if run else name)
        roles = {item.name: item.role for item in run.files} if run else {}
        parts = []
        for path in sorted(place.iterdir()):
            if path.name in OWN_FILES or path.name.startswith(".") or signature(path) is None:
                continue
            role = roles.get(path.name) or _role_by_name(path.name)
            parts.append(Part(role, path.name, path))
        defaults = place / DEFAULTS_FILE
        drop = Drop(
            found["stem"] if found else name,
            tuple(parts),
            defaults=defaults.read_bytes() if defaults.exists() else None,
        )
        for own in (REQUEST_FILE, OUTCOME_FILE):
            (place / own).unlink(missing_ok=True)
        return replace(drop, refusal=_image_refusal(drop, place))


def _run_in(place: Path) -> Run | None:
    value = atomic.read_json(place / RUN_FILE)
    with contextlib.suppress(TypeError, KeyError, ValueError):
        return Run.from_dict(value) if value else None
    return None


def _role_by_name(name: str) -> Role:
    read = names.read(name)
    kinds = {
        names.Kind.IMAGE: Role.IMAGE,
        names.Kind.END_FRAME: Role.END_FRAME,
        names.Kind.SIDECAR: Role.SIDECAR,
        names.Kind.PROMPT: Role.SIDECAR,
    }
    return kinds[read.kind] if read else Role.ASIDE


def _image_refusal(drop: Drop, place: Path) -> FramepackError | None:
    """Why the pictures of a directory that was found, not judged, cannot be used."""
    images = [part for part in drop.parts if part.role is Role.IMAGE]
    if len(images) != 1:
        return DropError(
            f"holds {len(images)} pictures", hint="a job is one picture and its sidecar; drop them into the inbox again"
        )
    try:
        for part in drop.parts:
            if part.role in (Role.IMAGE, Role.END_FRAME):
                pictures.check(place / part.name)
    except FramepackError as error:
        return error
    return None


def read_request(drop: Drop, place: Path) -> Request:
    """The request of the files in `place`; RequestError names what is wrong with it."""
    sidecar = next((part.name for part in drop.parts if part.role is Role.SIDECAR), None)
    end_frame = next((part.name for part in drop.parts if part.role is Role.END_FRAME), None)
    data = (place / stored_name(sidecar)).read_bytes() if sidecar else b"{}"
    fields = sidecar_fields(sidecar or "", data)
    defaults = parse_json(drop.defaults, "defaults.json") if drop.defaults is not None else {}
    if end_frame:
        fields["last_image"] = end_frame
    return build(fields, defaults)


def sidecar_fields(name: str, data: bytes) -> dict[str, Any]:
    """The fields that a sidecar gives: those of its JSON, or the prompt that a `.txt` holds."""
    if not name.casefold().endswith(".txt"):
        return parse_json(data)
    try:
        return {"prompt": data.decode("utf-8-sig").strip()}
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: byte {error.start} is not UTF-8", hint="save it as UTF-8 text") from error


def record(drop: Drop, place: Path, variation: int | None) -> Run:
    """The record of the job that the files in `place` make, its id drawn from their content."""
    total = hashlib.sha256()
    files = []
    aside_counts = not any(part.role is Role.IMAGE for part in drop.parts)
    for part in sorted(drop.parts, key=lambda part: (_IDENTITY[part.role], part.name)):
        name = stored_name(part.name)
        size, digest = atomic.digest(place / name, *((total, part.role) if _counts(part, aside=aside_counts) else ()))
        files.append(JobFile(part.role, name, part.name, size, digest))
    if drop.defaults is not None:
        size, digest = atomic.digest(place / DEFAULTS_FILE, total, Role.DEFAULTS)
        files.append(JobFile(Role.DEFAULTS, DEFAULTS_FILE, names.DEFAULTS_NAME, size, digest))
    if variation is not None:
        total.update(f"variation\0{variation}\0".encode())
    time = now()
    return Run(job_id(drop.stem, total.hexdigest()), tuple(files), time, time, variation=variation)


def _counts(part: Part, *, aside: bool) -> bool:
    return part.role is not Role.ASIDE or aside


def known_as(queue: Queue, run: Run) -> State | None:
    """The state in which this very content is known already."""
    for state in PRECEDENCE:
        earlier = queue.run(state, run.job)
        if earlier is not None and [item.sha256 for item in earlier.files] == [item.sha256 for item in run.files]:
            return state
    return None


def refused(error: FramepackError) -> dict[str, Any]:
    """The outcome of a job that cannot be rendered as it is."""
    return {
        "outcome": Outcome.FAILED,
        "message": error.message,
        "error": error.as_dict(),
        "finished_at": now(),
    }
