"""The real daemon, killed by SIGKILL at one system call after the other: what the next start makes of it.

`strace` first writes down which calls a daemon makes on the way to a state, and how often; then it kills another one
before the n-th of each. Where no worker has to be ready, a stand-in for torch keeps it from ever loading, which saves
seconds. Recovery is done in this process, and at some points by a real daemon.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import tools
from crash import THOROUGH, VIDEO, check_jobs, check_order, digest, lifecycle, places, recover, running, tally
from lab import Lab
from spool_bench import Bench

from framepack_daemon.job import State
from framepack_daemon.spool import inbox

# A question mark before a call that not every machine has.
CALLS = ("?rename", "renameat", "renameat2", "fsync", "?unlink", "unlinkat", "?mkdir", "mkdirat", "?rmdir", "pwrite64")
# In place of torch: a worker that loads for as long as its daemon lives.
STAND_IN = """
import os, sys, time
daemon = int(sys.argv[sys.argv.index("--parent") + 1])
while os.getppid() == daemon:
    time.sleep(0.1)
sys.exit()
"""
REAL_RESTARTS = 8  # every so-many-th crash is recovered from by a real daemon
EVERY = 1 if THOROUGH else 4  # so-many-th point of intake is tried
EVERY_RENDERED = 1 if THOROUGH else 20  # and of a job that a worker renders, which has to load for each
CLAIM = re.compile(r'"[^"]*/processing/')


@dataclass
class Traced:
    """A lab whose daemon runs under strace."""

    lab: Lab
    template: Path
    stand_in: Path | None  # a folder with what is in place of torch

    def start(self, *options: str) -> None:
        """Start the daemon; `-D` keeps it our child, and strace a distant one, which leaves other programs alone."""
        environment = self.lab.environment(settle_seconds=0.05)
        paths = filter(None, [str(self.stand_in or ""), environment.get("PYTHONPATH")])
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        words = ["strace", "-D", "-f", "-b", "execve", "-qq", *options] if options else []
        with (self.lab.root / "daemon.log").open("ab") as log:
            self.lab.process = subprocess.Popen(
                [*words, sys.executable, "-m", "framepack_daemon", "run"], env=environment, stderr=log
            )

    def put_back(self) -> Bench:
        """Everything as it was before the first daemon."""
        shutil.rmtree(self.lab.root)
        shutil.copytree(self.template, self.lab.root)
        return Bench(self.lab.root, self.lab.picture)

    def points(self, arrived: Callable[[], object], since: re.Pattern[str]) -> list[tuple[str, int]]:
        """(call, n) of each call that one of the daemon's threads makes on the way, from one that looks so."""
        self.put_back()
        record = self.lab.root.with_name("trace")
        self.start("-o", str(record), "-e", f"trace={','.join(CALLS)}")
        self.lab.until(arrived, "the undisturbed daemon to arrive")
        self.lab.stop(signal.SIGKILL)
        ended = re.compile(rf"^{self.lab.process.pid} +\+\+\+ killed", re.MULTILINE)
        self.lab.until(lambda: ended.search(record.read_text()), "strace to write down the end")
        made: Counter[tuple[str, str]] = Counter()
        points: set[tuple[str, int]] = set()
        begun = False
        for line in record.read_text().splitlines():
            if call := re.match(r"(\d+) +(\w+)\(", line):
                made[call[1], call[2]] += 1
                begun = begun or since.search(line) is not None
                if begun:
                    points.add((call[2], made[call[1], call[2]]))
        return sorted(points)

    def dies_at(self, call: str, n: int, arrived: Callable[[], object]) -> bool:
        """Whether a daemon died before its n-th `call`, or came through."""
        self.start("-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={n}")
        self.lab.until(lambda: self.lab.process.poll() is not None or arrived(), f"the kill at {call} {n}, or the end")
        died = self.lab.process.poll() is not None
        assert not died or self.lab.process.returncode == -signal.SIGKILL
        self.lab.stop(signal.SIGKILL)
        self.lab.until(lambda: not self._worker_lives(), "the worker to die with its daemon")
        return died

    def _worker_lives(self) -> bool:
        parent = f"--parent {self.lab.process.pid} "
        return any(parent in " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))

    def walk(
        self,
        operation: str,
        arrived: Callable[[], object],
        check: Callable[[Bench], None],
        *,
        every: int = 1,
        since: re.Pattern[str] = re.compile(""),
    ) -> None:
        """Kill a daemon at each point, or at every so-many-th, recover, and check."""
        for number, (call, n) in enumerate(self.points(arrived, since)[::every]):
            bench = self.put_back()
            if not self.dies_at(call, n, arrived):
                continue
            tally[operation] += 1
            try:
                if number % REAL_RESTARTS == 0:
                    self.start()
                    self.lab.until(arrived, "the next daemon to arrive")
                    self.lab.stop()
                recover(bench)
                check(bench)
            except BaseException as error:
                error.add_note(f"{operation}, killed before {call} number {n}")
                raise
        assert tally[operation]


@pytest.fixture
def rendering(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Traced:
    """A daemon with its worker, on folders that are there already; pictures are looked into by it alone."""
    monkeypatch.setattr(inbox, "judge", lambda path, kind: None)  # noqa: ARG005  the signature of what it replaces
    tools.require("strace")
    Bench(lab.root, lab.picture).recover()
    return Traced(lab, tmp_path / "template", None)


@pytest.fixture
def traced(rendering: Traced, tmp_path: Path) -> Traced:
    """The same, but its worker never gets ready."""
    stand_in = tmp_path / "stand-in"
    stand_in.mkdir()
    (stand_in / "torch.py").write_text(STAND_IN)
    return replace(rendering, stand_in=stand_in)


def keep(traced: Traced) -> None:
    """Begin each time with what is there now."""
    (traced.lab.root / "content").unlink(missing_ok=True)
    shutil.copytree(traced.lab.root, traced.template)


def test_publish_and_finish(traced: Traced) -> None:
    lab = traced.lab
    bench = Bench(lab.root, lab.picture)
    job = running(bench)
    lifecycle(bench).endings.complete(job, {"video": {"sha256": digest(bench)}})
    keep(traced)

    def check(bench: Bench) -> None:
        check_order(bench)
        assert bench.jobs(State.DONE) == [job]
        assert [path.name for path in bench.outputs.glob("*.mp4")] == [f"{job}.mp4"]
        assert (bench.outputs / f"{job}.mp4").read_bytes() == VIDEO

    traced.walk(
        "publish and finish of the real daemon", lambda: lab.jobs(State.DONE) and not (lab.work / job).exists(), check
    )


@pytest.mark.timeout(1800 if THOROUGH else 300)
def test_intake(traced: Traced) -> None:
    lab = traced.lab
    lab.queue.pause_file.touch()
    lab.drop()
    keep(traced)

    def arrived() -> bool:
        return any((lab.outputs / f"{job}.status.json").exists() for job in lab.jobs(State.PENDING))

    def check(bench: Bench) -> None:
        check_order(bench)
        check_jobs(bench, contents=2)
        assert set(bench.left()) <= {".framepack-daemon/lock"}

    traced.walk("intake of the real daemon", arrived, check, every=EVERY)


@pytest.mark.timeout(3600 if THOROUGH else 600)
def test_claim_and_finish_with_a_real_worker(rendering: Traced) -> None:
    lab = rendering.lab
    lab.drop(frames=5)
    job = Bench(lab.root, lab.picture).take_one()
    keep(rendering)

    def check(bench: Bench) -> None:
        check_order(bench)
        ((state, standing),) = ((state, job) for state in State for job in bench.jobs(state))
        assert standing == job
        assert state in (State.PENDING, State.DONE)
        assert list(places(bench).values()) == [[job]] * 2
        videos = [path.name for path in bench.outputs.glob("*.mp4")]
        assert videos == ([f"{job}.mp4"] if state is State.DONE else [])
        assert not videos or len(lab.frames(job)) == 5

    rendering.walk(
        "claim and finish of the real daemon",
        lambda: lab.jobs(State.DONE) and not (lab.work / job).exists(),
        check,
        every=EVERY_RENDERED,
        since=CLAIM,
    )
