"""What the spool's steps cost: the daemon's own objects in a process of their own, with a stand-in for the worker.

    python benchmarks/spool_ours.py STEP FOLDER COUNT [MILLISECONDS]

Each step prints one JSON object. `take` enters drops; `run` claims and finishes jobs through the daemon's loop;
`restart` waits for a line on its input and then for the first claim; `scan` looks at an inbox of lone files, and has
watchdog look at it. A bare step follows each of ours, so that what else the machine does meets both. With milliseconds
each sync takes so much longer, ours and the bare ones, as on a slower disk. Between two `stat` of a path called
`/mark-…`, strace sees what belongs to a measured part.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import structlog
from spool_bare import Bare
from spool_tree import Tree, door_of
from watchdog.utils.dirsnapshot import DirectorySnapshot, DirectorySnapshotDiff

from framepack_daemon.daemon import Daemon
from framepack_daemon.endings import Endings
from framepack_daemon.lifecycle import Lifecycle
from framepack_daemon.scratch import POSTER, VIDEO
from framepack_daemon.signals import Signals
from framepack_daemon.spool.calm import STAMP_SECONDS
from framepack_daemon.startup import take_folders
from framepack_daemon.workers.channel import Message
from framepack_daemon.workers.pool import Phase, Worker

VIDEO_BYTES = os.urandom(8000)  # about what five frames of 64x64 take
POSTER_BYTES = os.urandom(2000)
SCANS = 5


def mark(name: str) -> None:
    """Show strace where a part begins."""
    with suppress(FileNotFoundError):
        os.stat(f"/mark-{name}")  # noqa: PTH116  exactly one call


class StandIn(Worker):
    """A worker whose video is finished as soon as it is asked for."""

    def __init__(self, measured: Measured, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._measured = measured
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._descriptor

    def ensure_started(self) -> None:
        """Be ready at once."""
        if self.phase is Phase.DOWN:
            self.phase = Phase.IDLE

    def start(self, job: str, **fields: Any) -> None:
        """Write the files that a worker would leave."""
        self.job, self.stopping, self.phase = job, False, Phase.BUSY
        scratch = Path(fields["scratch"])
        scratch.mkdir(parents=True)
        (scratch / VIDEO).write_bytes(VIDEO_BYTES)
        (scratch / POSTER).write_bytes(POSTER_BYTES)
        os.eventfd_write(self._descriptor, 1)
        self._measured.started()

    def receive(self) -> list[Message]:
        """Say that the job is rendered."""
        if self.job is None:
            return []
        os.eventfd_read(self._descriptor)
        job, self.job, self.phase = self.job, None, Phase.IDLE
        facts = {"sha256": hashlib.sha256(VIDEO_BYTES).hexdigest(), "frames": 5, "width": 64, "height": 64}
        rest: dict[str, Any] = {name: {} for name in ("timings", "memory", "model", "versions")}
        return [{"event": "rendered", "job": job, "video": facts, "device": "none", **rest}]

    def stop_job(self) -> None:
        """There is nothing to stop."""

    def kill(self) -> None:
        """There is nothing to kill."""

    close = kill


class Measured(Daemon):
    """The daemon with stand-ins for its workers; it ends when so many jobs are through."""

    def __init__(self, tree: Tree, between: Callable[[], None] = lambda: None) -> None:
        """Call `between` after each start."""
        self.starts: list[float] = []
        self._jobs = 0
        self._between = between
        self._asked = Signals(hangup_reloads=False)
        self._folders = tree.settings()
        super().__init__(*tree.parts(self._asked))
        names = ("models_dir", "loras_dir", "log")
        nothing: dict[str, Any] = dict.fromkeys(names, Path("/nonexistent")) | dict.fromkeys(("threads", "limits"))
        self._workers[:] = [StandIn(self, device="cpu", model="tiny", memory="auto", preservation=0.0, **nothing)]

    def started(self) -> None:
        """Hear that a job was started, and that the one before is through."""
        self.starts.append(time.monotonic())
        if len(self.starts) > self._jobs:
            self._asked.stops = 1
            self.wake()
        else:
            self._between()

    def serve(self, jobs: int) -> float:
        """Run until so many jobs are through; seconds from the first claim to the one after the last."""
        self.starts, self._jobs = [], jobs
        with ExitStack() as held:
            self.run(take_folders(self._folders, held))
        return self.starts[-1] - self.starts[0]

    def scan(self) -> int:
        """One scan of the inbox; the drops that it found."""
        return len(self._inbox.scan().drops)


class Stopwatch:
    """Seconds spent in calls of methods, by parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: type, name: str, part: str) -> None:
        """Count the time in this method to a part."""
        method: Callable[..., Any] = getattr(owner, name)
        self.seconds.setdefault(part, 0.0)

        def timed(*arguments: Any, **named: Any) -> Any:
            mark(part)
            started = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds[part] += time.perf_counter() - started
                mark("end")

        setattr(owner, name, timed)


