"""Why jobs wait though a worker is idle: a model or a device is missing, scratch is full, every job kills its worker.

Hears of what fails and of what works again, keeps jobs back for as long as nothing is to be tried, and has their status
files say so. What it knows is in memory alone: the next daemon finds it out again. Starts nothing and moves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from framepack_daemon import atomic
from framepack_daemon.job import REQUEST_FILE, State
from framepack_daemon.spool.keeper import Keeper
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter
from framepack_daemon.workers.channel import Message
from framepack_daemon.workers.pool import Worker

MODEL_SECONDS = 30.0  # between two attempts to load weights that are missing
STORAGE_SECONDS = 10.0  # without a start after scratch could not be written
BREAKER_JOBS = 5  # different jobs in a row that made their worker fail: then it is not the jobs
BREAKER_SECONDS = 60.0  # until one job may try whether it works again
TELL_JOBS = 50  # status files that are brought up to date in one turn when no worker has a device

# Failures that say something about the machine rather than about the job.
_MACHINE_FAULTS = frozenset({"worker_died", "worker_error", "out_of_memory", "device"})

_log = structlog.get_logger(__name__)


class _Missing(NamedTuple):
    """A model that could not be loaded."""

    until: float  # monotonic; its jobs wait
    reason: str
    brief: str  # the reason in a few words


@dataclass
class Reasons:
    """What keeps the jobs of one queue waiting."""

    queue: Queue
    keeper: Keeper
    writer: StatusWriter
    start_at: float = 0.0  # monotonic; before it nothing is started
    _models: dict[str, _Missing] = field(default_factory=dict)
    _devices: dict[str, str] = field(default_factory=dict)  # that cannot be used, and why
    _failing: dict[str, None] = field(default_factory=dict)  # jobs that failed in a row, by machine faults
    _broken_until: float = 0.0  # monotonic; the circuit breaker is open
    _told: set[str] = field(default_factory=set)  # jobs whose status says why they wait

    # -- what follows from them ----------------------------------------------------------------------------------------

    @property
    def brief(self) -> list[str]:
        """What is missing or broken, in a few words each."""
        now = time.monotonic()
        models = [model.brief for model in self._models.values() if now < model.until + MODEL_SECONDS]
        broken = ["held up: the last jobs all made their worker fail"] if now < self._broken_until else []
        return [*models, *self._devices.values(), *broken]

    def is_due(self, model: str) -> bool:
        """Whether a model that was missing is to be looked for again."""
        return model in self._models and time.monotonic() >= self._models[model].until

    def hold(self, job: str) -> bool:
        """Whether a pending job's model is known to be missing; its status says so."""
        if not self._models:
            return False
        request = atomic.read_json(self.queue.path(State.PENDING, job) / REQUEST_FILE) or {}
        missing = self._models.get(str(request.get("model")))
        if missing is None or time.monotonic() >= missing.until:
            return False
        self.keeper.line.park(job, missing.until)
        if job not in self._told:
            self._tell(job, missing.reason)
        return True

    def explain_waiting(self, workers: Iterable[Worker]) -> None:
        """Say in the status files of waiting jobs that no worker has a device that can be used."""
        if not self._devices or any(worker.device not in self._devices for worker in workers):
            return
        reason, told = next(iter(self._devices.values())), 0

        def enough(job: str) -> bool:
            nonlocal told
            if job not in self._told and self.keeper.is_ready(job):
                self._tell(job, reason)
                told += 1
            return told >= TELL_JOBS

        self.keeper.line.first(enough)

    def _tell(self, job: str, reason: str) -> None:
        self._told.add(job)
        self.writer.amend(job, message=f"waits: {reason}")

    # -- what is heard of them -----------------------------------------------------------------------------------------

    def model_missing(self, message: Message) -> None:
        """A model could not be loaded."""
        model, hint = message["model"], message["hint"]
        if model not in self._models:
            _log.error("model_unavailable", model=model, reason=message["message"], hint=hint)
        pull = hint.removeprefix("run: ")
        brief = f"model weights are missing: {pull}" if "models pull" in pull else message["message"]
        self._models[model] = _Missing(time.monotonic() + MODEL_SECONDS, f"{message['message']} ({hint})", brief)

    def device_missing(self, device: str, reason: str) -> None:
        """A device cannot be used."""
        if device not in self._devices:
            _log.error("device_unavailable", device=device, reason=reason)
        self._devices[device] = reason

    def loaded(self, model: str, device: str) -> None:
        """A device has loaded a model."""
        self._models.pop(model, None)
        self._devices.pop(device, None)

    def starts(self, job: str) -> None:
        """A job is given to a worker."""
        self._told.discard(job)

    def works(self) -> None:
        """A job makes headway."""
        self._failing.clear()
        self.writer.troubles.clear("scratch")

    def scratch_fails(self, reason: str) -> None:
        """Scratch could not be written."""
        self.start_at = time.monotonic() + STORAGE_SECONDS
        self.writer.troubles.note("scratch", reason)

    def failed(self, job: str, code: str) -> None:
        """An attempt at a job failed."""
        if code not in _MACHINE_FAULTS:
            return
        self._failing[job] = None
        if len(self._failing) >= BREAKER_JOBS:
            self._failing.pop(next(iter(self._failing)))
            self.start_at = self._broken_until = time.monotonic() + BREAKER_SECONDS
            _log.error("circuit_open", jobs=BREAKER_JOBS, retry_seconds=BREAKER_SECONDS)
            if (waiting := self.keeper.line.first()) is not None:
                self.writer.amend(waiting, message="waits: the last jobs all made their worker fail; see the log")
