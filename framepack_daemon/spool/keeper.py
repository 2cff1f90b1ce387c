"""The keeper of the state folders: sees what moved, by whomever, and makes the records agree with where things stand.

A pass looks at the jobs that something was heard of, or lists the four folders and compares them with what was seen
before; only what changed its place is entered. What it remembers is a hint for that comparison, never the state. What a
crash left half done is not its business.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon import atomic
from framepack_daemon.job import OUTCOME_FILE, REQUEST_FILE, Outcome, Run, State, failure, now
from framepack_daemon.spool import capture, status, watch
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.barred import Barred
from framepack_daemon.spool.line import Line, places
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.queue import PRECEDENCE, Queue, is_name
from framepack_daemon.spool.status import StatusWriter

PREVIOUS_OUTCOME = "outcome.previous.json"
RECORDS_PER_PASS = 1000  # of waiting jobs, read again in each pass over everything: people edit priorities

_log = structlog.get_logger(__name__)


@dataclass
class Keeper:
    """Keeps one queue in order."""

    queue: Queue
    door: Door
    writer: StatusWriter
    previews: Previews
    outputs: Path
    work_dir: Path
    settle_seconds: float
    line: Line = field(default_factory=Line)  # the pending jobs in their order
    barred: Barred = field(init=False)
    seen: dict[str, State] = field(default_factory=dict)  # where each job stood when it was entered
    _arrived: OrderedDict[str, State] = field(default_factory=OrderedDict)  # jobs to be entered where they stand
    is_behind: bool = False  # the last pass ended before every job was entered
    _held: frozenset[str] = frozenset()
    _folders: list[tuple[int, int] | None] = field(default_factory=list)
    _strange: dict[str, tuple[tuple[float, ...], float]] = field(default_factory=dict)
    _to_read: list[str] = field(default_factory=list)  # jobs whose records are read again in the next passes

    def __post_init__(self) -> None:
        """Have a list of what cannot be touched."""
        self.barred = Barred(self.queue, self.writer.troubles)

    def tidy(self, held: frozenset[str], heard: set[str] | None = None, seconds: float = math.inf) -> None:
        """One pass, over the jobs that something was heard of or else over everything.

        `held` are the jobs that a worker has or that are being published. Entering ends after so many seconds; the next
        pass goes on with it.
        """
        folders = [watch.folder_identity(self.queue.folder(state)) for state in State]
        if None in folders:
            return  # the share is away: that is not "every job was removed"
        self.barred.look()
        same = folders == self._folders
        everything = heard is None or not same
        stand = self.settle_conflicts(None if everything else heard)
        self._held = held
        gone = {name for name in heard or () if is_name(name)} - stand.keys()
        if everything:
            gone |= (self.seen.keys() | self._arrived.keys()) - stand.keys()
        if same:
            self._end_removed(gone)
        self._folders = folders
        for job in gone:
            self.seen.pop(job, None)
            self._arrived.pop(job, None)
            self.line.discard(job)
        if everything:
            self._arrived.clear()
            self._read_again()
        for job, state in stand.items():
            # What stands in processing/ is looked at in every pass: when nobody holds it, an error kept it there.
            if state is not State.PENDING:
                self.line.discard(job)
            if not self.seen.get(job) is state is not State.PROCESSING or (
                state is State.PENDING and job not in self.line
            ):
                self._arrived[job] = state
        self._enter_arrived(time.monotonic() + seconds)

    def is_ready(self, job: str) -> bool:
        """Whether a job has been entered as pending, which is done now where it was still to be done."""
        if self._arrived.get(job) is State.PENDING:
            self._enter(job, self._arrived.pop(job))
        return self.seen.get(job) is State.PENDING

    def look_again(self, job: str) -> None:
        """Have a pending job that is not what it seemed entered anew."""
        self.seen.pop(job, None)
        self.line.discard(job)
        self._arrived[job] = State.PENDING

    def bar(self, job: str, error: PermissionError) -> bool:
        """Whether the error says that a pending job may not be moved or read, which is passed over from now on."""
        if not self.barred.note(job, State.PENDING, error):
            return False
        self.look_again(job)
        return True

    def _enter_arrived(self, until: float) -> None:
        """Enter jobs until that time (monotonic); who cannot be entered yet stays for the next pass."""
        # Taken out one by one: a pass of milliseconds does not copy a hundred thousand names.
        waiting, self._arrived = self._arrived, OrderedDict()
        while waiting and time.monotonic() <= until:
            self._enter(*waiting.popitem(last=False))
        self.is_behind = bool(waiting)
        waiting.update(self._arrived)
        self._arrived = waiting

    def is_known(self, job: str) -> bool:
        """Whether a job was seen somewhere, be it entered there or not."""
        return job in self.seen or job in self._arrived

    def line_up(self) -> None:
        """Give the pending jobs that are still to be entered their places in the line."""
        jobs = [job for job, state in self._arrived.items() if state is State.PENDING and job not in self.barred]
        for place in places(self.queue.folder(State.PENDING), jobs):
            self.line.put_at(place)

    def _read_again(self) -> None:
        """Give some of the waiting jobs the places that their records say now."""
        if not self._to_read:
            self._to_read = [job for job, state in self.seen.items() if state is State.PENDING]
        for job in self._to_read[-RECORDS_PER_PASS:]:
            try:
                run = self.queue.run(State.PENDING, job)
            except PermissionError as error:
                if not self.bar(job, error):
                    raise
                continue
            if run is not None and run.job == job and job in self.line:
                self.line.put(run)
        del self._to_read[-RECORDS_PER_PASS:]

    def _end_removed(self, names: Iterable[str]) -> None:
        """Say of jobs that are no more that they are not, also of those that went before they were seen."""
        for job in names:
            known = job in self.seen or status.read(self.outputs, job) is not None
            if known and self.queue.state_of(job) is None:
                _log.info("job_removed", job=job)
                self.previews.keep(job)
                self.writer.ended_outside(job)
                self.discard_scratch(job)

    def discard_scratch(self, job: str) -> None:
        """Remove what a job that will not go on has in scratch, unless a worker still writes there."""
        if job not in self._held:
            atomic.remove_tree(self.work_dir / job)

    def moved(self, job: str, state: State) -> None:
        """Hear of a move that the daemon itself made, and that is complete."""
        self.seen[job] = state
        self._arrived.pop(job, None)
        run = self.queue.run(state, job) if state is State.PENDING else None
        if run is not None:
            self.line.put(run)
        else:
            self.line.discard(job)

    def _listing(self, heard: set[str] | None) -> dict[State, list[str]]:
        """Names by state: of every job, or of those that something was heard of and those in processing."""
        if heard is None:
            return {state: self.queue.names(state) for state in PRECEDENCE}
        names = [name for name in heard if is_name(name)]
        return {
            state: self.queue.names(state)
            if state is State.PROCESSING
            else [name for name in names if self.queue.path(state, name).is_dir()]
            for state in PRECEDENCE
        }

    def settle_conflicts(self, heard: set[str] | None = None) -> dict[str, State]:
        """Where each job stands, or each that something was heard of; the same id in a second state is set aside."""
        stand: dict[str, State] = {}
        for state, jobs in self._listing(heard).items():
            for job in jobs:
                if stand.setdefault(job, state) is not state and self.queue.path(stand[job], job).is_dir():
                    self._set_aside(job, state, stand[job])
        return stand

    def _set_aside(self, job: str, state: State, kept: State) -> None:
        if job in self.barred:
            return
        try:
            aside = self.queue.set_aside(self.queue.path(state, job))
        except PermissionError as error:
            if not self.barred.note(job, state, error):
                raise
        else:
            _log.warning("job_conflict", job=job, kept=kept, aside=aside.name)

    def _enter(self, job: str, state: State) -> None:
        """Do what a job's arrival in a state asks for, or see to it that it is looked at again in the next pass."""
        entered = False
        try:
            entered = job not in self.barred and self._is_entered(job, state)
        except PermissionError as error:
            if not self.barred.note(job, state, error):
                raise
        if entered:
            self.seen[job] = state
        else:
            self.seen.pop(job, None)
            self._arrived.setdefault(job, state)

    def _is_entered(self, job: str, state: State) -> bool:
        try:
            if job not in self.seen:
                self.queue.remove_torn(state, job)
            match state:
                case State.PENDING:
                    return self._enter_pending(job, interrupted=self.seen.get(job) is State.PROCESSING)
                case State.PROCESSING:
                    return self._enter_processing(job)
                case State.DONE | State.FAILED:
                    return self._enter_ended(job, state)
        except FileNotFoundError:
            return False  # it moved on meanwhile; the next pass sees where to

    def _enter_pending(self, job: str, *, interrupted: bool) -> bool:
        folder = self.queue.path(State.PENDING, job)
        run = self.queue.run(State.PENDING, job)
        if run is not None and run.job != job:
            if self.queue.state_of(run.job) is None:
                atomic.move(folder, self.queue.path(State.PENDING, run.job))  # somebody gave it another name
            else:
                self.queue.set_aside(folder)
            return False
        there = [item for item in run.files if capture.signature(folder / item.name)] if run else []
        whole = run is not None and len(there) == len(run.files)
        if run is None or not whole or not (folder / REQUEST_FILE).exists():
            if self._stands_still(folder):
                self._refuse_pruned(run) if run and not there else self.door.add_again(folder)
            return False
        if self.queue.has_outcome(State.PENDING, job):
            if job in self._held:
                return False  # it was cancelled and retried before its worker let go of it
            run = run.requeued(attempts=0, started_at=None, videos=_videos(folder, run))
            self.queue.save_run(State.PENDING, run)
            self.discard_scratch(job)
            (folder / OUTCOME_FILE).replace(folder / PREVIOUS_OUTCOME)
            _log.info("job_retried", job=job)
            self.writer.write(job, State.PENDING)
        elif interrupted:
            run = run.requeued(attempts=max(run.attempts - 1, 0))
            self.queue.save_run(State.PENDING, run)
            self.writer.write(job, State.PENDING)
        elif not self._is_told(job, State.PENDING):
            self.writer.write(job, State.PENDING)
        self.line.put(run)
        return True

    def _refuse_pruned(self, run: Run) -> None:
        """Put back a job that has nothing but its record, so that it stays known."""
        folder = self.queue.path(State.PENDING, run.job)
        problem = {
            "code": "pruned",
            "message": f"was pruned; {run.files[0].original} is no longer there",
            "hint": f"`framepack-daemon remove {run.job}` forgets it; then drop the files again",
        }
        atomic.write_json(folder / OUTCOME_FILE, (atomic.read_json(folder / OUTCOME_FILE) or {}) | failure(problem))
        self.writer.write(run.job, State.PENDING, state=State.FAILED)
        self.queue.move(run.job, State.PENDING, State.FAILED)

    def _enter_processing(self, job: str) -> bool:
        if job not in self._held and not self.queue.has_outcome(State.PROCESSING, job):
            run = self.queue.run(State.PROCESSING, job)
            if run is not None and run.job == job:
                self.uncharge(job)  # its claim failed half way, for a disk's sake
            else:
                self.queue.move(job, State.PROCESSING, State.PENDING)
            return False
        return True

    def _enter_ended(self, job: str, state: State) -> bool:
        folder = self.queue.path(state, job)
        run = self.queue.run(state, job)
        if run is None:
            return True
        if state is State.FAILED and _is_completed(folder):
            # Moved here from done/, straight or after it was put back to run again and before that was seen.
            if run.job == job:
                self.queue.save_run(state, replace(run, videos=_videos(folder, run)))
            (folder / OUTCOME_FILE).replace(folder / PREVIOUS_OUTCOME)
        elif self.queue.has_outcome(state, job):
            # It was moved by hand, or a crash came before its status was written.
            if job in self.seen or not self._is_told(job, state):
                if state is State.FAILED:
                    self.previews.keep(job)
                self.writer.write(job, state)
            return True
        if run.job == job:
            outcome: dict[str, Any] = {"outcome": Outcome.CANCELLED, "message": "cancelled", "finished_at": now()}
        else:
            problem = {
                "code": "conflict",
                "message": f"{run.job}: stood in two states at once; this is the second one",
                "hint": "drop its files again under another name if you want them rendered, else delete the folder",
            }
            outcome = failure(problem)
        atomic.write_json(folder / OUTCOME_FILE, outcome)
        self.previews.keep(job)
        self.writer.write(job, state)
        self.discard_scratch(job)
        _log.info("job_cancelled", job=job)
        return True

    def _is_told(self, job: str, state: State) -> bool:
        """Whether the status file says that the job is in that state."""
        return self.writer.says(job) == state

    def _stands_still(self, folder: Path) -> bool:
        """Whether a folder that someone is perhaps still copying has stood still for long enough."""
        looks = tuple(number for path in sorted(folder.iterdir()) for number in path.lstat()[6:9])
        before = self._strange.get(folder.name)
        if before is None or before[0] != looks:
            self._strange[folder.name] = looks, time.monotonic()
            return False
        if time.monotonic() < before[1] + self.settle_seconds:
            return False
        del self._strange[folder.name]
        return True

    def uncharge(self, job: str) -> None:
        """Put a job that was stopped in good order back to its place in the queue, with no attempt charged."""
        run = self.queue.run(State.PROCESSING, job)
        if run is not None:
            self.queue.save_run(State.PROCESSING, replace(run, attempts=max(run.attempts - 1, 0)))
        self.queue.move(job, State.PROCESSING, State.PENDING)
        self.writer.write(job, State.PENDING)
        self.moved(job, State.PENDING)


def _is_completed(folder: Path) -> bool:
    """Whether the outcome in a job's directory says that its video is ready."""
    return (atomic.read_json(folder / OUTCOME_FILE) or {}).get("outcome") == Outcome.COMPLETED


def _videos(folder: Path, run: Run) -> tuple[str, ...]:
    """SHA-256 of what a job published, the last time included."""
    video = (atomic.read_json(folder / OUTCOME_FILE) or {}).get("video")
    last = video.get("sha256") if isinstance(video, dict) else None
    return (*run.videos, last) if last and last not in run.videos else run.videos
