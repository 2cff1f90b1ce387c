"""The keeper of the state folders: sees what moved, by whomever, and makes the records agree with where things stand.

A pass looks at the jobs that something was heard of, or lists the four folders and compares them with what was seen
before; only what changed its place is entered, by `arrivals.py`. What it remembers is a hint for that comparison, never
the state. What a crash left half done is not its business.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from pathlib import Path

import structlog

from framepack_daemon.job import State
from framepack_daemon.spool import status, watch
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.arrivals import Arrivals
from framepack_daemon.spool.barred import Barred
from framepack_daemon.spool.line import Line, places
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.queue import PRECEDENCE, Queue, is_name
from framepack_daemon.spool.status import StatusWriter

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
    settle_seconds: InitVar[float]
    line: Line = field(default_factory=Line)  # the pending jobs in their order
    barred: Barred = field(init=False)
    arrivals: Arrivals = field(init=False)
    seen: dict[str, State] = field(default_factory=dict)  # where each job stood when it was entered
    _arrived: OrderedDict[str, State] = field(default_factory=OrderedDict)  # jobs to be entered where they stand
    is_behind: bool = False  # the last pass ended before every job was entered
    _folders: list[tuple[int, int] | None] = field(default_factory=list)
    _to_read: list[str] = field(default_factory=list)  # jobs whose records are read again in the next passes

    def __post_init__(self, settle_seconds: float) -> None:
        """Make what it works with."""
        self.barred = Barred(self.queue, self.writer.troubles)
        self.arrivals = Arrivals(
            self.queue, self.door, self.writer, self.previews, self.line, self.work_dir, settle_seconds
        )

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
        self.arrivals.held = held
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
                self.arrivals.discard_scratch(job)

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
            entered = job not in self.barred and self.arrivals.enter(job, state, self.seen.get(job))
        except PermissionError as error:
            if not self.barred.note(job, state, error):
                raise
        if entered:
            self.seen[job] = state
        else:
            self.seen.pop(job, None)
            self._arrived.setdefault(job, state)

    def uncharge(self, job: str) -> None:
        """Put a job that was stopped in good order back to its place in the queue, with no attempt charged."""
        self.arrivals.put_back(job)
        self.moved(job, State.PENDING)
