"""The daemon's side of the workers: one child process per device, started, watched and replaced.

A `Worker` knows whether its child loads, waits or renders, since when it has been silent, and since when it shows no
sign of life: a step may take minutes, but a process that runs says so all the while. Which job runs next, and what
becomes of one that failed, the daemon decides. Never imports torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon import atomic
from framepack_daemon.workers.channel import ALIVE, Channel, Message

LOG_TAIL_BYTES = 8000  # of a dead child's output that go into the job's outcome
MAX_BACKOFF_SECONDS = 60.0  # between two starts of a child that dies while it loads
DEVICE_SECONDS = 30.0  # until a fresh child looks again for a device that cannot be used
END_SECONDS = 5.0  # for a child that was killed, or has closed its line, to be gone

_log = structlog.get_logger(__name__)


class Phase(Enum):
    """What a worker's child does."""

    DOWN = auto()  # no child runs
    LOADING = auto()  # it starts, or loads a model
    IDLE = auto()
    BUSY = auto()  # it renders `job`
    ENDING = auto()  # it makes way for a fresh one


@dataclass(frozen=True)
class Limits:
    """How long a child may be silent, in seconds."""

    step: float
    load: float
    heartbeat: float  # without any sign of life, whatever it does


class Worker:
    """One device and the child process that renders on it."""

    def __init__(
        self,
        device: str,
        *,
        models_dir: Path,
        loras_dir: Path,
        model: str,
        threads: int | None,
        memory: str,
        preservation: float,
        limits: Limits,
        log: Path,
    ) -> None:
        self.device = device
        self.model = model  # that it loads when it starts
        self.job: str | None = None  # that the child holds; not to be claimed again before it lets go
        self.stopping = False  # it was told to stop that job
        self.phase = Phase.DOWN
        self.answered = False  # a child has loaded its model, or said what it lacks, or died
        self._arguments = ["--device", device, "--model", model]
        self._arguments += ["--models-dir", str(models_dir), "--loras-dir", str(loras_dir)]
        self._arguments += ["--threads", str(threads)] if threads else []
        self._arguments += ["--memory", memory, "--gpu-memory-preservation", str(preservation)]
        self._too_much: str | None = None  # the plan on which the last job ran out of memory
        self.limits = limits
        self._log_file = log
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._heard = 0.0  # monotonic; when it said something last
        self._alive = math.inf  # monotonic; when it showed that it runs, from its first word on
        self._ended = ""  # why the child is to be buried
        self.is_stuck = False  # the child does not end, whatever is done about it
        self._start_at = 0.0  # monotonic
        self.failures = 0  # children in a row that died before they were ready

    def fileno(self) -> int:
        """Descriptor to wait on, or -1."""
        return -1 if self._channel is None or self.is_stuck else self._channel.fileno()

    def ensure_started(self) -> None:
        """Start a child if there is none and it is time for one."""
        if self.phase is not Phase.DOWN or time.monotonic() < self._start_at:
            return
        ours, theirs = socket.socketpair()
        atomic.make_folder(self._log_file.parent)
        with self._log_file.open("wb") as log, theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "framepack_daemon.workers.child", "--parent", str(os.getpid())),
                    *("--descriptor", str(theirs.fileno()), *self._arguments),
                    *(("--plan-below", self._too_much) if self._too_much else ()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel = Channel(ours)
        self._heard, self._alive = time.monotonic(), math.inf
        self.phase = Phase.LOADING
        _log.info("worker_started", device=self.device, pid=self._process.pid)

    def start(self, job: str, **fields: Any) -> None:
        """Have an idle child render a job."""
        assert self.phase is Phase.IDLE
        assert self._channel is not None
        self.job, self.stopping, self.phase = job, False, Phase.BUSY
        self._heard = time.monotonic()
        self._channel.send("run", job=job, **fields)

    def load(self) -> None:
        """Have an idle child look again for the model that it could not load."""
        assert self.phase is Phase.IDLE
        assert self._channel is not None
        self._heard, self.phase = time.monotonic(), Phase.LOADING
        self._channel.send("load", model=self.model)

    def stop_job(self) -> None:
        """Have the child stop its job after the current step."""
        if self.job is not None and self._channel is not None and not self.stopping:
            self.stopping = True
            self._channel.send("stop", job=self.job)

    def receive(self) -> list[Message]:
        """What the child says beside that it lives; its death is the message `died`."""
        if self._channel is None or self._process is None:
            return []
        messages = self._channel.receive()
        for message in messages:
            self._follow(message)
        if self._channel.closed or self._process.poll() is not None:
            messages += self._channel.receive()
            messages += self._bury()
        elif reason := self._ended or self._silence():
            self._ended = f"{reason} and was killed"
            self._process.kill()
            messages += self._bury()
        return [message for message in messages if message["event"] != ALIVE]

    def _follow(self, message: Message) -> None:
        self._alive = time.monotonic()
        if message["event"] == ALIVE:
            return
        self._heard = self._alive
        match message["event"]:
            case "loading":
                self.phase = Phase.LOADING
            case "loaded" | "unavailable":
                self.phase = Phase.BUSY if self.job else Phase.ENDING if message.get("ends") else Phase.IDLE
                self.failures, self.answered = 0, True
                if message.get("ends"):
                    self._start_at = time.monotonic() + DEVICE_SECONDS
            case "rendered" | "failed" | "stopped":
                self.phase = Phase.ENDING if message.get("ends") else Phase.IDLE
                self.job, self.stopping = None, False
                # A job that steps down comes first again: its next child need not load what was too much for it.
                self._too_much = message["plan"] if message.get("lower_plan") else None

    def _silence(self) -> str:
        """That the child was silent for longer than it may be, in words; else empty."""
        limits, silent = self.limits, time.monotonic() - self._heard
        limit = {Phase.LOADING: limits.load, Phase.BUSY: limits.step, Phase.ENDING: limits.step}.get(self.phase)
        if limit is not None and silent > limit:
            return f"said nothing for {silent:.0f} s"
        lifeless = time.monotonic() - self._alive
        return f"showed no sign of life for {lifeless:.0f} s" if lifeless > limits.heartbeat else ""

    def _bury(self) -> list[Message]:
        """Clear up after the child; the message that says how it ended, or none while it does not end."""
        assert self._process is not None
        assert self._channel is not None
        try:
            code = self._process.wait(0 if self.is_stuck else END_SECONDS)
        except subprocess.TimeoutExpired:
            if not self.is_stuck:
                _log.error("worker_does_not_end", device=self.device, job=self.job, pid=self._process.pid)
            self._process.kill()
            self.is_stuck = True
            return []
        self._channel.close()
        if self.phase is Phase.LOADING and self.job is None:
            self.failures += 1
            self._start_at = time.monotonic() + min(2.0**self.failures, MAX_BACKOFF_SECONDS)
        reason = self._ended or (f"was ended by signal {-code}" if code < 0 else f"ended with code {code}")
        self._ended, self.is_stuck = "", False
        self.answered = True
        job, self.job, self.stopping, self.phase = self.job, None, False, Phase.DOWN
        self._process = self._channel = None
        _log.warning("worker_died", device=self.device, job=job, reason=reason)
        return [{"event": "died", "job": job, "message": f"the worker {reason}", "traceback": self._tail()}]

    def _tail(self) -> str:
        try:
            return self._log_file.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""

    def kill(self) -> None:
        """End the child at once."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End a child that has no job in hand: there is nothing that it would have to bring to an end."""
        if self._channel is None or self._process is None:
            return
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self._channel.close()
        self._process = self._channel = None
        self.phase = Phase.DOWN


def devices(setting: str) -> list[str]:
    """The devices that the setting `device` means on this machine, without asking torch."""
    if setting == "cpu":
        return ["cpu"]
    if setting.startswith("cuda:"):
        return [f"cuda:{number}" for number in setting.removeprefix("cuda:").split(",")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    else:
        count = sum(1 for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    if count == 0 and setting == "auto":
        return ["cpu"]
    return [f"cuda:{number}" for number in range(max(count, 1))]
