"""A real gateway on real folders, for tests: a process of its own on loopback, spoken to by httpx."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from spool_bench import Bench
from videos import write_video

from framepack_daemon import atomic
from framepack_daemon.job import State
from framepack_daemon.scratch import POSTER, VIDEO

PATIENCE_SECONDS = 60.0


class Served:
    """A gateway, and a client of it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.environment = environment
        self.log = log
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(timeout=PATIENCE_SECONDS)

    def start(self, *words: str, port: int = 0) -> None:
        """Start it and wait until it listens."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "framepack_daemon", "serve", "--port", str(port), *words]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        until(lambda: self._found_address(begin), lambda: self.log.read_text()[-2000:])
        self.client.base_url = httpx.URL(self.url)
        until(self._answers, lambda: self.log.read_text()[-2000:])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    @property
    def port(self) -> int:
        """Where it listens."""
        return httpx.URL(self.url).port or 0

    def end(self) -> None:
        """End it at once, if it runs."""
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def generate(self, picture: Path, name: str = "beach.png", **fields: Any) -> str:
        """A job by the original's form; its id."""
        texts = {key: str(value) for key, value in fields.items()}
        answer = self.client.post("/generate", data=texts, files={"image": (name, picture.read_bytes())})
        assert answer.status_code == 200, answer.text
        found: str = answer.json()["job_id"]
        return found

    def add(self, picture: Path, sidecar: dict[str, Any], name: str = "beach.png") -> str:
        """A job by the sidecar's own schema; its id."""
        answer = self.client.post(
            "/jobs", data={"sidecar": json.dumps(sidecar)}, files={"image": (name, picture.read_bytes())}
        )
        assert answer.status_code == 200, answer.text
        found: str = answer.json()["job_id"]
        return found

    def status(self, job: str) -> dict[str, Any]:
        """What the original answers about a job."""
        found: dict[str, Any] = self.client.get(f"/status/{job}").raise_for_status().json()
        return found

    @contextmanager
    def stream(self, path: str, **headers: str) -> Iterator[Iterator[dict[str, str]]]:
        """The events of a stream, each with the fields that it came with."""
        with self.client.stream("GET", path, headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            yield _events(answer.iter_lines())

    def _found_address(self, begin: int) -> bool:
        assert self.process is not None
        text = self.log.read_bytes()[begin:].decode()
        assert self.process.poll() is None, text
        found = re.search(r"^http://\S+$", text, re.MULTILINE)
        self.url = found[0] if found else ""
        return bool(found)

    def _answers(self) -> bool:
        try:
            return self.client.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def served(
    root: Path, log: Path | None = None, *words: str, credentials: Path | None = None, **settings: Any
) -> Iterator[Served]:
    """A gateway on `root`'s inbox, queue and outputs; settings of the gateway begin with `web_`."""
    own = {"inbox": root / "inbox", "outputs": root / "outputs", "work_dir": root / "work", "log_format": "json"}
    environment = os.environ | {f"FRAMEPACK_{key.upper()}": str(value) for key, value in (own | settings).items()}
    if credentials is not None:
        environment["CREDENTIALS_DIRECTORY"] = str(credentials)
    gateway = Served(environment, log or root / "gateway.log")
    root.mkdir(parents=True, exist_ok=True)
    try:
        gateway.start(*words)
        yield gateway
    finally:
        gateway.end()


@contextmanager
def folders(gateway: Served, picture: Path) -> Iterator[Bench]:
    """The gateway's folders, to do there what a daemon does; emptied afterwards."""
    bench = Bench(Path(gateway.environment["FRAMEPACK_INBOX"]).parent, picture)
    yield bench
    for state in State:
        for job in bench.queue.names(state):
            bench.queue.discard(bench.queue.path(state, job))
    for path in bench.outputs.iterdir():
        path.unlink()
    bench.queue.pause_file.unlink(missing_ok=True)


def finish(bench: Bench, job: str) -> bytes:
    """Do what a daemon does with a pending job until its video is published; the video."""
    bench.queue.move(job, State.PENDING, State.PROCESSING)
    scratch = bench.work / job
    scratch.mkdir(parents=True, exist_ok=True)
    write_video(scratch / VIDEO, frames=12)
    Image.new("RGB", (96, 64), "red").save(scratch / POSTER)
    content = (scratch / VIDEO).read_bytes()
    size, sha256 = atomic.digest(scratch / VIDEO)
    bench.publisher.record(job, {"video": {"sha256": sha256, "bytes": size, "frames": 12}})
    bench.publisher.finish(job)
    return content


def until(condition: Callable[[], Any], told: Callable[[], str] = lambda: "") -> Any:
    """Wait for a condition; what it gave."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited in vain\n{told()}")


def _events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not line:
            if "data" in found:
                yield found
            found = {}
        elif name and colon:
            found[name] = value.removeprefix(" ")
