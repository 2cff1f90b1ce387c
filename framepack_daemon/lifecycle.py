"""What becomes of a job from the claim to its outcome: the decisions between a worker's messages and the folders.

Which job runs next, what a failure means for it, when it is rendered. Every change of state is a rename in the queue;
what is kept here is progress for the status file, and reasons to wait. Knows neither the drop folder nor the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon import atomic
from framepack_daemon.endings import Endings
from framepack_daemon.job import REQUEST_FILE, Role, Run, State, now
from framepack_daemon.progress import Running
from framepack_daemon.scratch import PREVIEW, STEP_PICTURE
from framepack_daemon.spool.capture import signature
from framepack_daemon.spool.keeper import Keeper
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter
from framepack_daemon.spool.watch import folder_identity
from framepack_daemon.workers.channel import Message
from framepack_daemon.workers.pool import Worker

STORAGE_SECONDS = 10.0  # without a start after scratch could not be written
MODEL_SECONDS = 30.0  # between two attempts to load weights that are missing
BREAKER_JOBS = 5  # different jobs in a row that made their worker fail: then it is not the jobs
BREAKER_SECONDS = 60.0  # until one job may try whether it works again

# Failures that say something about the machine rather than about the job.
_MACHINE_FAULTS = frozenset({"worker_died", "worker_error", "out_of_memory", "device"})

_log = structlog.get_logger(__name__)


@dataclass
class Lifecycle:
    """Runs the jobs of one queue on workers."""

    queue: Queue
    keeper: Keeper
    endings: Endings
    writer: StatusWriter
    previews: Previews
    work_dir: Path
    max_attempts: int
    _running: dict[str, Running] = field(default_factory=dict)
    _held_models: dict[str, tuple[float, str]] = field(default_factory=dict)  # until when (monotonic), and why
    _told: set[str] = field(default_factory=set)  # jobs whose status says why they wait
    _failing: dict[str, None] = field(default_factory=dict)  # jobs that failed in a row, by machine faults
    _too_much: dict[str, str] = field(default_factory=dict)  # the plan on which a job ran out of memory
    _start_at: float = 0.0  # monotonic; before it nothing is started

    def held(self, workers: Iterable[Worker]) -> frozenset[str]:
        """The jobs that are in our hands."""
        return self.endings.jobs | {worker.job for worker in workers if worker.job}

    # -- to the workers ------------------------------------------------------------------------------------------------

    def start_next(self, worker: Worker, workers: Iterable[Worker]) -> None:
        """Claim the next job that can run, and have the idle worker render it."""
        if self.queue.paused or time.monotonic() < self._start_at:
            return
        held = self.held(workers)
        for job in self.queue.waiting():
            if job in held or self.keeper.seen.get(job) is not State.PENDING or self._must_wait(job):
                continue
            run = self._claim(job)
            if run is not None:
                self._start(worker, run)
                return

    def _must_wait(self, job: str) -> bool:
        """Whether the job's model is known to be missing; its status says so."""
        if not self._held_models:
            return False
        request = atomic.read_json(self.queue.path(State.PENDING, job) / REQUEST_FILE) or {}
        until, reason = self._held_models.get(str(request.get("model")), (0.0, ""))
        if time.monotonic() >= until:
            return False
        if job not in self._told:
            self._told.add(job)
            self.writer.amend(job, message=f"waits: {reason}")
        return True

    def _claim(self, job: str) -> Run | None:
        """Take a job out of `pending/`; None when it is not there any more, or not what it was."""
        run = self.queue.run(State.PENDING, job)
        folder = self.queue.path(State.PENDING, job)
        try:
            if run is None or not _is_unchanged(run, folder):
                _log.info("job_changed_while_pending", job=job)
                self.keeper.seen.pop(job, None)
                self.keeper.door.add_again(folder)
                return None
            self.queue.move(job, State.PENDING, State.PROCESSING)
        except (FileNotFoundError, FileExistsError):
            return None  # someone was faster
        self.keeper.moved(job, State.PROCESSING)
        if self.queue.has_outcome(State.PROCESSING, job):
            # It was put into pending/ to run again in this very moment: the keeper has to prepare it first.
            self.queue.move(job, State.PROCESSING, State.PENDING)
            self.keeper.seen.pop(job, None)
            return None
        if run.attempts >= self.max_attempts:
            self._fail(job, {"code": "too_many_attempts", "message": f"its worker died {run.attempts} times in a row"})
            return None
        return self.queue.charge(job, now())

    def _start(self, worker: Worker, run: Run) -> None:
        folder = self.queue.path(State.PROCESSING, run.job)
        request = atomic.read_json(folder / REQUEST_FILE)

        def path(role: Role) -> str | None:
            file = run.file(role)
            return str(folder / file.name) if file else None

        self._told.discard(run.job)
        self._running[run.job] = Running(run.job)
        worker.start(
            run.job,
            request=request,
            image=path(Role.IMAGE),
            last_image=path(Role.END_FRAME),
            video=path(Role.VIDEO),
            latents=path(Role.LATENTS),
            scratch=str(self.work_dir / run.job),
            plan_below=self._too_much.get(run.job),
        )
        self.writer.write(run.job, State.PROCESSING, message="starts")
        waited = datetime.fromisoformat(now()) - datetime.fromisoformat(run.queued_at)
        _log.info(
            "job_claimed",
            job=run.job,
            device=worker.device,
            attempt=run.attempts,
            waited_seconds=round(waited.total_seconds(), 3),
        )

    def stop_departed(self, workers: Iterable[Worker]) -> None:
        """Stop the workers whose job left `processing/`."""
        if folder_identity(self.queue.folder(State.PROCESSING)) is None:
            return  # the share is away, which says nothing of the jobs
        for worker in workers:
            if worker.job and not worker.stopping and not self.queue.path(State.PROCESSING, worker.job).is_dir():
                _log.info("job_stopping", job=worker.job, reason="it was moved out of processing")
                worker.stop_job()

    def stop_for_shutdown(self, worker: Worker) -> None:
        """Stop a worker's job because the daemon ends."""
        if worker.job:
            _log.info("job_stopping", job=worker.job, reason="the daemon stops")
            worker.stop_job()

    # -- from the workers ----------------------------------------------------------------------------------------------

    def handle(self, message: Message, worker: Worker) -> None:
        """Do what a worker's message asks for."""
        job = message.get("job")
        match message["event"]:
            case "loaded":
                _log.info(
                    "model_loaded",
                    model=message["model"],
                    device=worker.device,
                    plan=message["plan"],
                    seconds=message["seconds"],
                )
            case "unavailable":
                self._hold_model(message)
            case "started" | "step" | "section" if job in self._running:
                self._follow(self._running[job], message)
            case "rendered":
                self._record(message)
            case "stopped":
                self._put_back(str(job))
            case "failed":
                self._judge(message)
            case "died" if job is not None:
                hint = "the worker's last words are in the job's outcome.json"
                self._judge({**message, "code": "worker_died", "hint": hint, "retryable": True})

    def _follow(self, running: Running, message: Message) -> None:
        event = message["event"]
        if event == "section":
            self._failing.clear()
            run = self.queue.run(State.PROCESSING, running.job)
            if run is not None and run.attempts:
                # It makes headway: what fails from here on counts anew.
                self.queue.save_run(State.PROCESSING, replace(run, attempts=0))
        running.follow(message)
        for new, name in (("preview", PREVIEW), ("picture", STEP_PICTURE)):
            if message.get(new):
                self.previews.offer(running.job, name)
        if event == "started" and message.get("note"):
            _log.warning("job_not_resumed", job=running.job, reason=message["note"])

    def write_progress(self) -> None:
        """Bring the status files of the running jobs up to date."""
        for running in self._running.values():
            if running.is_due():
                self.writer.write(running.job, State.PROCESSING, **running.status())

    def _record(self, message: Message) -> None:
        job = message["job"]
        self._running.pop(job, None)
        self._too_much.pop(job, None)
        self._failing.clear()
        run = self.queue.run(State.PROCESSING, job)
        result = {key: message[key] for key in ("video", "timings", "device", "memory", "model", "versions")}
        try:
            self.endings.complete(job, result | {"attempt": run.attempts if run else None})
        except FileNotFoundError:
            _log.info("job_stopped", job=job, reason="it was moved out of processing")
            self._discard_stopped(job)

    def _put_back(self, job: str) -> None:
        """A job that was stopped: where it was moved by hand it stays, else it goes back to its place in the queue."""
        self._running.pop(job, None)
        try:
            self.keeper.uncharge(job)
        except FileNotFoundError:
            _log.info("job_stopped", job=job)
            self._discard_stopped(job)

    def _discard_stopped(self, job: str) -> None:
        """Clear up after a worker that let go of a job which had left `processing/`; one that waits keeps its work."""
        if self.queue.state_of(job) is not State.PENDING:
            atomic.remove_tree(self.work_dir / job)

    def _judge(self, message: Message) -> None:
        """Whether a job that failed is tried again."""
        job, code = message["job"], message["code"]
        self._running.pop(job, None)
        run = self.queue.run(State.PROCESSING, job)
        _log.error("job_attempt_failed", job=job, code=code, reason=message["message"])
        if run is None:
            self._discard_stopped(job)
            return
        if code == "out_of_memory" and message["lower_plan"]:
            self._step_down(message)
            return
        if code in _MACHINE_FAULTS:
            self._count_machine_fault(job)
        if code == "storage":
            self._start_at = time.monotonic() + STORAGE_SECONDS
            self._put_back(job)
            self.writer.amend(job, message=f"waits: scratch cannot be written: {message['message']}")
        elif message["retryable"] and run.attempts < self.max_attempts:
            self.queue.requeue(job, State.PROCESSING)
            self.keeper.moved(job, State.PENDING)
            self.writer.write(job, State.PENDING, message=f"waits to be tried again: {message['message']}")
        else:
            self._fail(job, message)

    def _step_down(self, message: Message) -> None:
        """Let a job that was too much for a memory plan run on a lower one, at its place and with nothing charged."""
        job = message["job"]
        plan, lower = message["plan"], message["lower_plan"]
        self._too_much[job] = plan
        _log.warning("job_stepped_down", job=job, plan=plan, lower_plan=lower)
        self._put_back(job)
        self.writer.amend(job, message=f"waits to run on the memory plan {lower}: {message['message']}")

    def _count_machine_fault(self, job: str) -> None:
        self._failing[job] = None
        if len(self._failing) >= BREAKER_JOBS:
            self._failing.pop(next(iter(self._failing)))
            self._start_at = time.monotonic() + BREAKER_SECONDS
            _log.error("circuit_open", jobs=BREAKER_JOBS, retry_seconds=BREAKER_SECONDS)
            for waiting in self.queue.waiting()[:1]:
                self.writer.amend(waiting, message="waits: the last jobs all made their worker fail; see the log")

    def _hold_model(self, message: Message) -> None:
        model = message["model"]
        reason = f"{message['message']} ({message['hint']})"
        if model not in self._held_models:
            _log.error("model_unavailable", model=model, reason=message["message"], hint=message["hint"])
        self._held_models[model] = time.monotonic() + MODEL_SECONDS, reason

    def _fail(self, job: str, problem: dict[str, Any]) -> None:
        self._too_much.pop(job, None)
        self.endings.fail(job, problem)


def _is_unchanged(run: Run, folder: Path) -> bool:
    """Whether every file of the job is a plain file with the content that was taken."""
    files = [(folder / item.name, item.sha256) for item in run.files]
    return all(signature(path) is not None and atomic.digest(path)[1] == sha256 for path, sha256 in files)
