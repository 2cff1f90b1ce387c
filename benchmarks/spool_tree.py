"""Folders with any number of jobs in them, written fast and without syncs: the same files as the door makes.

`check` compares a written job with one that came through the door. Knows the layout of a job, nothing of measuring.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from framepack_daemon import atomic
from framepack_daemon.daemon import Daemon
from framepack_daemon.job import OUTCOME_FILE, REQUEST_FILE, RUN_FILE, JobFile, Role, Run, State, failure, job_id, now
from framepack_daemon.observer import Observer
from framepack_daemon.reload import Reload
from framepack_daemon.settings import Settings
from framepack_daemon.signals import Signals
from framepack_daemon.spool import status
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.drop import Drop, Part
from framepack_daemon.spool.queue import Queue
from framepack_daemon.systemd import Service

SIDECAR = {"prompt": "waves", "width": 64, "height": 64, "frames": 5, "num_inference_steps": 1}


class Tree:
    """The folders of one daemon."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inbox, self.outputs, self.work = root / "inbox", root / "outputs", root / "work"
        self.queue = Queue(root / "queue")
        self.picture = root / "picture.png"
        self.loose = root / "loose"  # of what is no daemon's

    def make(self) -> None:
        """Make them."""
        for folder in (self.inbox, self.outputs, self.work, self.loose):
            folder.mkdir(parents=True, exist_ok=True)
        self.queue.make()
        Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(self.picture)

    def settings(self) -> Settings:
        """A daemon's settings for these folders."""
        return Settings(
            inbox=self.inbox,
            outputs=self.outputs,
            queue_dir=self.queue.root,
            work_dir=self.work,
            models_dir=self.root / "models",
            device="cpu",
            settle_seconds=0.0,
        )

    def parts(self, signals: Signals) -> tuple[Reload, Service, Signals, Observer]:
        """What a daemon on these folders is made of."""
        settings, service = self.settings(), Service()
        return Reload(settings, lambda: settings, service, signals), service, signals, Observer(settings)

    def daemon(self) -> Daemon:
        """A daemon that nobody runs."""
        return Daemon(*self.parts(Signals(hangup_reloads=False)))

    def drop(self, stem: str, seed: int) -> None:
        """Put a pair into the inbox."""
        (self.inbox / f"{stem}.png").write_bytes(self.picture.read_bytes())
        (self.inbox / f"{stem}.json").write_text(json.dumps(SIDECAR | {"seed": seed}))

    def add(self, door: Door, seed: int) -> str:
        """Bring one job in by the door; its id."""
        sidecar = json.dumps(SIDECAR | {"seed": seed}).encode()
        stem = f"real{seed:06}"
        image = Part(Role.IMAGE, f"{stem}.png", self.picture)
        return door.add(Drop(stem, (image, Part(Role.SIDECAR, f"{stem}.json", sidecar)))).jobs[0]

    def fill(self, count: int) -> None:
        """Write so many pending jobs, after the pattern of one that comes in by the door."""
        pattern = self.add(door_of(self.daemon()), seed=0)
        picture = self.picture.read_bytes()
        request = json.loads((self.queue.path(State.PENDING, pattern) / REQUEST_FILE).read_text())
        shown = json.loads((self.outputs / f"{pattern}{status.SUFFIX}").read_text())
        run = self.queue.run(State.PENDING, pattern)
        assert run is not None
        for number in range(1, count):
            self._write(run, request, shown, picture, number)

    def _write(self, pattern: Run, request: dict[str, Any], shown: dict[str, Any], picture: bytes, number: int) -> None:
        stem = f"job{number:06}"
        sidecar = json.dumps(SIDECAR | {"seed": number}).encode()
        contents = {(Role.IMAGE, f"{stem}.png"): picture, (Role.SIDECAR, f"{stem}.json"): sidecar}
        total = hashlib.sha256()
        files = []
        for (role, name), data in contents.items():
            total.update(f"{role}\0{len(data)}\0".encode() + data)
            files.append(JobFile(role, name, name, len(data), hashlib.sha256(data).hexdigest()))
        time = now()
        job = job_id(stem, total.hexdigest())
        run = replace(pattern, job=job, files=tuple(files), submitted_at=time, queued_at=time)
        request = request | {"seed": number}
        source = {"image": f"{stem}.png", "video": None, "sidecar": f"{stem}.json"}
        own = {"job": job, "request": request, "submitted_at": time, "source": source}
        folder = self.queue.path(State.PENDING, job)
        folder.mkdir()
        for (_, name), data in contents.items():
            (folder / name).write_bytes(data)
        (folder / REQUEST_FILE).write_bytes(atomic.encode_json(request))
        (folder / RUN_FILE).write_bytes(atomic.encode_json(run.as_dict()))
        (self.outputs / f"{job}{status.SUFFIX}").write_bytes(atomic.encode_json(shown | own))

    def check(self) -> None:
        """Fail unless a written job is what the door would have made of the same files."""
        written = next(job for job in self.queue.names(State.PENDING) if job.startswith("job"))
        folder = self.queue.path(State.PENDING, written)
        stem = written.rpartition("-")[0]
        twin = Tree(self.root / "twin")
        twin.make()
        parts = (Part(Role.IMAGE, f"{stem}.png", folder / f"{stem}.png"),)
        parts += (Part(Role.SIDECAR, f"{stem}.json", folder / f"{stem}.json"),)
        added = door_of(twin.daemon()).add(Drop(stem, parts))
        assert added.jobs == [written], (added.jobs, written)
        real = twin.queue.path(State.PENDING, written)
        assert {path.name for path in real.iterdir()} == {path.name for path in folder.iterdir()}
        assert (real / REQUEST_FILE).read_bytes() == (folder / REQUEST_FILE).read_bytes()
        records = [queue.run(State.PENDING, written) for queue in (self.queue, twin.queue)]
        same = [replace(run, submitted_at="", queued_at="") for run in records if run]
        assert same[0] == same[1]

    def end_all(self) -> None:
        """Make refused jobs of all that wait."""
        folder = self.queue.folder(State.FAILED)
        folder.rmdir()
        self.queue.folder(State.PENDING).rename(folder)
        self.queue.folder(State.PENDING).mkdir()
        outcome = atomic.encode_json(failure({"code": "request", "message": "was refused"}))
        for job in self.queue.names(State.FAILED):
            (folder / job / OUTCOME_FILE).write_bytes(outcome)
            (self.outputs / f"{job}{status.SUFFIX}").write_bytes(atomic.encode_json({"job": job, "state": "failed"}))

    def leave_halves(self, count: int) -> None:
        """Put so many files into the inbox that wait for another: pictures and sidecars in turn."""
        for number in range(count):
            name = f"half{number:06}.{'json' if number % 2 else 'png'}"
            descriptor = os.open(self.inbox / name, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, b'{"prompt": "waves"}')
            os.close(descriptor)


def door_of(daemon: Daemon) -> Door:
    """The door of a daemon that was made for these folders."""
    return daemon._keeper.door  # noqa: SLF001  the benchmark drives the daemon's own objects
