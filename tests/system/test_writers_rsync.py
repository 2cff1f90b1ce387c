"""rsync into a watched inbox while jobs run: once each, however often it is repeated, and also as a mirror."""

from __future__ import annotations

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lab import Lab
from tools import require
from writers import FEW, LONG, Stock, at_work, call, delivered, jobs_of, taken

from framepack_daemon.job import State
from framepack_daemon.spool.capture import HIDDEN_FOLDER
from framepack_daemon.spool.queue import Queue

VANISHED = (23, 24)  # rsync's exit codes when a file was taken at the very moment when it looked
MIRROR_RUNS = 6
MIRROR_SECONDS = 1.5
WAYS = {
    "default": ["-rt"],
    "inplace": ["-rt", "--inplace"],
    "partial": ["-rt", "--partial-dir=.rsync-partial", "--delay-updates"],
}

pytestmark = LONG


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path):
    require("rsync")
    with at_work(Lab(tmp_path_factory.mktemp("rsync") / "lab", models_dir, still)) as lab:
        yield lab


@pytest.mark.parametrize("way", WAYS)
def test_rsync_three_times_over(lab: Lab, tmp_path: Path, way: str) -> None:
    stock = Stock(tmp_path / "stock", f"{way}-")
    for _ in range(3):
        call("rsync", *WAYS[way], f"{stock.folder}/", lab.inbox)
        delivered(lab, stock)
    jobs = jobs_of(lab, stock)
    assert len(jobs) == len(stock.stems)  # each time all was brought again, and nothing came of it
    stock.renew(stock.stems[::3])
    call("rsync", *WAYS[way], f"{stock.folder}/", lab.inbox)
    delivered(lab, stock)
    assert len(jobs_of(lab, stock)) == len(jobs) + len(stock.stems[::3])


def test_rsync_that_moves(lab: Lab, tmp_path: Path) -> None:
    stock = Stock(tmp_path / "stock", "moved-", pairs=FEW, large=1)
    call("rsync", "-rt", "--remove-source-files", f"{stock.folder}/", lab.inbox)
    assert list(stock.folder.iterdir()) == []
    delivered(lab, stock)


@pytest.fixture(scope="module", params=["beside", "elsewhere"])
def mirrored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path):
    """A daemon whose queue stands beside the inbox, or on another file system."""
    require("rsync")
    lab = Lab(tmp_path_factory.mktemp("mirrored") / "lab", models_dir, still)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if request.param == "elsewhere":
            lab.queue = Queue(Path(elsewhere) / "queue")
            assert Path(elsewhere).stat().st_dev != lab.inbox.stat().st_dev
        with at_work(lab, queue_dir=lab.queue.root):
            yield lab


def mirror(stock: Stock, lab: Lab, *options: str) -> None:
    call("rsync", "-a", "--delete", *options, f"{stock.folder}/", lab.inbox, good=(0, *VANISHED))


def test_a_mirror_that_runs_again_and_again(mirrored: Lab, tmp_path: Path) -> None:
    lab, stock = mirrored, Stock(tmp_path / "stock", "mirror-")
    lab.queue.pause_file.touch()
    mirror(stock, lab)
    delivered(lab, stock)
    cancelled = lab.jobs(State.PENDING)[-1]
    assert lab.command("cancel", cancelled, queue_dir=lab.queue.root).returncode == 0
    known = {job for state in State for job in lab.queue.names(state)}
    published = {path.name for path in lab.outputs.glob("*.mp4")}
    for run in range(MIRROR_RUNS):
        if run == MIRROR_RUNS // 2:
            stock.renew(stock.stems[1::4])
        mirror(stock, lab)
        time.sleep(MIRROR_SECONDS)
    delivered(lab, stock, cancelled=[cancelled])
    jobs = {job for state in State for job in lab.queue.names(state)}
    assert known <= jobs
    assert len(jobs - known) == len(stock.stems[1::4])
    assert published <= {path.name for path in lab.outputs.glob("*.mp4")}
    assert lab.command("remove", cancelled, queue_dir=lab.queue.root).returncode == 0


def test_a_mirror_without_a_pause(mirrored: Lab, tmp_path: Path) -> None:
    # It deletes what is taken at this moment, and what the daemon keeps in the inbox for itself.
    lab, stock = mirrored, Stock(tmp_path / "stock", "restless-", pairs=FEW, large=1)
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            mirror(stock, lab)

    with ThreadPoolExecutor() as pool:
        mirroring = pool.submit(run)
        try:
            taken(lab, stock)
            stock.renew(stock.stems[::2])
            taken(lab, stock)
        finally:
            ended.set()
        mirroring.result()
    delivered(lab, stock)


def test_a_mirror_does_not_let_a_second_daemon_in(mirrored: Lab, tmp_path: Path) -> None:
    lab, stock = mirrored, Stock(tmp_path / "stock", "emptied-", pairs=1, large=0)
    lock = lab.inbox / HIDDEN_FOLDER / "lock"
    mirror(stock, lab)
    lab.until(lock.exists, "the lock to be made anew")
    before = lock.stat().st_ino
    mirror(stock, lab, f"--exclude=/{HIDDEN_FOLDER}")
    assert lock.stat().st_ino == before
    second = lab.command("run", queue_dir=tmp_path / "queue", work_dir=tmp_path / "work")
    assert second.returncode == 69
    assert "held by another daemon" in second.stderr
    delivered(lab, stock)
