"""Crashes on purpose: work that dies at one operation after the other, and what has to hold after each recovery.

`Crashes.at_every_point` has a forked child do the work and die before its n-th operation that a restart can see, or in
the middle of a write; the parent recovers as a daemon does at its start, and checks. The moment after an operation is
the one before the next, so that no moment is left out, and none counted twice. Below it, what such tests begin with.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import json
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, NoReturn, TypeVar

from spool_bench import Bench

from framepack_daemon import atomic
from framepack_daemon.endings import Endings
from framepack_daemon.job import LATENTS_FILE, OUTCOME_FILE, OWN_FILES, REQUEST_FILE, State
from framepack_daemon.lifecycle import Lifecycle

DIED, RAISED = 77, 78  # exit codes of the child
THOROUGH = os.environ.get("FRAMEPACK_TEST_THOROUGH") == "1"  # every point also where that takes long
# Where the daemon keeps things under hidden names; what else is hidden is a leftover.
OWN_FOLDERS = frozenset({".building", ".trash", ".lock", ".framepack-daemon"})

T = TypeVar("T")
VIDEO = b"video"  # what a worker has rendered, where nobody looks into it
tally: Counter[str] = Counter()  # crash points tried, by operation


class Reaper:
    """Ends this process at the n-th point; patched into everything that changes what a restart finds."""

    CALLS = ("fsync", "unlink", "remove", "rename", "replace", "rmdir", "mkdir", "link", "symlink", "chmod", "truncate")

    def __init__(self, point: int, last_words: int) -> None:
        self._left = point
        self._last_words = last_words

    def arm(self) -> None:
        """Patch this process, a child that will not live long."""
        for name in (*self.CALLS, "ftruncate", "pwrite"):
            setattr(os, name, self._deadly(name, getattr(os, name)))
        os.open = self._deadly("open", os.open, _makes_a_file)
        io.open = builtins.open = self._torn(io.open)
        atomic._libc = _Library(self._deadly("renameat2", atomic._libc.renameat2))  # type: ignore[assignment]

    def _pass(self) -> bool:
        """Whether this is the point to die at."""
        self._left -= 1
        return self._left == -1

    def die(self, what: str) -> NoReturn:
        os.write(self._last_words, what.encode(errors="surrogateescape"))
        os._exit(DIED)

    def _deadly(
        self, name: str, function: Callable[..., Any], counts: Callable[..., Any] = lambda *_, **__: True
    ) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if counts(*args, **kwargs) and self._pass():
                self.die(f"{name}{args}")
            return function(*args, **kwargs)

        return called

    def _torn(self, function: Callable[..., Any]) -> Callable[..., Any]:
        reaper = self

        class Torn(io.BufferedWriter):
            def write(self, data: Any) -> int:
                if reaper._pass():
                    super().write(bytes(data)[: len(data) // 2])
                    self.flush()
                    reaper.die(f"half of a write to {self.raw.name}")
                return super().write(data)

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode not in ("wb", "xb"):
                return function(file, mode, *args, **kwargs)
            if not isinstance(file, int) and self._pass():
                self.die(f"open({file})")
            return Torn(io.FileIO(file, mode))

        return opened


def _makes_a_file(_path: Any, flags: int, *_: Any, **__: Any) -> bool:
    return bool(flags & (os.O_CREAT | os.O_TRUNC))


class _Library:
    """What is used of the C library."""

    def __init__(self, renameat2: Callable[..., int]) -> None:
        self.renameat2 = renameat2


def dies_at(point: int, work: Callable[[], object]) -> str:
    """Do `work` in a forked child that dies at that point; before what it died, empty when it came through."""
    hearing, last_words = os.pipe()
    child = os.fork()
    if child == 0:
        code = RAISED
        with contextlib.suppress(BaseException):
            try:
                Reaper(point, last_words).arm()
                work()
                code = 0
            except BaseException:  # noqa: BLE001  whatever it is, the parent tells it
                os.write(last_words, traceback.format_exc().encode())
        os._exit(code)
    os.close(last_words)
    with os.fdopen(hearing, "rb") as stream:
        said = stream.read().decode(errors="surrogateescape")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, DIED), said
    return said or ("died" if code == DIED else "")


@dataclass(frozen=True)
class Crashes(Generic[T]):
    """An operation that is to survive a crash anywhere: what prepares it, does it, recovers from it, and checks."""

    operation: str  # under which its points are counted
    prepare: Callable[[], T]
    work: Callable[[T], object]
    check: Callable[[T], object]
    recover: Callable[[T], object]

    def at_every_point(self, *, again: int = 0, every: int = 1) -> None:
        """Have the work die at one point after the other, recover and check, until it comes through.

        Where the work goes a way that another one goes too, at every so-many-th point alone. After every `again`-th
        crash the recovery dies at each of its points too. With `THOROUGH`, it is each point and each crash.
        """
        for point in itertools.count(step=1 if THOROUGH else every):
            if not self._crash(point):
                break
            tally[self.operation] += 1
            if again and (THOROUGH or point % again == 0):
                self._crash_again(point)
        assert point > 0, "nothing was done"

    def _crash(self, point: int) -> str:
        made = self.prepare()
        died = dies_at(point, lambda: self.work(made))
        with _told(f"{self.operation}, point {point}: {died}"):
            self.recover(made)
            self.check(made)
        return died

    def _crash_again(self, point: int) -> None:
        """Crash at that point, then in the recovery at each of its points, and recover from that."""
        for second in itertools.count():
            made = self.prepare()
            first_died = dies_at(point, lambda: self.work(made))  # noqa: B023  done before the next turn
            died = dies_at(second, lambda: self.recover(made))  # noqa: B023
            with _told(f"{self.operation}, point {point}: {first_died}; point {second} of recovery: {died}"):
                self.recover(made)
                self.check(made)
            if not died:
                return
            tally["recovery"] += 1


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Adds to whatever is raised at which point it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(where)
        raise


def restarted(bench: Bench) -> Bench:
    """The same folders in the hands of the next daemon, which remembers nothing."""
    return Bench(bench.root, bench.picture, bench.scanner.timing, queue=bench.queue.root)


def lifecycle(bench: Bench) -> Lifecycle:
    """What claims and ends the jobs of a bench, without a worker."""
    endings = Endings(bench.queue, bench.keeper, bench.publisher, bench.writer, bench.previews, bench.work)
    return Lifecycle(bench.queue, bench.keeper, endings, bench.writer, bench.previews, bench.work, max_attempts=3)


def recover(bench: Bench) -> None:
    """What a daemon does at its start and in its first turn: recovery, a scan, and the ends of what has an outcome."""
    bench = restarted(bench)
    bench.recover()
    bench.take()
    lifecycle(bench).endings.settle()
    bench.keeper.tidy(frozenset())


def waiting(bench: Bench, **changes: Any) -> str:
    """A pending job, as the keeper knows it."""
    bench.drop()
    job = bench.take_one()
    run = bench.queue.run(State.PENDING, job)
    bench.queue.save_run(State.PENDING, replace(run, **changes))
    bench.keeper.tidy(frozenset())
    return job


def claim(bench: Bench) -> None:
    """What a daemon does with a job that waits, up to the worker."""
    bench.keeper.tidy(frozenset())
    living = lifecycle(bench)
    for job in bench.jobs(State.PENDING):
        living._claim(job)
    living.endings.settle()


def running(bench: Bench, **changes: Any) -> str:
    """A job in `processing/` that a worker has finished: its results are in scratch, a preview in outputs."""
    job = waiting(bench, **changes)
    lifecycle(bench)._claim(job)
    scratch = bench.work / job
    scratch.mkdir()
    for name in ("video.mp4", "poster.jpg", "animation.gif", LATENTS_FILE):
        (scratch / name).write_bytes(VIDEO)
    for name in ("preview.mp4", "step.jpg"):
        (bench.outputs / f"{job}.{name}").write_bytes(b"of while it ran")
    bench.writer.write(job, State.PROCESSING)
    return job


def ended(bench: Bench, state: State) -> str:
    """A job that is done and kept what another needs to continue it, or that failed."""
    job = running(bench)
    endings = lifecycle(bench).endings
    if state is State.DONE:
        endings.complete(job, {"video": {"sha256": digest(bench), "width": 80, "height": 64}})
    else:
        endings.fail(job, {"message": "its worker died"})
    endings.settle()
    assert bench.jobs(state) == [job]
    bench.keeper.tidy(frozenset())
    return job


def digest(bench: Bench, content: bytes = VIDEO) -> str:
    """SHA-256 of a content, in hex."""
    path = bench.root / "content"
    path.write_bytes(content)
    return atomic.digest(path)[1]


def places(bench: Bench) -> dict[str, list[str]]:
    """Where each content that a user wrote is, by its SHA-256: names in the inbox, and ids of jobs."""
    found: dict[str, list[str]] = {}
    for path in sorted(bench.inbox.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(bench.inbox).parts):
            found.setdefault(atomic.digest(path)[1], []).append(path.name)
    for state in State:
        for job in bench.jobs(state):
            for path in sorted(bench.queue.path(state, job).iterdir()):
                if path.name not in OWN_FILES and not path.name.startswith((".", "continued", "outcome")):
                    found.setdefault(atomic.digest(path)[1], []).append(job)
    return found


def check_order(bench: Bench) -> None:
    """What holds after every recovery, whatever went before: each job once, its records whole, nothing half done."""
    hidden = [
        str(path.relative_to(bench.root if path.is_relative_to(bench.root) else bench.queue.root))
        for root in (bench.inbox, bench.queue.root, bench.outputs)
        for path in root.rglob(".*")
        if path.name not in OWN_FOLDERS
    ]
    assert not hidden, "left under hidden names"
    assert not list(bench.queue.building.iterdir())
    assert not list(bench.queue.trash.iterdir())
    beside = bench.inbox / ".framepack-daemon"
    assert not beside.exists() or not [path for path in beside.iterdir() if path.name != "lock"]
    standing = [job for state in State for job in bench.jobs(state)]
    assert len(standing) == len(set(standing)), "a job stands twice"
    for state in State:
        for job in bench.jobs(state):
            _check_job(bench, state, job)
    for path in bench.outputs.iterdir():
        assert path.stat().st_size, f"{path.name} is empty"
    assert {path.name for path in bench.work.iterdir() if path.is_dir()} <= {
        *bench.jobs(State.PENDING),
        *bench.jobs(State.PROCESSING),
    }, "scratch of a job that has ended"


def _check_job(bench: Bench, state: State, job: str) -> None:
    folder, run = bench.queue.path(state, job), bench.queue.run(state, job)
    assert run is not None, f"{job} has no record"
    status = bench.status(job)
    if state is State.PENDING:
        assert json.loads((folder / REQUEST_FILE).read_text())["seed"] >= 0
        assert all(atomic.digest(folder / item.name) == (item.bytes, item.sha256) for item in run.files)
        assert not (folder / OUTCOME_FILE).exists()
    if state in (State.DONE, State.FAILED):
        outcome = json.loads((folder / OUTCOME_FILE).read_text())
        assert (status["outcome"], status["finished_at"]) == (outcome["outcome"], outcome["finished_at"])
    assert status["state"] == state
    assert status["preview"] is None or (bench.outputs / status["preview"]).exists()


def check_jobs(bench: Bench, *, jobs: int = 1, contents: int) -> None:
    """So many jobs wait, and so many contents lie in one of them each."""
    check_order(bench)
    pending = bench.jobs(State.PENDING)
    where = [job for found in places(bench).values() for job in found]
    assert sorted(set(where)) == pending
    assert (len(pending), len(where)) == (jobs, contents)
