"""A kill storm on a real daemon with real renders: whatever is killed and when, each drop comes out once and whole.

Pairs come in all along, by different writers' ways, and one in five a second time. Meanwhile daemon and worker are
killed at moments that are drawn so that every stage is hit: starting, loading, intake, claiming, rendering, publishing.
Then there is peace, and everything is counted. `FRAMEPACK_TEST_THOROUGH=1` makes it a long storm.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash import THOROUGH, tally
from lab import PATIENCE_SECONDS, QUICK, Lab

from framepack_daemon import atomic
from framepack_daemon.job import Outcome, State

DROPS, KILLS = (200, 100) if THOROUGH else (40, 12)
SEED = 4
FRAMES = 5
TINY = QUICK | {"frames": FRAMES}
RESENT = 5  # every so many pairs, one is sent again
ATTEMPTS = 100  # more than one job can lose here: then every drop has to end in a video
OWN_SCRATCH = {"worker-cpu.log", "mounts.json", "troubles.json"}  # the daemon's own files there
PUBLISHED = (".mp4", ".poster.jpg", ".status.json")  # what is in outputs of a job that is done

# Where a kill is aimed at, and the seconds after that moment among which it is drawn.
STAGES = {"starting": 0.8, "loading": 4.0, "intake": 0.05, "claiming": 0.05, "rendering": 0.5, "publishing": 0.02}
WITHOUT_WORKER = ("starting", "intake")  # there, only a kill of the daemon tells something
LOOK_SECONDS = 0.002  # between two looks for a moment; the shortest stages last some ten of it


class Writer(threading.Thread):
    """Sends pairs into the inbox, one after the other, as different programs do."""

    def __init__(self, lab: Lab, seed: int) -> None:
        super().__init__(daemon=True)
        self.stems: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lab = lab
        self._chance = random.Random(seed)
        self._sent: set[str] = set()

    def run(self) -> None:
        while (stem := self.stems.get()) is not None:
            names = [f"{stem}.png", f"{stem}.json"]
            self._chance.shuffle(names)
            # What is sent again is moved in: two writers in one file would be another test.
            way = self._move if stem in self._sent else self._chance.choice((self._copy, self._trickle, self._move))
            for name in names:
                way(self._lab.inbox / name, self._content(name))
            self._sent.add(stem)

    def _content(self, name: str) -> bytes:
        if name.endswith(".png"):
            return self._lab.picture.read_bytes()
        return json.dumps(TINY | {"seed": int(name[-8:-5])}).encode()

    def _copy(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)

    def _trickle(self, path: Path, content: bytes) -> None:
        with path.open("wb", buffering=0) as stream:
            for begin in range(0, len(content), max(len(content) // 5, 1)):
                stream.write(content[begin : begin + max(len(content) // 5, 1)])
                time.sleep(0.02)

    def _move(self, path: Path, content: bytes) -> None:
        aside = self._lab.root / path.name
        aside.write_bytes(content)
        aside.rename(path)


class Storm:
    """Kills a lab's daemon and its worker, and keeps count of what that may cost."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.chance = random.Random(seed)
        self.hits: Counter[str] = Counter()  # victims and stages
        self.left: Counter[str] = Counter()  # what dead daemons left half done
        self._charged: Counter[str] = Counter()  # attempts that each job may have lost so far
        self._log = lab.root / "daemon.log"
        self._read = 0  # bytes of the log
        self._news: list[str] = []  # names of the events since the last kill
        self._worker = 0

    def launch(self) -> None:
        """Start a daemon, and wait for nothing."""
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "framepack_daemon", "run"]
            self.lab.process = subprocess.Popen(
                command, env=self.lab.environment(max_attempts=ATTEMPTS, threads=1), stderr=log
            )

    def kill(self, stage: str) -> None:
        """Kill the daemon or its worker in or soon after that stage; a daemon runs again afterwards."""
        victim = "daemon" if stage in WITHOUT_WORKER else self.chance.choice(("daemon", "worker"))
        self._await(stage)
        time.sleep(self.chance.uniform(0, STAGES[stage]))
        self.hits[f"{victim} while {stage}"] += 1
        tally["kill storm"] += 1
        self.follow()
        self._news.clear()
        if victim == "worker" and self._kill_worker():
            self.lab.until(lambda: "worker_died" in self.follow(), "the worker's death to be noticed")
            del self._news[: self._news.index("worker_died")]  # the next one may have started already
        else:
            self._kill_daemon()
            self._news.clear()
            self.launch()

    def _await(self, stage: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not self._is_in(stage):
            assert time.monotonic() < end, f"never {stage}"
            time.sleep(LOOK_SECONDS)

    def _is_in(self, stage: str) -> bool:
        news = self.follow()
        match stage:
            case "starting":
                return True
            case "loading":
                return "worker_started" in news
            case "intake":
                return any(self.lab.queue.building.iterdir()) or "job_submitted" in news
            case "claiming":
                return "job_done" in news
            case "rendering":
                return "job_claimed" in news
        jobs = self.lab.queue.names(State.PROCESSING)
        return any(self.lab.queue.has_outcome(State.PROCESSING, job) for job in jobs) or "job_done" in news

    def _kill_worker(self) -> bool:
        if not self._worker:
            return False
        try:
            os.kill(self._worker, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def _kill_daemon(self) -> None:
        assert self.lab.process is not None
        self.lab.process.kill()
        self.lab.process.wait()
        worker, self._worker = self._worker, 0
        self.follow()
        worker = self._worker or worker
        self.lab.until(lambda: not Path(f"/proc/{worker}").exists(), "the worker to die with its daemon")
        self._worker = 0
        self._look_around()

    def _look_around(self) -> None:
        """See what the dead daemon left half done; a job that was not rendered loses an attempt."""
        self.left["a drop on its way in"] += len(list(self.lab.queue.building.iterdir()))
        self.left["a hidden file in outputs"] += len(list(self.lab.outputs.glob(".*")))
        for job in self.lab.queue.names(State.PROCESSING):
            rendered = self.lab.queue.has_outcome(State.PROCESSING, job)
            self.left["a job with its outcome" if rendered else "a job without one"] += 1
            self._charged[job] += not rendered

    def follow(self) -> list[str]:
        """Read on in the log, and see that no job was charged with more than the kills cost it; the news."""
        for event in self._events():
            self._news.append(event["event"])
            match event["event"]:
                case "worker_started":
                    self._worker = event["pid"]
                case "worker_died":
                    self._worker = 0
                    self._charged[event["job"]] += 1
                case "job_claimed":
                    assert event["attempt"] <= 1 + self._charged[event["job"]], event
        return self._news

    def _events(self) -> Iterator[dict[str, Any]]:
        with self._log.open("rb") as stream:
            stream.seek(self._read)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            assert line.startswith("{"), f"not an event: {line}"
            yield json.loads(line)


def _sendings(chance: random.Random) -> list[str]:
    """The stems in the order in which they are sent."""
    stems = [f"shot-{number:03}" for number in range(DROPS)]
    order = list(stems)
    for stem in stems[::RESENT]:
        order.insert(chance.randint(order.index(stem) + 1, len(order)), stem)
    return order


@pytest.mark.timeout(7200 if THOROUGH else 600)
def test_each_drop_comes_out_once_and_whole(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    storm, writer = Storm(lab, SEED), Writer(lab, SEED)
    order = _sendings(storm.chance)
    stages = [stage for _, stage in zip(range(KILLS), _forever(list(STAGES)), strict=False)]
    storm.chance.shuffle(stages)
    writer.start()
    storm.launch()
    storm.lab.until(lab.queue.building.exists, "the daemon's first folders")
    for number, stage in enumerate(stages):
        for stem in order[number * len(order) // KILLS : (number + 1) * len(order) // KILLS]:
            writer.stems.put(stem)
        storm.kill(stage)
    writer.stems.put(None)
    writer.join()

    _wait_while(lambda: len(lab.jobs(State.DONE)), lab)
    storm.follow()
    assert lab.stop() == 0
    _check_outcomes(lab)
    _check_leftovers(lab)
    assert "Traceback" not in (lab.root / "daemon.log").read_text()
    with capsys.disabled():
        print(f"\n{DROPS} drops, {KILLS} kills: {dict(sorted(storm.hits.items()))}; left: {dict(storm.left)}")  # noqa: T201


def _forever(items: list[str]) -> Iterator[str]:
    while True:
        yield from items


def _wait_while(count: Callable[[], int], lab: Lab) -> None:
    """Wait for all drops to be done, as long as there is headway."""
    before = -1
    while before < count() < DROPS:
        before = count()
        lab.until(lambda: count() > before, f"job {before + 1}")  # noqa: B023  waited for in this turn
    lab.until(lambda: not lab.jobs(State.PROCESSING) + _dropped(lab), "the last repeats")


def _dropped(lab: Lab) -> list[str]:
    return [path.name for path in lab.inbox.iterdir() if path.is_file()]


def _check_outcomes(lab: Lab) -> None:
    jobs = lab.jobs(State.DONE)
    assert [job.rpartition("-")[0] for job in jobs] == [f"shot-{number:03}" for number in range(DROPS)]
    for job in jobs:
        outcome = atomic.read_json(lab.queue.path(State.DONE, job) / "outcome.json")
        assert outcome is not None
        assert outcome["outcome"] == Outcome.COMPLETED
        assert outcome["video"]["file"] == f"{job}.mp4"
        assert outcome["video"]["sha256"] == atomic.digest(lab.outputs / f"{job}.mp4")[1]
        assert len(lab.frames(job)) == FRAMES
        assert lab.status(job)["state"] == State.DONE
    for state in (State.PENDING, State.PROCESSING, State.FAILED):
        assert lab.jobs(state) == []


def _check_leftovers(lab: Lab) -> None:
    """Every name, hidden or not, in the folders is one that belongs there."""
    jobs = lab.jobs(State.DONE)
    outputs = {f"{job}{suffix}" for job in jobs for suffix in PUBLISHED}
    assert {path.name for path in lab.outputs.iterdir()} == outputs
    assert _names(lab.inbox) == {".framepack-daemon", ".framepack-daemon/lock"}
    assert _names(lab.work) <= OWN_SCRATCH
    records = {"run.json", "outcome.json", "job.json"}
    for job in jobs:
        stem = job.rpartition("-")[0]
        assert _names(lab.queue.path(State.DONE, job)) == records | {f"{stem}.png", f"{stem}.json"}
    assert {path.name for path in lab.queue.root.iterdir()} == {".lock", ".building", ".trash", *State}
    assert not any(_names(folder) for folder in (lab.queue.building, lab.queue.trash))


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
