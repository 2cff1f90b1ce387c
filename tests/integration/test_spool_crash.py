"""A crash at every durable operation of intake, moves and publishing: what a restart makes of each.

A forked child does the work and dies before or after its n-th rename, sync, removal or write; the parent then recovers
as a daemon does at its start. Every n is tried until the work comes through.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from spool_bench import SIDECAR, Bench
from videos import write_video

from framepack_daemon import atomic
from framepack_daemon.errors import DropError
from framepack_daemon.job import Role, State, stored_name
from framepack_daemon.spool import moves
from framepack_daemon.spool.capture import Source, signature
from framepack_daemon.spool.drop import Drop, Part
from framepack_daemon.spool.groups import groups
from framepack_daemon.spool.names import Kind

OTHER_FILE_SYSTEM = Path("/dev/shm")
DIED = 77
MAX_POINTS = 300
PAIR = ("beach.png", "beach.json")


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
            for name in bench.files(state, job) & {"beach.png", "beach.json", "more.json", "more.mp4"}:
                found.setdefault(name, set()).add(job)
    return found


def found(bench: Bench, stem: str = "beach") -> list[Drop]:
    """What a scan of the drop folder gives, without looking into the files: that is tested elsewhere and takes long."""
    members = [group.members for group in groups(bench.inbox) if group.stem == stem]
    roles = {Kind.IMAGE: Role.IMAGE, Kind.SIDECAR: Role.SIDECAR, Kind.VIDEO: Role.VIDEO}
    drops = []
    for group in members:
        parts = []
        for name, read in group:
            look = signature(bench.inbox / name)
            assert look is not None
            parts.append(Part(roles[read.kind], name, Source(bench.inbox / name, stored_name(name), look)))
        drops.append(Drop(stem, tuple(parts), folder=bench.inbox))
    return drops


def take(bench: Bench, refusal: DropError | None = None, names: tuple[str, ...] = PAIR) -> None:
    """Enter what lies in the drop folder, as good or as refused."""
    for drop in found(bench, names[0].partition(".")[0]):
        assert {part.name for part in drop.parts} == set(names), "a drop was torn apart"
        bench.door.add(replace(drop, refusal=refusal))


def recover(bench: Bench, refusal: DropError | None = None, names: tuple[str, ...] = PAIR) -> None:
    """What a daemon does at its start, and its first scan."""
    bench.keeper.seen.clear()
    bench.keeper.recover(bench.scanner.folders())
    take(bench, refusal, names)


def done(bench: Bench) -> str:
    """A done job that can be continued."""
    bench.drop()
    take(bench)
    (job,) = bench.jobs(State.PENDING)
    folder = bench.queue.path(State.PENDING, job)
    (folder / "latents.safetensors").write_bytes(b"latents")
    outcome = {"outcome": "completed", "video": {"file": f"{job}.mp4", "width": 80, "height": 64}}
    (folder / "outcome.json").write_text(json.dumps(outcome))
    bench.queue.move(job, State.PENDING, State.DONE)
    return job


@pytest.fixture
def benches(tmp_path: Path, picture: Path) -> Iterator[Callable[..., Bench]]:
    """Makes one bench after the other, on a file system in memory; the last one is removed when the next is made."""
    root = OTHER_FILE_SYSTEM / f"framepack-crash-{os.getpid()}"

    def make(device: str = "same") -> Bench:
        for folder in (root, tmp_path / "bench"):
            shutil.rmtree(folder, ignore_errors=True)
        return Bench(tmp_path / "bench", picture, queue=root) if device == "other" else Bench(root, picture)

    yield make
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.parametrize("variations", [1, 2])
@pytest.mark.parametrize("device", ["same", "other"])
def test_intake(benches: Callable[..., Bench], variations: int, device: str) -> None:
    for point in range(MAX_POINTS):
        bench = benches(device)
        bench.drop(variations=variations)
        died = dies_at(point, lambda: take(bench))  # noqa: B023  done before the next turn
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
        if not died:
            break
    assert not died
    assert point > 20
    print(f"{point} crash points")  # noqa: T201  the count is what the reliability page tells


@pytest.mark.parametrize("form", ["job", "video"])
@pytest.mark.parametrize("device", ["same", "other"])
def test_intake_of_what_continues(benches: Callable[..., Bench], tmp_path: Path, device: str, form: str) -> None:
    clip = write_video(tmp_path / "clip.mp4")
    names = ("more.json",) if form == "job" else ("more.json", "more.mp4")
    for point in range(MAX_POINTS):
        bench = benches(device)
        source = done(bench) if form == "job" else "more.mp4"
        bench.put("more.json", {"prompt": "on", "continue_from": source, "variations": 2})
        if form == "video":
            bench.put("more.mp4", clip)
        died = dies_at(point, lambda: take(bench, names=names))  # noqa: B023
        recover(bench, names=names)
        jobs = bench.jobs(State.PENDING)
        assert len(jobs) == 2, point
        where = {name: places for name, places in drops(bench).items() if name in names}
        assert where == {name: set(jobs) for name in names}, point
        for job in jobs:
            assert whole(bench, job, with_latents=form == "job"), point
        assert not list(bench.queue.building.iterdir()), point
        assert bench.jobs(State.FAILED) == [], point
        if not died:
            break
    assert not died
    assert point > 20


def whole(bench: Bench, job: str, *, with_latents: bool) -> bool:
    """Whether a pending job has what it begins with, as its record says, and the size of what it continues."""
    folder, run = bench.queue.path(State.PENDING, job), bench.queue.run(State.PENDING, job)
    assert run is not None
    same = all(atomic.digest(folder / item.name) == (item.bytes, item.sha256) for item in run.files)
    roles = {Role.SIDECAR, *((Role.IMAGE, Role.LATENTS) if with_latents else (Role.VIDEO,))}
    sized = bench.status(job)["request"].get("width") == (80 if with_latents else None)
    return same and sized and {item.role for item in run.files} == roles


def test_taking_a_directory_that_continues_a_job(benches: Callable[..., Bench]) -> None:
    for point in range(MAX_POINTS):
        bench = benches()
        source = done(bench)
        folder = bench.queue.path(State.PENDING, "mine")
        folder.mkdir()
        (folder / "more.json").write_text(json.dumps({"prompt": "on", "continue_from": source}))
        died = dies_at(point, lambda: bench.door.add_again(folder))  # noqa: B023
        bench.keeper.seen.clear()
        bench.keeper.recover([bench.inbox])
        if (jobs := bench.jobs(State.PENDING)) == ["mine"]:
            jobs = bench.door.add_again(folder).jobs
        assert len(jobs) == 1, point
        assert whole(bench, jobs[0], with_latents=True), point
        assert not list(bench.queue.building.iterdir()), point
        assert bench.jobs(State.FAILED) == [], point
        if not died:
            break
    assert not died
    assert point > 20


@pytest.mark.parametrize("device", ["same", "other"])
def test_a_refused_drop_stays_refused_and_whole(benches: Callable[..., Bench], device: str) -> None:
    refusal = DropError("is a conflict copy", hint="decide")
    for point in range(MAX_POINTS):
        bench = benches(device)
        bench.drop()
        died = dies_at(point, lambda: take(bench, refusal))  # noqa: B023
        recover(bench, refusal)
        (job,) = bench.jobs(State.FAILED)
        assert drops(bench) == {"beach.png": {job}, "beach.json": {job}}, point
        assert bench.jobs(State.PENDING) == [], point
        assert bench.status(job)["message"].startswith("is a conflict copy")
        if not died:
            break
    assert not died


def test_a_known_drop_is_consumed_or_still_there(benches: Callable[..., Bench]) -> None:
    for point in range(MAX_POINTS):
        bench = benches()
        bench.drop()
        take(bench)
        (job,) = bench.jobs(State.PENDING)
        bench.drop()
        died = dies_at(point, lambda: take(bench))  # noqa: B023
        recover(bench)
        assert bench.jobs(State.PENDING) == [job]
        assert bench.jobs(State.FAILED) == []
        assert bench.left() == []
        if not died:
            break
    assert not died


def test_taking_a_changed_job_again(benches: Callable[..., Bench]) -> None:
    for point in range(MAX_POINTS):
        bench = benches()
        bench.drop()
        take(bench)
        (job,) = bench.jobs(State.PENDING)
        folder = bench.queue.path(State.PENDING, job)
        (folder / "beach.json").write_text(json.dumps(SIDECAR | {"seed": 8}))
        died = dies_at(point, lambda: bench.door.add_again(folder))  # noqa: B023
        bench.keeper.seen.clear()
        bench.keeper.recover([bench.inbox])
        if (there := bench.jobs(State.PENDING)) == [job]:
            there = bench.door.add_again(folder).jobs
        assert len(there) == 1, point
        assert there != [job]
        assert bench.status(there[0])["request"]["seed"] == 8
        assert not list(bench.queue.building.iterdir()), point
        if not died:
            break
    assert not died


@pytest.mark.parametrize("act", ["cancel", "interrupt", "remove"])
def test_moves(benches: Callable[..., Bench], act: str) -> None:
    for point in range(MAX_POINTS):
        bench = benches()
        bench.drop()
        take(bench)
        (job,) = bench.jobs(State.PENDING)
        bench.queue.move(job, State.PENDING, State.PROCESSING)
        died = dies_at(point, lambda: getattr(moves, act)(bench.queue, job))  # noqa: B023
        recover(bench)
        places = [state for state in State if job in bench.queue.names(state)]
        assert len(places) <= 1
        assert places or act == "remove"
        assert not list(bench.queue.trash.iterdir())
        if not died:
            break
    assert not died


def test_publishing(benches: Callable[..., Bench]) -> None:
    for point in range(MAX_POINTS):
        bench = benches()
        bench.drop()
        take(bench)
        (job,) = bench.jobs(State.PENDING)
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
            assert [path.name for path in bench.outputs.glob("*.mp4")] == [f"{job}.mp4"], "lost, or there twice"
            assert (bench.outputs / f"{job}.mp4").read_bytes() == b"video"
            assert bench.status(job)["state"] == "done"
        assert not [path for path in bench.outputs.iterdir() if path.name.startswith(".")]
        if not died:
            break
    assert not died
    assert point > 20
