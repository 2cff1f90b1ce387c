"""What the worker process does: keeps models loaded, renders one job at a time, and says how far it is.

At the other end of its line, an open descriptor, is the daemon. It reads a job's pictures and writes only into the
job's scratch folder; of queue and outputs it knows nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import os
import signal
import socket
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from framepack_daemon import atomic, loras
from framepack_daemon.engine import memory, provenance
from framepack_daemon.engine.events import Event, Finished, Section, Started, Step
from framepack_daemon.engine.loader import Loader
from framepack_daemon.engine.render import render
from framepack_daemon.engine.sources import Sources
from framepack_daemon.errors import DeviceError, FramepackError, OutOfMemoryError
from framepack_daemon.request import Request, build
from framepack_daemon.workers.channel import Channel, Message

SOURCES = ("image", "last_image", "video", "latents")  # the files of a job that a message names
STORAGE = "storage"  # code of a failure to write: not the job's fault


class Child:
    """The worker at the other end of the daemon's line."""

    def __init__(self, channel: Channel, loader: Loader, loras_dir: Path) -> None:
        self._channel = channel
        self._loader = loader
        self._loras_dir = loras_dir
        self._inbox: deque[Message] = deque()
        self._useless = False  # the device cannot be used, which in this process does not change

    def serve(self, model: str, below: str | None = None) -> None:
        """Load `model`, on a plan lower than `below`, then do what comes down the line until it is closed."""
        self._try_to_load(model, below=below)
        while not (self._channel.closed or self._useless):
            self._inbox.extend(self._channel.receive(timeout=None))
            while self._inbox:
                message = self._inbox.popleft()
                if message["event"] == "load":
                    self._try_to_load(message["model"])
                elif message["event"] == "run" and not self._run(message):
                    return

    def _try_to_load(self, model: str, request: Request | None = None, below: str | None = None) -> bool:
        try:
            self._loader.load(model, request, below)
        except FramepackError as error:
            self._useless = isinstance(error, DeviceError)
            self._channel.send("unavailable", model=model, ends=self._useless, **error.as_dict())
            return False
        return True

    def _run(self, message: Message) -> bool:
        """Render one job; False when this process had better be replaced by a fresh one."""
        job = message["job"]
        try:
            request = build(message["request"])
            if not self._try_to_load(str(request.model), request, message["plan_below"]):
                self._channel.send("stopped", job=job, ends=self._useless)
                return True
            self._render(job, request, message)
        except OutOfMemoryError as error:
            assert self._loader.models is not None
            plan = self._loader.models.plan
            plans = {"plan": plan, "lower_plan": memory.lower(plan)}
            self._channel.send("failed", job=job, retryable=True, ends=True, **plans, **error.as_dict())
            return False
        except FramepackError as error:
            self._channel.send("failed", job=job, retryable=error.retryable, **error.as_dict())
        except OSError as error:
            self._fail(job, STORAGE, f"{error.filename or 'scratch'}: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001  the job boundary: whatever it is, the daemon has to hear of it
            self._fail(job, "worker_error", f"{type(error).__name__}: {error}", ends=True)
            return False
        return True

    def _fail(self, job: str, code: str, message: str, *, ends: bool = False) -> None:
        self._channel.send(
            "failed",
            job=job,
            retryable=True,
            ends=ends,
            code=code,
            message=message,
            hint="the worker's traceback is in the job's outcome.json",
            traceback=traceback.format_exc(),
        )

    def _render(self, job: str, request: Request, message: Message) -> None:
        scratch = Path(message["scratch"])
        atomic.make_folder(scratch)
        image, last_image, video, latents = (Path(message[name]) if message.get(name) else None for name in SOURCES)
        sources = Sources(image, last_image, video, latents, loras.resolve(request.loras, self._loras_dir))
        # Another worker may still be dying with this job in hand: it lets go of the lock when it is gone.
        with atomic.locked(scratch):
            assert self._loader.models is not None
            events = render(request, self._loader.models, sources, scratch)
            for event in events:
                self._tell(job, event)
                if not isinstance(event, Finished) and self._should_stop(job):
                    events.close()  # type: ignore[attr-defined]  # a generator
                    self._channel.send("stopped", job=job)
                    return

    def _should_stop(self, job: str) -> bool:
        self._inbox.extend(self._channel.receive())
        return self._channel.closed or any(m["event"] == "stop" and m["job"] == job for m in self._inbox)

    def _tell(self, job: str, event: Event) -> None:
        fields: dict[str, Any]
        models = self._loader.models
        assert models is not None
        match event:
            case Started():
                fields = dataclasses.asdict(event) | {"plan": models.plan}
            case Step() | Section():
                fields = dataclasses.asdict(event)
            case Finished():
                fields = {
                    "video": dataclasses.asdict(event.facts),
                    "timings": event.timings,
                    "device": _device_name(models.device),
                    "memory": {
                        "plan": models.plan,
                        "peak_gpu_bytes": event.peak_gpu_bytes,
                        "peak_host_bytes": event.peak_host_bytes,
                    },
                    "model": {"name": models.name, "revision": models.revision},
                    "versions": provenance.versions(),
                }
        names = {Started: "started", Step: "step", Section: "section", Finished: "rendered"}
        self._channel.send(names[type(event)], job=job, **fields)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"


def main(words: list[str]) -> None:
    """Be the worker that the words of the command line ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--descriptor", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--loras-dir", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory", choices=("auto", *memory.PLANS), required=True)
    parser.add_argument("--gpu-memory-preservation", type=float, required=True)
    parser.add_argument("--plan-below", choices=memory.PLANS)
    options = parser.parse_args(words)
    faulthandler.enable()
    # Ctrl-C reaches the whole group; the daemon decides what it means for a job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if options.threads:
        torch.set_num_threads(options.threads)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    channel = Channel(socket.socket(fileno=options.descriptor))
    channel.keep_alive()
    loader = Loader(
        options.models_dir, options.device, options.memory, options.gpu_memory_preservation, say=channel.send
    )
    Child(channel, loader, options.loras_dir).serve(options.model, options.plan_below)
