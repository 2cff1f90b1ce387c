"""Power loss: a file system that forgets what was not synced, at every operation of intake, claim, publishing, moves.

The folders lie on a file system in a file: ext4, and XFS and Btrfs, which order what they write in other ways and are
tried at some points only. A forked child dies at one point after the other, the file system loses its power without
writing its log or its data, and is mounted again. The last tests leave the syncs of files out, to show that here
content is lost without them.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import tools
from crash import (
    VIDEO,
    Crashes,
    check_order,
    claim,
    dies_at,
    digest,
    ended,
    lifecycle,
    places,
    recover,
    restarted,
    running,
    waiting,
)
from spool_bench import Bench

from framepack_daemon.job import LATENTS_FILE, RUN_FILE, State
from framepack_daemon.spool import inbox, moves

SHUT_DOWN = 0x8004587D  # _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
WITHOUT_LOG = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH, XFS_FSOP_GOING_FLAGS_NOLOGFLUSH
NEVER = 10_000  # more points than any work has
SOME = 3  # every so-many-th point is tried of what syncs as another operation does

libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """A file system whose power can be cut."""

    program = "mkfs.ext4"
    words = ("-q", "-F")
    size = 64 << 20  # bytes
    # The log is written by syncs alone, not by the clock, and a rename does not sync what it puts in place.
    options = "loop,commit=600,noauto_da_alloc"

    def __init__(self, image: Path, place: Path) -> None:
        self.place = place
        self._image = image
        place.mkdir()
        with image.open("wb") as stream:
            stream.truncate(self.size)
        subprocess.run([self.program, *self.words, image], check=True)
        self._mount()

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", self.options, self._image, self.place], check=True)

    def close(self) -> None:
        subprocess.run(["umount", self.place], check=True)

    def sync(self) -> None:
        """Make everything durable that is there now."""
        with self._opened() as descriptor:
            assert libc.syncfs(descriptor) == 0

    def lose_power(self) -> None:
        """Forget what was not synced."""
        with self._opened() as descriptor:
            fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", WITHOUT_LOG))
        self.close()
        self._mount()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class Xfs(Disk):
    """XFS, which is shut down in the same way."""

    program = "mkfs.xfs"
    words = ("-q", "-f")
    size = 320 << 20
    options = "loop"


class Btrfs(Disk):
    """Btrfs, which cannot be shut down: what the disk holds at that moment is kept instead."""

    program = "mkfs.btrfs"
    words = ("-q", "-f")
    size = 128 << 20
    options = "loop,commit=600"

    def lose_power(self) -> None:
        """Forget what was not synced."""
        kept = self._image.with_name("kept")
        subprocess.run(["cp", "--sparse=always", self._image, kept], check=True)
        self.close()
        kept.replace(self._image)
        self._mount()


@contextmanager
def formatted(kind: type[Disk], folder: Path) -> Iterator[Disk]:
    """A new file system, mounted."""
    tools.require(kind.program, "mount")
    tools.require_root()
    # A mount namespace that another test makes meanwhile has to let go of the file system too: it would stay shut down.
    for words in (["--bind", folder, folder], ["--make-shared", folder]):
        subprocess.run(["mount", *words], check=True)
    try:
        disk = kind(folder / "image", folder / "disk")
        yield disk
        disk.close()
        (folder / "image").unlink()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with formatted(Disk, tmp_path_factory.mktemp("power")) as disk:
        yield disk


@pytest.fixture(scope="module", params=[Xfs, Btrfs])
def other_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with formatted(request.param, tmp_path_factory.mktemp("power")) as disk:
        yield disk


@dataclass(frozen=True)
class Operation:
    """What a test begins with, what it does, and where that leaves its job."""

    prepare: Callable[[Bench], object]
    work: Callable[[Bench], object]
    ends_in: State | None
    may_stand: frozenset[State | None]  # after a loss of power on the way
    every: int = 1  # so-many-th point is tried


def _publish(bench: Bench) -> None:
    endings = lifecycle(bench).endings
    for job in bench.jobs(State.PROCESSING):
        endings.complete(job, {"video": {"sha256": digest(bench)}})
    endings.settle()


def _fail(bench: Bench) -> None:
    endings = lifecycle(bench).endings
    for job in bench.jobs(State.PROCESSING):
        endings.fail(job, {"message": "its worker died"})
    endings.settle()


def _cancel(bench: Bench) -> None:
    for job in bench.jobs(State.PROCESSING):
        moves.cancel(bench.queue, job)
    bench.keeper.tidy(frozenset())


def _retry(bench: Bench) -> None:
    for job in bench.jobs(State.DONE):
        moves.retry(bench.queue, job)
    bench.keeper.tidy(frozenset())


def _remove(bench: Bench) -> None:
    for job in bench.jobs(State.PROCESSING):
        moves.remove(bench.queue, job)
    bench.keeper.tidy(frozenset())


PENDING, PROCESSING, DONE, FAILED = State.PENDING, State.PROCESSING, State.DONE, State.FAILED
OPERATIONS = {
    "intake": Operation(Bench.drop, Bench.take, PENDING, frozenset({PENDING})),
    "claim": Operation(waiting, claim, PROCESSING, frozenset({PENDING})),
    "publish": Operation(running, _publish, DONE, frozenset({PENDING, DONE})),
    "fail": Operation(running, _fail, FAILED, frozenset({PENDING, FAILED}), SOME),
    "cancel": Operation(running, _cancel, FAILED, frozenset({PENDING, FAILED}), SOME),
    "retry": Operation(partial(ended, state=DONE), _retry, PENDING, frozenset({PENDING, DONE}), SOME),
    "remove": Operation(running, _remove, None, frozenset({PENDING, None}), SOME),
}


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Operation:
    """Each of them. What a scan sees in files is tested elsewhere and takes long."""
    monkeypatch.setattr(inbox, "judge", lambda path, kind: None)  # noqa: ARG005  the signature of what it replaces
    return OPERATIONS[request.param]


def prepared(disk: Disk, picture: Path, operation: Operation) -> Bench:
    """What an operation begins with, all of it durable."""
    shutil.rmtree(disk.place / "bench", ignore_errors=True)
    bench = Bench(disk.place / "bench", picture)
    operation.prepare(bench)
    disk.sync()
    return bench


def test_power_loss_at_every_operation(disk: Disk, picture: Path, operation: Operation) -> None:
    _loses_power_at_every_point(disk, picture, operation)


def test_power_loss_on_other_file_systems(other_disk: Disk, picture: Path, operation: Operation) -> None:
    _loses_power_at_every_point(other_disk, picture, replace(operation, every=SOME))


def _loses_power_at_every_point(disk: Disk, picture: Path, operation: Operation) -> None:
    def recovered(bench: Bench) -> None:
        disk.lose_power()
        recover(bench)

    def check(bench: Bench) -> None:
        check_order(bench)
        standing = [(state, job) for state in State for job in bench.jobs(state)] or [(None, "")]
        ((state, job),) = standing
        assert state in operation.may_stand
        assert list(places(bench).values()) == [[job]] * 2 * bool(job)
        if state is DONE:
            assert (bench.outputs / f"{job}.mp4").read_bytes() == VIDEO
            assert (bench.queue.path(state, job) / LATENTS_FILE).read_bytes() == VIDEO

    Crashes("power loss", partial(prepared, disk, picture, operation), operation.work, check, recovered).at_every_point(
        every=operation.every
    )


def test_what_came_through_stays(disk: Disk, picture: Path, operation: Operation) -> None:
    _keeps_what_came_through(disk, picture, operation)


def test_what_came_through_stays_on_other_file_systems(other_disk: Disk, picture: Path, operation: Operation) -> None:
    _keeps_what_came_through(other_disk, picture, operation)


def _keeps_what_came_through(disk: Disk, picture: Path, operation: Operation) -> None:
    bench = prepared(disk, picture, operation)
    assert not dies_at(NEVER, lambda: operation.work(bench))
    disk.lose_power()
    assert [state for state in State for _ in bench.jobs(state)] == [operation.ends_in] * bool(operation.ends_in)
    if operation.ends_in not in (PENDING, PROCESSING):  # of these, the next start writes the status again
        (status,) = (json.loads(path.read_text()) for path in bench.outputs.glob("*.status.json"))
        assert status["state"] == (operation.ends_in or FAILED)


def test_a_drop_that_its_writer_did_not_sync_is_whole_once_it_is_a_job(disk: Disk, picture: Path) -> None:
    def prepare() -> Bench:
        bench = prepared(disk, picture, replace(OPERATIONS["intake"], prepare=Bench.left))
        bench.drop()
        return bench

    def recovered(bench: Bench) -> None:
        disk.lose_power()
        restarted(bench).recover()

    Crashes("power loss", prepare, Bench.take, check_order, recovered).at_every_point()


@pytest.mark.parametrize("name", ["intake", "publish"])
def test_without_syncs_content_is_lost_here(disk: Disk, picture: Path, name: str) -> None:
    _loses_content_without_syncs(disk, picture, name)


@pytest.mark.parametrize("name", ["intake", "publish"])
def test_without_syncs_content_is_lost_on_other_file_systems(other_disk: Disk, picture: Path, name: str) -> None:
    _loses_content_without_syncs(other_disk, picture, name)


def _loses_content_without_syncs(disk: Disk, picture: Path, name: str) -> None:
    operation = OPERATIONS[name]
    bench = prepared(disk, picture, operation)

    def unsynced() -> None:
        sync = os.fsync
        os.fsync = lambda descriptor: None if stat.S_ISREG(os.fstat(descriptor).st_mode) else sync(descriptor)
        operation.work(bench)

    assert not dies_at(NEVER, unsynced)
    disk.lose_power()
    (job,) = bench.jobs(operation.ends_in)
    written = bench.outputs / f"{job}.mp4" if name == "publish" else bench.queue.path(PENDING, job) / RUN_FILE
    assert written.stat().st_size == 0
