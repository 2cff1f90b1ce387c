"""What becomes of a job from the claim to its outcome: the decisions between a worker's messages and the folders.

Which job runs next, what a failure means for it, when it is rendered. Every change of state is a rename in the queue;
what is kept here is progress for the status file. Knows neither the drop folder nor the engine.
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
from framepack_daemon.errors import DeviceError
from framepack_daemon.job import REQUEST_FILE, Role, Run, State, now
from framepack_daemon.progress import Running
from framepack_daemon.reasons import Reasons
from framepack_daemon.scratch import PREVIEW, STEP_PICTURE
from framepack_daemon.spool.drop import is_unchanged
from framepack_daemon.spool.keeper import Keeper
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter
from framepack_daemon.spool.watch import folder_identity
from framepack_daemon.workers.channel import Message
from framepack_daemon.workers.pool import Worker

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
    reasons: Reasons = field(init=False)
    _running: dict[str, Running] = field(default_factory=dict)
    _too_much: dict[str, str] = field(default_factory=dict)  # the plan on which a job ran out of memory

    def __post_init__(self) -> None:
        self.reasons = Reasons(self.queue, self.keeper, self.writer)

    def held(self, workers: Iterable[Worker]) -> frozenset[str]:
        """The jobs that are in our hands."""
        return self.endings.jobs | {worker.job for worker in workers if worker.job}

    # -- what there is to tell -----------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """How many jobs wait."""
        return len(self.keeper.line)

    @property
    def running(self) -> list[Running]:
        """How far the jobs are that run."""
        return list(self._running.values())

    # -- to the workers ------------------------------------------------------------------------------------------------

    def start_next(self, worker: Worker, workers: Iterable[Worker]) -> None:
        """Claim the next job that can run, and have the idle worker render it."""
        if self.queue.pause_file.exists() or self.endings.is_stuck or time.monotonic() < self.reasons.start_at:
            return
        held = self.held(workers)

        def can_run(job: str) -> bool:
            return job not in held and self.keeper.is_ready(job) and not self.reasons.hold(job)

        while (job := self.keeper.line.first(can_run)) is not None:
            run = self._claim(job)
            if run is not None and self._start(worker, run):
                return

    def look_for_model(self, worker: Worker) -> None:
        """Have an idle worker look again, now and then, for its own model where that is missing."""
        if self.reasons.is_due(worker.model):
            worker.load()

    def _claim(self, job: str) -> Run | None:
        """Take a job out of `pending/`; None when it is not there or not what it was, and has left the line."""
        folder = self.queue.path(State.PENDING, job)
        try:
            run = self.queue.run(State.PENDING, job)
            if run is not None and self.keeper.line.put(run):
                return None  # someone gave it another priority
            if run is None or not is_unchanged(folder, run):
                _log.info("job_changed_while_pending", job=job)
                self.keeper.look_again(job)
                self.keeper.door.add_again(folder)
                return None
            self.queue.move(job, State.PENDING, State.PROCESSING)
        except (FileNotFoundError, FileExistsError):
            self.keeper.line.discard(job)
            return None  # someone was faster
        except PermissionError as error:
            if not self.keeper.bar(job, error):
                raise
            return None  # nobody may move it but its owner
        self.keeper.moved(job, State.PROCESSING)
        if self.queue.has_outcome(State.PROCESSING, job):
            # It was put into pending/ to run again in this very moment: the keeper has to prepare it first.
            self.queue.move(job, State.PROCESSING, State.PENDING)
            self.keeper.look_again(job)
            return None
        if run.attempts >= self.max_attempts:
            self._fail(job, {"code": "too_many_attempts", "message": f"its worker died {run.attempts} times in a row"})
            return None
        try:
            return self.queue.charge(job, now())
        except FileNotFoundError:
            return None  # cancelled in this very moment

    def _start(self, worker: Worker, run: Run) -> bool:
        """Hand a claimed job to the worker; False when it has left `processing/` already."""
        folder = self.queue.path(State.PROCESSING, run.job)
        request = atomic.read_json(folder / REQUEST_FILE)
        if request is None:
            return False

        def path(role: Role) -> str | None:
            file = run.file(role)
            return str(folder / file.name) if file else None

        self.reasons.starts(run.job)
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
        return True

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
                self.reasons.loaded(message["model"], worker.device)
                _log.info(
                    "model_loaded",
                    model=message["model"],
                    device=worker.device,
                    plan=message["plan"],
                    seconds=message["seconds"],
                )
            case "unavailable" if message["code"] == DeviceError.code:
                self.reasons.device_missing(worker.device, message["message"])
            case "unavailable":
                self.reasons.model_missing(message)
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
            self.reasons.works()
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
        self.reasons.works()
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
        away = folder_identity(self.queue.folder(State.PROCESSING)) is None  # which says nothing of the job
        if not away and self.queue.state_of(job) is not State.PENDING:
            atomic.remove_tree(self.work_dir / job)

    def _judge(self, message: Message) -> None:
        """Whether a job that failed is tried again."""
        job, code = message["job"], message["code"]
        if self._running.pop(job, None):  # said once, however often the queue cannot be written
            _log.error("job_attempt_failed", job=job, code=code, reason=message["message"])
        run = self.queue.run(State.PROCESSING, job)
        if run is None:
            self._discard_stopped(job)
            return
        if code == "out_of_memory" and message["lower_plan"]:
            self._step_down(message)
            return
        self.reasons.failed(job, code)
        if code == "storage":
            self.reasons.scratch_fails(message["message"])
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

    def _fail(self, job: str, problem: dict[str, Any]) -> None:
        self._too_much.pop(job, None)
        self.endings.fail(job, problem)
