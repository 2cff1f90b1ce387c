"""A real daemon on real folders, for tests: started as a process, driven by files, moves and signals."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from framepack_daemon.job import State
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import read

PATIENCE_SECONDS = 180.0
# 112 pixels high: the smallest at which torch decodes the tiny model's frames in its fast way, in half the time of 64.
QUICK = {"prompt": "waves", "width": 64, "height": 112, "frames": 20, "num_inference_steps": 1, "seed": 7}


class Lab:
    """One daemon's folders, and the daemon in them."""

    def __init__(self, root: Path, models_dir: Path, picture: Path) -> None:
        self.root = root
        self.inbox, self.outputs, self.work = root / "inbox", root / "outputs", root / "work"
        self.queue = Queue(root / "queue")
        self.picture = picture
        self.process: subprocess.Popen[bytes] | None = None
        self._log = root / "daemon.log"
        self._told = 0  # bytes of the log that are of no more interest
        self.settings = {
            "inbox": self.inbox,
            "work_dir": self.work,
            "models_dir": models_dir,
            "outputs": self.outputs,
            "settle_seconds": 0.2,
            "threads": 2,
            "device": "cpu",
            "log_format": "json",
            "gallery": "false",  # tests compare what is in outputs; those of the gallery turn it on
        }
        self.inbox.mkdir(parents=True)

    def environment(self, **settings: Any) -> dict[str, str]:
        """The environment in which a command meets these folders."""
        known = {**self.settings, **settings}
        own = {name: value for name, value in os.environ.items() if not name.startswith("FRAMEPACK_TEST_")}
        return {**own, **{f"FRAMEPACK_{name.upper()}": str(value) for name, value in known.items()}}

    def launch(self, *words: str, **settings: Any) -> None:
        """Start the daemon, by other words for Python where some are given."""
        words = words or ("-m", "framepack_daemon", "run")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, *words], env=self.environment(**settings), stderr=log)

    def start(self, **settings: Any) -> None:
        """Start the daemon and wait until it holds the queue."""
        self.launch(**settings)
        self.until(lambda: self.events("daemon_started", self.process.pid), "the daemon to start")

    def command(self, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run one command of the command line."""
        return subprocess.run(
            [sys.executable, "-m", "framepack_daemon", *words],
            env=self.environment(**settings),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def drop(self, stem: str = "beach", folder: Path | None = None, **fields: Any) -> None:
        """Copy a pair into the inbox, as `cp` does."""
        folder = folder or self.inbox
        shutil.copyfile(self.picture, folder / f"{stem}.png")
        (folder / f"{stem}.json").write_text(json.dumps(QUICK | fields))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    @property
    def runs(self) -> bool:
        """Whether the daemon runs."""
        return self.process is not None and self.process.poll() is None

    def end(self) -> None:
        """End the daemon at once, if it runs."""
        if self.process is not None and self.runs:
            self.process.kill()
            self.process.wait()

    def clear(self) -> None:
        """Make it as if nothing had ever been dropped here; a daemon that runs stays, and its worker with its model."""
        _empty(self.inbox)
        self.until(lambda: not self.runs or not list(self.queue.building.iterdir()), "what is on its way in")
        while jobs := [(state, job) for state in State for job in self.queue.names(state)]:
            for state, job in jobs:
                with contextlib.suppress(FileNotFoundError):  # it moved on, and is found in the next turn
                    self.queue.discard(self.queue.path(state, job))
            self.until(lambda: not self.runs or self._has_let_go({job for _, job in jobs}), "the jobs to be let go of")
        _empty(self.outputs)
        if not self.runs:
            _empty(self.work)
        self.queue.pause_file.unlink(missing_ok=True)
        self._told = self._log.stat().st_size if self._log.exists() else 0

    def _has_let_go(self, jobs: set[str]) -> bool:
        """Whether the daemon has noticed that these jobs were removed, and done all that it does then."""
        noticed = {event["job"] for event in self.events("job_removed")}
        statuses = {job: read(self.outputs, job) for job in jobs}
        return not [path for path in self.work.iterdir() if path.is_dir()] and all(
            status is None or (job in noticed and status["state"] in (State.DONE, State.FAILED))
            for job, status in statuses.items()
        )

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for a condition; what it gave."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.02)
        log = self._log.read_text()[-4000:]
        raise AssertionError(f"waited {PATIENCE_SECONDS} s in vain for {what}\n{log}")

    def ended(self, stem: str, state: State = State.DONE) -> str:
        """Wait until a job of that stem stands in `state`; its id."""
        return self.until(lambda: self.jobs(state, stem), f"{stem} in {state}")[0]

    def jobs(self, state: State, stem: str = "") -> list[str]:
        """Ids of the jobs in a state whose name begins so."""
        return sorted(job for job in self.queue.names(state) if job.startswith(stem))

    def status(self, job: str) -> dict[str, Any]:
        """The job's status file, once it is there."""
        path = self.outputs / f"{job}.status.json"
        self.until(path.exists, "the status file")
        return json.loads(path.read_text())

    def reaches(self, job: str, section: int, step: int = 0) -> None:
        """Wait until the running job is that far."""

        def there() -> bool:
            progress = self.status(job).get("progress") or {}
            return (progress.get("section", 0), progress.get("step", 0)) >= (section, step)

        self.until(there, f"{job} in section {section}")

    def events(self, name: str, pid: int | None = None) -> list[dict[str, Any]]:
        """What was logged under a name since the last `clear`, or ever by the newest daemon, by its process id."""
        found = self._logged(0 if pid is not None else self._told)
        if pid is not None:
            starts = [place for place, event in enumerate(found) if event["event"] == "worker_started"]
            running = [place for place in starts if _parent(found[place]["pid"]) == pid]
            found = found[running[0] :] if running else []
        return [event for event in found if event["event"] == name]

    def _logged(self, begin: int) -> list[dict[str, Any]]:
        lines = self._log.read_bytes()[begin:].decode().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def worker_pid(self) -> int:
        """Process id of the newest worker."""
        return int(next(event["pid"] for event in reversed(self._logged(0)) if event["event"] == "worker_started"))

    def frames(self, job: str) -> np.ndarray:
        """Every frame of the published video: uint8 (T, H, W, 3)."""
        with av.open(str(self.outputs / f"{job}.mp4")) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _empty(folder: Path) -> None:
    for path in folder.glob("[!.]*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1
