"""The keeper of the state folders: sees what moved, by whomever, and makes the records agree with where things stand.

A pass lists the four folders and compares them with the last pass; only what changed its place is looked at. What it
remembers is a hint for that comparison, never the state. At start it also clears up what a crash left half done.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon import atomic
from framepack_daemon.job import ID_DIGITS, OUTCOME_FILE, REQUEST_FILE, Outcome, Run, State, failure, now
from framepack_daemon.spool import capture, status, watch
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.queue import PRECEDENCE, Queue
from framepack_daemon.spool.status import StatusWriter

PREVIOUS_OUTCOME = "outcome.previous.json"
_TEMPORARY = re.compile(rf"^\..+-[0-9a-f]{{{ID_DIGITS}}}\..+\.[0-9a-f]{{8}}\.tmp$")

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
    seen: dict[str, State] = field(default_factory=dict)  # where each job stood at the last pass
    _held: frozenset[str] = frozenset()
    _folders: list[tuple[int, int] | None] = field(default_factory=list)
    _strange: dict[str, tuple[tuple[float, ...], float]] = field(default_factory=dict)

    def recover(self, drop_folders: Iterable[Path]) -> None:
        """Finish or undo what the last daemon left half done; before anything else runs."""
        self.queue.make()
        self._recover_intake(drop_folders)
        for path in self.queue.trash.iterdir():
            atomic.remove_tree(path)
        for path in self.outputs.iterdir():
            if _TEMPORARY.match(path.name):
                path.unlink(missing_ok=True)
        self._settle_conflicts(self._listing())
        for job in self.queue.names(State.PROCESSING):
            if not self.queue.has_outcome(State.PROCESSING, job):
                _log.info("job_recovered", job=job)
                self.queue.move(job, State.PROCESSING, State.PENDING)
        self.tidy(held=frozenset())
        self._end_vanished()
        self.previews.settle()

    def _recover_intake(self, drop_folders: Iterable[Path]) -> None:
        for place in sorted(self.queue.building.iterdir()):
            if not atomic.is_locked(place):
                _log.info("intake_recovered", place=place.name)
                self.door.complete(place)
        for folder in drop_folders:
            for place in sorted((folder / capture.HIDDEN_FOLDER).glob("*/")):
                capture.release(place)

    def tidy(self, held: frozenset[str]) -> None:
        """One pass; `held` are the jobs that a worker has or that are being published."""
        folders = [watch.folder_identity(self.queue.folder(state)) for state in State]
        if None in folders:
            return  # the share is away: that is not "every job was removed"
        places = self._settle_conflicts(self._listing())
        self._held = held
        if folders == self._folders:
            self._end_removed(self.seen.keys() - places.keys())
        self._folders = folders
        # What stands in processing/ is looked at in every pass: when nobody holds it, an error kept it there.
        self.seen = {
            job: state
            for job, state in places.items()
            if (self.seen.get(job) is state is not State.PROCESSING) or self._enter(job, state)
        }

    def _end_removed(self, jobs: Iterable[str]) -> None:
        for job in jobs:
            if self.queue.state_of(job) is None:
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

    def _listing(self) -> dict[State, list[str]]:
        return {state: self.queue.names(state) for state in PRECEDENCE}

    def _settle_conflicts(self, listing: dict[State, list[str]]) -> dict[str, State]:
        """Where each job stands; the same id in a second state is set aside."""
        places: dict[str, State] = {}
        for state, jobs in listing.items():
            for job in jobs:
                if places.setdefault(job, state) is not state and self.queue.path(places[job], job).is_dir():
                    aside = self.queue.set_aside(self.queue.path(state, job))
                    _log.warning("job_conflict", job=job, kept=places[job], aside=aside.name)
        return places

    def _enter(self, job: str, state: State) -> bool:
        """Do what a job's arrival in a state asks for; False to look at it again in the next pass."""
        try:
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
            video = (atomic.read_json(folder / OUTCOME_FILE) or {}).get("video")
            earlier = video.get("sha256") if isinstance(video, dict) else None
            videos = (*run.videos, earlier) if earlier else run.videos
            self.queue.save_run(State.PENDING, run.requeued(attempts=0, started_at=None, videos=videos))
            self.discard_scratch(job)
            (folder / OUTCOME_FILE).replace(folder / PREVIOUS_OUTCOME)
            _log.info("job_retried", job=job)
        elif interrupted:
            self.queue.save_run(State.PENDING, run.requeued(attempts=max(run.attempts - 1, 0)))
        self.writer.write(job, State.PENDING)
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
        self.queue.move(run.job, State.PENDING, State.FAILED)
        self.writer.write(run.job, State.FAILED)

    def _enter_processing(self, job: str) -> bool:
        if job not in self._held and not self.queue.has_outcome(State.PROCESSING, job):
            self.queue.move(job, State.PROCESSING, State.PENDING)
            return False
        return True

    def _enter_ended(self, job: str, state: State) -> bool:
        folder = self.queue.path(state, job)
        run = self.queue.run(state, job)
        if run is None:
            return True
        if self.queue.has_outcome(state, job):
            # It was moved by hand, or a crash came before its status was written.
            if job in self.seen or not status.path(self.outputs, job).exists():
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

    def _end_vanished(self) -> None:
        """Say of jobs that were removed while no daemon ran that they are no more."""
        for path in self.outputs.glob(f"*{status.SUFFIX}"):
            job = path.name.removesuffix(status.SUFFIX)
            if job not in self.seen and self.queue.state_of(job) is None:
                self.previews.keep(job)
                self.writer.ended_outside(job)

    def uncharge(self, job: str) -> None:
        """Put a job that was stopped in good order back to its place in the queue, with no attempt charged."""
        run = self.queue.run(State.PROCESSING, job)
        if run is not None:
            self.queue.save_run(State.PROCESSING, replace(run, attempts=max(run.attempts - 1, 0)))
        self.queue.move(job, State.PROCESSING, State.PENDING)
        self.writer.write(job, State.PENDING)
        self.moved(job, State.PENDING)
