"""The end of a job: from its `outcome.json` to `done/` or `failed/`, however often that has to be tried.

Whoever left an outcome in `processing/`, this daemon or one before it, the job is brought to its end by the next look.
Folders that cannot be written are tried again. Knows neither workers nor what an outcome came from.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon import atomic
from framepack_daemon.job import OUTCOME_FILE, Outcome, State, failure
from framepack_daemon.spool.keeper import Keeper
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.publish import LostVideoError, Publisher
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter

RETRY_SECONDS = 5.0  # between two attempts to publish into a folder that cannot be written

_log = structlog.get_logger(__name__)


@dataclass
class Endings:
    """The jobs of one queue that have an outcome."""

    queue: Queue
    keeper: Keeper
    publisher: Publisher
    writer: StatusWriter
    previews: Previews
    work_dir: Path
    _when: dict[str, float] = field(default_factory=dict)  # to try to end each (monotonic); 0 until the first trial

    @property
    def jobs(self) -> frozenset[str]:
        """Those that are known and have not left `processing/`."""
        return frozenset(self._when)

    @property
    def is_stuck(self) -> bool:
        """Whether one of them could not be brought to its end, and waits for the next trial."""
        return any(self._when.values())

    def complete(self, job: str, result: dict[str, Any]) -> None:
        """Write down that a job is rendered; FileNotFoundError when it was moved out of `processing/` in time."""
        self.publisher.record(job, result)
        self._when[job] = 0.0

    def fail(self, job: str, problem: dict[str, Any]) -> None:
        """Write down that a job failed by `problem`, which has a message, and a code, a hint and a traceback."""
        outcome = failure(problem) | {"traceback": problem.get("traceback")}
        atomic.write_json(self.queue.path(State.PROCESSING, job) / OUTCOME_FILE, outcome)
        self._when[job] = 0.0

    def due(self) -> list[str]:
        """The jobs that have an outcome, whoever left it there, and may be brought to their end now."""
        for job in self.queue.names(State.PROCESSING):
            if job not in self.keeper.barred and self.queue.has_outcome(State.PROCESSING, job):
                self._when.setdefault(job, 0.0)
        return [job for job, when in self._when.items() if time.monotonic() >= when]

    def settle(self) -> None:
        """Bring every job that is due to `done/` or `failed/`, as far as the folders can be written."""
        for job in self.due():
            try:
                self._end(job)
            except OSError as error:
                if self.keeper.barred.note(job, State.PROCESSING, error):
                    del self._when[job]
                    continue
                if self._when[job] == 0.0:
                    _log.error("publishing_failed", job=job, reason=str(error), retry_seconds=RETRY_SECONDS)
                    self.writer.amend(job, message=f"is rendered; waits to be published: {error}")
                self.writer.troubles.note("publishing", error)
                self._when[job] = time.monotonic() + RETRY_SECONDS
            else:
                del self._when[job]
                self.writer.troubles.clear("publishing")

    def _end(self, job: str) -> None:
        outcome = atomic.read_json(self.queue.path(State.PROCESSING, job) / OUTCOME_FILE)
        if outcome is None and self.queue.has_outcome(State.PROCESSING, job):
            self._render_again(job, "its outcome.json cannot be read")
        elif outcome is None:
            _log.info("job_stopped", job=job, reason="it was moved out of processing")
        elif outcome.get("outcome") == Outcome.COMPLETED:
            self._publish(job)
        else:
            self.previews.keep(job)
            self.writer.write(job, State.PROCESSING, state=State.FAILED)
            self.queue.move(job, State.PROCESSING, State.FAILED)
            self.keeper.moved(job, State.FAILED)
            atomic.remove_tree(self.work_dir / job)
            _log.error("job_failed", job=job, reason=outcome.get("message"))

    def _publish(self, job: str) -> None:
        started = time.monotonic()
        self.writer.anchor.expect()
        try:
            name = self.publisher.finish(job)
        except LostVideoError as error:
            self._render_again(job, error.message)
        else:
            self.keeper.moved(job, State.DONE)
            _log.info("job_done", job=job, video=name, publish_seconds=round(time.monotonic() - started, 3))

    def _render_again(self, job: str, reason: str) -> None:
        """Let a job whose video is nowhere wait once more; the keeper sets its outcome aside."""
        _log.error("video_lost", job=job, reason=reason)
        self.queue.move(job, State.PROCESSING, State.PENDING)
