"""A crash at every durable operation of intake, moves and publishing: what a restart makes of each.

A forked child does the work and dies before or after its n-th rename, sync, removal or write; the parent then recovers
as a daemon does at its start. Every n is tried until the work comes through.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spool_bench import Bench

from framepack_daemon import atomic
from framepack_daemon.job import State
from framepack_daemon.spool import moves

OTHER_FILE_SYSTEM = Path("/dev/shm")
DIED = 77
MAX_POINTS = 300


def dies_at(point: int, work: Callable[[], object]) -> bool:
    """Do `work` in a forked child that dies at the `point`-th durable operation; whether it died."""
    child = os.fork()
    if child == 0:
        _arm(point)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == DIED


def _arm(point: int) -> None:
    """Have this process die before (even points) or after (odd points) the n-th operation that a restart can see."""
    left = [point]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                os._exit(DIED)
            left[0] -= 1
            result = function(*args, **kwargs)
            if left[0] == 0:
                os._exit(DIED)
            left[0] -= 1
            return result

        return called

    atomic._rename_without_replacing = deadly(atomic._rename_without_replacing)
    for name in ("fsync", "unlink", "rename", "replace", "rmdir", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))


def drops(bench: Bench) -> dict[str, set[str]]:
    """Where each dropped file name is: in the inbox, or in which jobs."""
    found: dict[str, set[str]] = {}
    for name in bench.left():
        if not name.startswith("."):
            found.setdefault(name, set()).add("inbox")
    for state in State:
        for job in bench.queue.names(state):
            for name in bench.files(state, job) & {"beach.png", "beach.json"}:
                found.setdefault(name, set()).add(job)
    return found


def recover(bench: Bench) -> None:
    """What a daemon does at its start, and its first scan."""
    bench.keeper.seen.clear()
    bench.keeper.recover(bench.scanner.folders())
    bench.take()


@pytest.mark.parametrize("variations", [1, 2])
@pytest.mark.parametrize("device", ["same", "other"])
def test_intake(tmp_path: Path, picture: Path, variations: int, device: str) -> None:
    queue = OTHER_FILE_SYSTEM / f"framepack-crash-{os.getpid()}" if device == "other" else None
    for point in range(MAX_POINTS):
        bench = Bench(tmp_path / str(point), picture, queue=queue)
        bench.drop(variations=variations)
        died = dies_at(point, bench.take)
        recover(bench)
        jobs = bench.jobs(State.PENDING)
        assert len(jobs) == variations, point
        assert drops(bench) == {"beach.png": set(jobs), "beach.json": set(jobs)}, point
        for job in jobs:
            folder = bench.queue.path(State.PENDING, job)
            run = bench.queue.run(State.PENDING, job)
            assert run is not None
            assert all(atomic.digest(folder / item.name) == (item.bytes, item.sha256) for item in run.files), point
            assert bench.status(job)["state"] == "pending"
        assert not list(bench.queue.building.iterdir()), point
        shutil.rmtree(bench.root)
        if queue:
            shutil.rmtree(queue)
        if not died:
            break
    assert not died
    assert point > 20
    print(f"{point} crash points")  # noqa: T201  the count is what the reliability page tells


def test_a_known_drop_is_consumed_or_still_there(tmp_path: Path, picture: Path) -> None:
    for point in range(MAX_POINTS):
        bench = Bench(tmp_path / str(point), picture)
        bench.drop()
        job = bench.take_one()
        bench.drop()
        died = dies_at(point, bench.take)
        recover(bench)
        assert bench.jobs(State.PENDING) == [job]
        assert bench.jobs(State.FAILED) == []
        assert bench.left() == []
        if not died:
            break
    assert not died


@pytest.mark.parametrize("act", ["cancel", "interrupt", "remove"])
def test_moves(tmp_path: Path, picture: Path, act: str) -> None:
    for point in range(MAX_POINTS):
        bench = Bench(tmp_path / str(point), picture)
        bench.drop()
        job = bench.take_one()
        bench.queue.move(job, State.PENDING, State.PROCESSING)
        died = dies_at(point, lambda: getattr(moves, act)(bench.queue, job))  # noqa: B023  done before the next turn
        recover(bench)
        places = [state for state in State if job in bench.queue.names(state)]
        assert len(places) <= 1
        assert places or act == "remove"
        assert not list(bench.queue.trash.iterdir())
        if not died:
            break
    assert not died


def test_publishing(tmp_path: Path, picture: Path) -> None:
    for point in range(MAX_POINTS):
        bench = Bench(tmp_path / str(point), picture)
        bench.drop()
        job = bench.take_one()
        bench.queue.move(job, State.PENDING, State.PROCESSING)
        scratch = bench.work / job
        scratch.mkdir()
        (scratch / "video.mp4").write_bytes(b"video")
        (scratch / "poster.jpg").write_bytes(b"poster")
        result = {"video": {"sha256": atomic.digest(scratch / "video.mp4")[1]}}

        def publish(bench: Bench = bench, job: str = job, result: dict[str, Any] = result) -> None:
            bench.publisher.record(job, result)
            bench.publisher.finish(job)

        died = dies_at(point, publish)
        bench.keeper.seen.clear()
        bench.keeper.recover(bench.scanner.folders())
        if bench.queue.state_of(job) is State.PROCESSING:
            bench.publisher.finish(job)
        if bench.queue.state_of(job) is State.PENDING:
            # It died before the outcome was written: the video is still in scratch, for the worker to give it back.
            assert (scratch / "video.mp4").read_bytes() == b"video"
            assert not list(bench.outputs.glob("*.mp4"))
        else:
            assert bench.jobs(State.DONE) == [job]
            assert (bench.outputs / f"{job}.mp4").read_bytes() == b"video"
            assert bench.status(job)["state"] == "done"
        assert not [path for path in bench.outputs.iterdir() if path.name.startswith(".")]
        if not died:
            break
    assert not died
    assert point > 20


def test_a_rename_that_was_done_but_reported_an_error_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("x")

    def lying(old: Path, new: Path) -> None:
        old.rename(new)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(atomic, "_rename_without_replacing", lying)
    atomic.move(source, target)
    assert target.read_text() == "x"


def test_a_move_never_replaces(tmp_path: Path) -> None:
    for kind in ("file", "folder"):
        source, target = tmp_path / f"{kind}-a", tmp_path / f"{kind}-b"
        for path in (source, target):
            path.write_text(path.name) if kind == "file" else path.mkdir()
        with pytest.raises(FileExistsError):
            atomic.move(source, target)
        assert source.exists()


def test_the_fallback_of_a_file_system_without_exclusive_rename_never_replaces_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old:
        """A C library on a file system that does not know the flag."""

        @staticmethod
        def renameat2(*_: object) -> int:
            ctypes.set_errno(22)
            return -1

    monkeypatch.setattr(atomic, "_libc", Old)
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    with pytest.raises(FileExistsError):
        atomic.move(source, target)
    target.rmdir()
    atomic.move(source, target)
    assert target.is_dir()
