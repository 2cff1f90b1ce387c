"""The one door into the queue: a directory is put together aside and renamed into `pending/`.

Intake, command line and gateway all come through here. The id is drawn from the content, so what is known already is
consumed and starts nothing; what cannot become a job goes to `failed/` whole, with the reason. Knows neither the drop
folder's rules nor the workers.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from framepack_daemon import atomic
from framepack_daemon.errors import FramepackError
from framepack_daemon.job import (
    DEFAULTS_FILE,
    OUTCOME_FILE,
    REQUEST_FILE,
    RUN_FILE,
    Outcome,
    Role,
    Run,
    State,
    failure,
    now,
    safe_stem,
    stored_name,
)
from framepack_daemon.request import Request, effective
from framepack_daemon.spool import continuation, names, status
from framepack_daemon.spool.capture import (
    ORIGIN_FILE,
    DropChangedError,
    Source,
    capture,
    capture_beside,
    discard,
    forgotten_origin,
    release,
)
from framepack_daemon.spool.continuation import SourceRunsError
from framepack_daemon.spool.drop import Drop, Part, is_unchanged, known_as, read_request, record
from framepack_daemon.spool.found import drop_in
from framepack_daemon.spool.mounts import Anchor
from framepack_daemon.spool.queue import Queue, read_run

# Prefixes of folders under queue/.building: what recovery does with one that a crash left there.
TAKING = "take-"  # holds files that exist nowhere else: they go back, or the job is completed
COPYING = "copy-"  # holds copies only: it is removed

_log = structlog.get_logger(__name__)


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
    anchor: Anchor = field(init=False)

    def __post_init__(self) -> None:
        """Remember what the queue is mounted on."""
        self.anchor = Anchor(self.queue.root)

    def add(self, drop: Drop) -> Added:
        """Make a job (or several, or a refused one) of a drop.

        Raises `DropChangedError` when a source changed meanwhile or a job that is continued runs (nothing was taken),
        OSError when the queue cannot be written (everything was put back).
        """
        try:
            return self._add(drop, TAKING if drop.folder else COPYING)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        return self._add(drop, COPYING)

    def _add(self, drop: Drop, prefix: str) -> Added:
        """`add` by taking the files into the queue, or by copies of files that are taken beside the drop."""
        self.anchor.expect()
        place = self.queue.building / (prefix + secrets.token_hex(8))
        atomic.make_folder(place, sync_parent=False)
        taken: list[Path] = []
        try:
            with atomic.locked(place):
                self._gather(drop, place, taken)
                added = self._enter(drop, place)
        except (OSError, DropChangedError):
            for folder in {place, *taken}:
                release(folder)
            raise
        if drop.folder and not taken:
            with contextlib.suppress(OSError):  # then a power loss may bring back what is known by now
                atomic.sync_folder(drop.folder)
        for folder in taken:
            discard(folder)
        return added

    def add_again(self, path: Path) -> Added:
        """Make a job of a directory in `pending/` that is not what its record says, or has none.

        So a late write to a file that was taken already becomes a job of its own content, and a folder of files that
        someone put into `pending/` by hand becomes a job.
        """
        place = self.queue.building / f"{TAKING}{secrets.token_hex(8)}-{safe_stem(path.name)}"
        with atomic.locked(path):
            atomic.move(path, place)
            try:
                added = self._enter(drop_in(place, path.name), place)
            except OSError:
                with contextlib.suppress(OSError):
                    atomic.move(place, path)
                raise
        now_called = [*added.jobs, *added.known]
        if path.name not in now_called:
            message = f"its files have changed: it goes on as {', '.join(now_called)}"
            self.writer.amend(path.name, state=State.FAILED, outcome=Outcome.CANCELLED, message=message)
        return added

    def recover(self, prefix: str = "") -> None:
        """Finish or undo what a crash or a fault left in `queue/.building`, of places whose names begin so."""
        for place in sorted(self.queue.building.glob(f"{prefix}*")):
            if not atomic.is_locked(place):
                _log.info("intake_recovered", place=place.name)
                try:
                    self.complete(place)
                except PermissionError as error:  # another user's files in a folder made by hand; nothing is lost
                    _log.warning("intake_not_recovered", place=str(place), reason=str(error))

    def complete(self, place: Path) -> None:
        """Finish or undo what was left in one place."""
        for torn in place.glob(".*.tmp"):
            torn.unlink()  # ours, half written: what was dropped is never stored under a hidden name
        if place.name.startswith(COPYING):
            atomic.remove_tree(place)
        elif (place / ORIGIN_FILE).exists():
            release(place)
        elif (place / OUTCOME_FILE).exists() and (refused_run := read_run(place)) is not None:
            self._settle(place, refused_run)
        elif any(place.iterdir()):
            with atomic.locked(place):
                self._enter(drop_in(place, place.name.split("-", 2)[-1]), place)
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
                drop, request = self._read(drop, place)
            except FramepackError as error:
                if isinstance(error, SourceRunsError) and drop.folder:
                    raise  # it goes back and waits in its folder
                refusal = error
        count = request.takes if request else 1
        jobs: list[str] = []
        known: list[str] = []
        times = [now(variation) for variation in range(count)]  # they run in their order, also if made at once
        # The first comes first, for an idle worker takes it at once; the directory that holds the originals goes last:
        # until then a crash puts them back and all is done again.
        for variation in range(count):
            here = place if variation == count - 1 else self._twin(place, drop)
            run = record(drop, here, variation if count > 1 else None, times[variation])
            if request:
                filled = effective(request, self.model, variation=variation)
                run = replace(run, priority=filled.priority)
                atomic.write_json(here / REQUEST_FILE, filled.as_sidecar(), sync_parent=False)
            elif refusal:
                atomic.write_json(here / OUTCOME_FILE, failure(refusal.as_dict()), sync_parent=False)
            (jobs if self._settle(here, run) else known).append(run.job)
        return Added(jobs, known, refusal if jobs else None)

    def _read(self, drop: Drop, place: Path) -> tuple[Drop, Request]:
        """The drop's request, and the drop with what it takes of the job that it continues, copied into `place`.

        Raises whatever is wrong with it, `SourceRunsError` while that job is not done; then nothing was copied.
        """
        request = read_request(drop, place)
        named = request.continue_from
        if named is None or names.is_video(named) or drop.of(Role.LATENTS):
            effective(request, self.model)
            return drop, request
        ending = continuation.find(self.queue, named, drop.stem)
        drop = replace(drop, continued=ending.of)
        request = read_request(drop, place)
        effective(request, self.model)
        for _, name, source in ending.files:
            atomic.copy(source, place / name)
        brought = [Part(role, name, source) for role, name, source in ending.files]
        return replace(drop, parts=(*drop.parts, *brought)), request

    def _settle(self, place: Path, run: Run) -> bool:
        """Give the finished directory its place in the queue; False when the job was there already."""
        earlier = known_as(self.queue, run)
        if earlier is State.PENDING and not is_unchanged(self.queue.path(earlier, run.job), run):
            # Someone rewrote its files: it goes on as the job that they make now, and its place is free for this one.
            with contextlib.suppress(FileNotFoundError):
                self.add_again(self.queue.path(earlier, run.job))
            earlier = known_as(self.queue, run)
        if earlier is not None:
            self.queue.discard(place)
            self.writer.dropped_again(run.job, earlier)
            return False
        atomic.write_json(place / RUN_FILE, run.as_dict())  # with it everything else that was put into the folder
        state = State.FAILED if (place / OUTCOME_FILE).exists() else State.PENDING
        # Until it stands, an error or a crash puts the files back where they came from.
        with forgotten_origin(place):
            try:
                atomic.move(place, self.queue.path(state, run.job), sync_parents=False)
                atomic.sync_folder(self.queue.folder(state))  # with it, that it is no longer in the workshop
            except FileExistsError:
                # Another content under this id, or someone was faster; either way nothing is lost.
                self.queue.set_aside(place, run.job)
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