def slow_down(seconds: float) -> None:
    """Have each sync take so much longer."""
    sync = os.fsync

    def slow(descriptor: int) -> None:
        sync(descriptor)
        time.sleep(seconds)

    os.fsync = slow  # type: ignore[assignment]


def seconds_of(action: Callable[[], Any]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def marked(part: str, action: Callable[[], Any]) -> float:
    """The same, with marks around it."""
    mark(part)
    took = seconds_of(action)
    mark("end")
    return took


def take(tree: Tree, count: int) -> dict[str, Any]:
    """Seconds per drop of scanning and judging, of the door, and of the bare loop."""
    daemon, bare = Measured(tree), Bare(tree, count)
    door = door_of(daemon)
    judging, ours, limit, done = 0.0, 0.0, 0.0, 0
    for number in range(count):
        tree.drop(f"drop{number}", seed=10**6 + number)
    while done < count:
        started = time.perf_counter()
        drops = daemon._inbox.scan().drops  # noqa: SLF001
        judging += time.perf_counter() - started
        for drop in drops:
            ours += marked("take", lambda drop=drop: door.add(drop))
            limit += marked("bare-take", bare.take)
            done += 1
    return {"judge": judging / count, "take": ours / count, "bare_take": limit / count}


def run(tree: Tree, count: int) -> dict[str, Any]:
    """Seconds per job of claim, finish and the rest of the loop, and of the bare loops."""
    watch, bare = Stopwatch(), Bare(tree, count)
    watch.watch(Lifecycle, "start_next", "claim")
    watch.watch(Endings, "complete", "finish")
    watch.watch(Endings, "settle", "finish")
    watch.watch(StandIn, "start", "stand_in")
    watch.watch(Bare, "claim", "bare-claim")
    watch.watch(Bare, "finish", "bare-finish")
    daemon = Measured(tree, lambda: bare.finish(bare.claim(), VIDEO_BYTES, POSTER_BYTES))
    total = daemon.serve(count)
    seconds = {name: spent / count for name, spent in watch.seconds.items()}
    return {
        "claim": (watch.seconds["claim"] - watch.seconds["stand_in"]) / len(daemon.starts),
        "finish": seconds["finish"],
        "job": total / count - seconds["stand_in"],
        "bare_claim": seconds["bare-claim"],
        "bare_finish": seconds["bare-finish"],
    }


def restart(tree: Tree, _: int) -> dict[str, Any]:
    """Seconds from the daemon's start to its first claim."""
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    daemon = Measured(tree)
    daemon.serve(1)
    return {"first_claim": daemon.starts[0] - started}


def scan(tree: Tree, _: int) -> dict[str, Any]:
    """Seconds of the first scan of an inbox of lone files, of later ones, also at rest, and of watchdog's polling."""
    daemon = Measured(tree)
    first = seconds_of(daemon.scan)
    daemon.scan()
    mark("scan")
    later = statistics.median(seconds_of(daemon.scan) for _ in range(SCANS))
    mark("end")
    time.sleep(STAMP_SECONDS)
    daemon.scan()
    mark("calm")
    calm = statistics.median(seconds_of(daemon.scan) for _ in range(SCANS))
    mark("end")

    def snapshot() -> DirectorySnapshot:
        return DirectorySnapshot(str(tree.inbox), recursive=False)

    before = snapshot()
    mark("watchdog")
    polling = statistics.median(seconds_of(lambda: DirectorySnapshotDiff(before, snapshot())) for _ in range(SCANS))
    mark("end")
    return {"scan_first": first, "scan": later, "calm": calm, "watchdog": polling}


STEPS = {"take": take, "run": run, "restart": restart, "scan": scan}


def main() -> None:
    """Do one step."""
    step, folder, count, *milliseconds = sys.argv[1:]
    if milliseconds:
        slow_down(float(milliseconds[0]) / 1000)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    tree = Tree(Path(folder))
    print(json.dumps(STEPS[step](tree, int(count))))


if __name__ == "__main__":
    main()
