"""A job's arrival in a state: what its records are made to say then, whoever moved it there.

A job that waits gets its place in the line, one that was put back to run again begins anew, one that was moved to its
end has an outcome. What stands in `pending/` and is no job becomes one. Keeps no list of where jobs stand.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon import atomic
from framepack_daemon.job import OUTCOME_FILE, REQUEST_FILE, Outcome, Run, State, failure, now
from framepack_daemon.spool import capture
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.line import Line
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter

PREVIOUS_OUTCOME = "outcome.previous.json"

_log = structlog.get_logger(__name__)


@dataclass
class Arrivals:
    """Enters the jobs of one queue where they stand."""

    queue: Queue
    door: Door
    writer: StatusWriter
    previews: Previews
    line: Line
    work_dir: Path
    settle_seconds: float
    held: frozenset[str] = frozenset()  # jobs that a worker has or that are being published
    _strange: dict[str, tuple[tuple[float, ...], float]] = field(default_factory=dict)

    def enter(self, job: str, state: State, before: State | None) -> bool:
        """Whether all was done that the job's arrival in `state` asks for; what is not, is to be tried again.

        `before` is where it stood when it was entered last. Raises OSError where its directory cannot be read or
        written.
        """
        try:
            if before is None:
                self.queue.remove_torn(state, job)
            match state:
                case State.PENDING:
                    return self._enter_pending(job, interrupted=before is State.PROCESSING)
                case State.PROCESSING:
                    return self._enter_processing(job)
                case State.DONE | State.FAILED:
                    return self._enter_ended(job, state, is_new=before is None)
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
            if job in self.held:
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
        if job not in self.held and not self.queue.has_outcome(State.PROCESSING, job):
            run = self.queue.run(State.PROCESSING, job)
            if run is not None and run.job == job:
                self.put_back(job)  # its claim failed half way, for a disk's sake
            else:
                self.queue.move(job, State.PROCESSING, State.PENDING)
            return False
        return True

    def _enter_ended(self, job: str, state: State, *, is_new: bool) -> bool:
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
            if not is_new or not self._is_told(job, state):
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

    def put_back(self, job: str) -> None:
        """Put a job that was stopped in good order back to its place in the queue, with no attempt charged."""
        run = self.queue.run(State.PROCESSING, job)
        if run is not None:
            self.queue.save_run(State.PROCESSING, replace(run, attempts=max(run.attempts - 1, 0)))
        self.queue.move(job, State.PROCESSING, State.PENDING)
        self.writer.write(job, State.PENDING)

    def discard_scratch(self, job: str) -> None:
        """Remove what a job that will not go on has in scratch, unless a worker still writes there."""
        if job not in self.held:
            atomic.remove_tree(self.work_dir / job)


def _is_completed(folder: Path) -> bool:
    """Whether the outcome in a job's directory says that its video is ready."""
    return (atomic.read_json(folder / OUTCOME_FILE) or {}).get("outcome") == Outcome.COMPLETED


def _videos(folder: Path, run: Run) -> tuple[str, ...]:
    """SHA-256 of what a job published, the last time included."""
    video = (atomic.read_json(folder / OUTCOME_FILE) or {}).get("video")
    last = video.get("sha256") if isinstance(video, dict) else None
    return (*run.videos, last) if last and last not in run.videos else run.videos
