"""What the main job costs on this machine: memory, the time of `status`, and the time until the first denoising step.

    python benchmarks/main_job.py [--pending 10000]

Starts a real daemon with the tiny model on folders of its own. The lower bounds beside the figures: an interpreter that
imports nothing, for memory and for `status`; the bare time that the worker needs to encode text and picture, for the
way from a drop to its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from framepack_daemon.job import Role, State
from framepack_daemon.request import build, effective
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.drop import Drop, Part
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter

SETTLE_SECONDS = 0.5
ROUNDS = 5
SIDECAR = {"prompt": "waves", "width": 64, "height": 64, "frames": 5, "num_inference_steps": 2}
KIBIBYTES_PER_MEBIBYTE = 1024


class Site:
    """Folders of one daemon."""

    def __init__(self, root: Path, models_dir: Path) -> None:
        self.root = root
        self.inbox, self.outputs = root / "inbox", root / "outputs"
        self.inbox.mkdir(parents=True)
        self.outputs.mkdir()
        self.queue = Queue(root / "queue")
        self.queue.make()
        self.environment = {
            **os.environ,
            "FRAMEPACK_INBOX": str(self.inbox),
            "FRAMEPACK_OUTPUTS": str(self.outputs),
            "FRAMEPACK_WORK_DIR": str(root / "work"),
            "FRAMEPACK_MODELS_DIR": str(models_dir),
            "FRAMEPACK_SETTLE_SECONDS": str(SETTLE_SECONDS),
            "FRAMEPACK_DEVICE": "cpu",
            "FRAMEPACK_LOG_FORMAT": "json",
        }

    def command(self, *words: str) -> str:
        """Run one command; what it printed."""
        line = [sys.executable, "-m", "framepack_daemon", *words]
        return subprocess.run(line, env=self.environment, capture_output=True, text=True, check=True).stdout

    @contextmanager
    def daemon(self) -> Iterator[int]:
        """A daemon whose worker has its model loaded; its process id."""
        log = self.root / "daemon.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "framepack_daemon", "run"],
                env=self.environment,
                stderr=stream,
                start_new_session=True,  # Ctrl-C ends the benchmark, which then stops the daemon in good order
            )
        try:
            wait(lambda: b"model_loaded" in log.read_bytes())
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def wait(condition, seconds: float = 120.0) -> float:  # noqa: ANN001  any callable
    """Wait for a condition; when it came true, on the clock that files are stamped with."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return time.time()
        time.sleep(0.001)
    raise TimeoutError


def resident_mebibytes(pid: int) -> float:
    """Memory of one process, without its children."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / KIBIBYTES_PER_MEBIBYTE
    raise ProcessLookupError(pid)


def bare_interpreter() -> tuple[float, float]:
    """(MiB, seconds) of an interpreter that does nothing."""
    started = time.monotonic()
    script = "print(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(done.stdout) / KIBIBYTES_PER_MEBIBYTE, time.monotonic() - started


def median_seconds(action) -> float:  # noqa: ANN001  any callable
    """The median of some runs."""
    times = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        action()
        times.append(time.monotonic() - started)
    return statistics.median(times)


def fill(site: Site, picture: Path, count: int) -> float:
    """Enter so many jobs by the one door; jobs a second."""
    door = Door(site.queue, StatusWriter(site.queue, site.outputs), "tiny")
    started = time.monotonic()
    for number in range(count):
        sidecar = json.dumps(SIDECAR | {"seed": number}).encode()
        door.add(Drop("job", (Part(Role.IMAGE, "job.jpg", picture), Part(Role.SIDECAR, "job.json", sidecar))))
    return count / (time.monotonic() - started)


def first_step_after(site: Site, begin: float, known: set[str]) -> tuple[float, float]:
    """(seconds from `begin` until sampling starts, seconds of it that went into encoding) of the job that is new."""

    def running() -> bool:
        for path in site.outputs.glob("*.status.json"):
            if path.name not in known and (json.loads(path.read_text()).get("progress") or {}).get("steps"):
                return True
        return False

    at = wait(running)
    new = next(path for path in site.outputs.glob("*.status.json") if path.name not in known)
    wait(lambda: json.loads(new.read_text())["state"] == "done" and site.queue.names(State.DONE))
    wait(lambda: not site.queue.names(State.PROCESSING))
    known.add(new.name)
    return at - begin, json.loads(new.read_text())["timings"]["encode"]


def latency(site: Site, picture: Path) -> None:
    """Print how long a drop and a submission take to their first step."""
    known: set[str] = set()
    drops, submits = [], []
    for number in range(ROUNDS):
        shutil.copyfile(picture, site.inbox / f"d{number}.jpg")
        (site.inbox / f"d{number}.json").write_text(json.dumps(SIDECAR | {"seed": number}))
        drops.append(first_step_after(site, time.time() + SETTLE_SECONDS, known))
    words = [f"--set={name}={value}" for name, value in SIDECAR.items() if name != "prompt"]
    for number in range(ROUNDS):
        begin = time.time()
        site.command("submit", str(picture), "--prompt", "waves", *words, f"--set=seed={100 + number}")
        submits.append(first_step_after(site, begin, known))
    for name, found in (("drop, from the end of settling", drops), ("`submit`, from its start", submits)):
        total = statistics.median(item[0] for item in found)
        encoding = statistics.median(item[1] for item in found)
        print(f"| first step after a {name} | {total:.2f} s | {encoding:.2f} s of encoding | {total / encoding:.1f} |")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pending", type=int, default=10_000)
    options = parser.parse_args()
    effective(build(SIDECAR), "tiny")
    with tempfile.TemporaryDirectory(prefix="framepack-benchmark-") as folder:
        root = Path(folder)
        subprocess.run(
            [sys.executable, "-m", "framepack_daemon.engine.tiny", str(root / "models" / "tiny")], check=True
        )
        picture = Path(str(resources.files("framepack_daemon") / "samples" / "beach.jpg"))
        bare_memory, bare_time = bare_interpreter()
        print("| what | here | lower bound in this run | ratio |\n|---|---|---|---|")
        site = Site(root / "empty", root / "models")
        with site.daemon() as pid:
            memory = resident_mebibytes(pid)
            print(f"| daemon, empty queue | {memory:.0f} MiB | {bare_memory:.0f} MiB | {memory / bare_memory:.1f} |")
            took = median_seconds(lambda: site.command("status"))
            print(f"| `status`, empty queue | {took:.2f} s | {bare_time:.2f} s | {took / bare_time:.1f} |")
            latency(site, picture)
        site = Site(root / "full", root / "models")
        rate = fill(site, picture, options.pending)
        print(f"| jobs entered by the door | {rate:.0f} a second | | |")
        site.queue.pause_file.touch()
        with site.daemon() as pid:
            memory = resident_mebibytes(pid)
            pending = f"{options.pending:,} pending"
            print(f"| daemon, {pending} | {memory:.0f} MiB | {bare_memory:.0f} MiB | {memory / bare_memory:.1f} |")
            took = median_seconds(lambda: site.command("status"))
            print(f"| `status`, {pending} | {took:.2f} s | {bare_time:.2f} s | {took / bare_time:.1f} |")


if __name__ == "__main__":
    main()
