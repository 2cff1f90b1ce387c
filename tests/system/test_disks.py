"""Full, read-only, unmounted and broken disks under a real daemon: jobs wait, and go on by themselves.

Each folder of the daemon is a file system of its own, so that whatever crosses from one to another is copied. A line of
`FAULTS` is a test; one daemon serves all tests of a kind of disk.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import bound, disks
from lab import Lab
from sites import Site
from spool_bench import Bench
from tools import require, require_root

from framepack_daemon.errors import EXIT_AWAY
from framepack_daemon.job import State

# What happens to a disk, which one, when, and what `status` says cannot be done.
FAULTS = [
    ("ext4", "full", "queue", "before a drop", "intake"),
    ("ext4", "full", "queue", "before a start", "queue"),
    ("ext4", "full", "queue", "during a job", "queue"),
    ("ext4", "full", "work", "before a drop", "scratch"),
    ("ext4", "full", "outputs", "during a job", "publishing"),
    ("ext4", "read_only", "inbox", "after a drop", "intake"),
    ("ext4", "read_only", "queue", "during a job", "queue"),
    ("ext4", "read_only", "outputs", "during a job", "publishing"),
    ("ext4", "away", "queue", "before a drop", "intake"),
    ("ext4", "away", "queue", "during a job", "queue"),
    ("ext4", "away", "outputs", "during a job", "publishing"),
    ("ext4", "broken", "outputs", "during a job", "publishing"),
    ("ext4", "broken", "queue", "during a job", "queue"),
    ("btrfs", "full", "queue", "before a drop", "intake"),
    ("btrfs", "full", "queue", "during a job", "queue"),
    ("btrfs", "full", "work", "before a drop", "scratch"),
    ("btrfs", "full", "outputs", "during a job", "publishing"),
]


@contextlib.contextmanager
def _site(kind: str, root: Path, models_dir: Path, picture: Path) -> Iterator[Site]:
    require_root()
    require("losetup", "mount", "umount", "mkfs.ext4", "mkfs.btrfs", "btrfs")
    lab = Lab(root / "lab", models_dir, picture)
    with disks(kind, root, lab.inbox, lab.outputs, lab.queue.root, lab.work) as found:
        lab.start()
        lab.until(lambda: lab.events("model_loaded"), "the worker")
        try:
            yield Site(lab, found)
        finally:
            assert lab.process is not None
            lab.process.kill()
            lab.process.wait()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path) -> Iterator[Callable[[str], Site]]:
    """Gives the site of a kind of disk, which is made when a test first asks for it."""
    made: dict[str, Site] = {}
    with contextlib.ExitStack() as held:

        def of(kind: str) -> Site:
            if kind not in made:
                made[kind] = held.enter_context(_site(kind, tmp_path_factory.mktemp(kind), models_dir, still))
            return made[kind]

        yield of


@pytest.mark.parametrize(
    ("kind", "fault", "folder", "when", "said"),
    [pytest.param(*line, id=f"{line[2]} {line[1]} {line[3]} ({line[0]})") for line in FAULTS],
)
def test_a_job_waits_for_its_folders_and_is_done_once(
    sites: Callable[[str], Site], *, kind: str, fault: str, folder: str, when: str, said: str
) -> None:
    site = sites(kind)
    disk = site.disks[folder]

    @contextlib.contextmanager
    def happens() -> Iterator[None]:
        with getattr(disk, fault)():
            yield
            if fault == "away":
                assert list(disk.at.iterdir()) == [], "something was made in the folder beneath"

    site.job_waits_and_is_done_once(f"{folder}-{fault}-{when}".replace(" ", "-"), happens, when, said)


@pytest.fixture
def own_site(tmp_path: Path, models_dir: Path, still: Path) -> Iterator[Site]:
    with _site("ext4", tmp_path, models_dir, still) as made:
        yield made


def test_nothing_is_begun_in_the_empty_folder_of_an_unmounted_share(own_site: Site) -> None:
    lab = own_site.lab
    lab.queue.pause_file.touch()
    lab.drop("waits")
    job = lab.ended("waits", State.PENDING)
    assert lab.stop() == 0
    for folder in ("queue", "outputs", "inbox"):
        disk = own_site.disks[folder]
        with disk.away():
            began = lab.command("run")
            assert (began.returncode, "is not mounted" in began.stderr) == (EXIT_AWAY, True)
            if folder != "inbox":
                submitted = lab.command("submit", str(lab.picture), "--prompt", "waves")
                assert (submitted.returncode, "is not mounted" in submitted.stderr) == (EXIT_AWAY, True)
            assert str(disk.at) in {
                each["what"] for each in json.loads(lab.command("status", "--json").stdout)["troubles"]
            }
            assert list(disk.at.iterdir()) == []
    assert lab.jobs(State.PENDING) == [job]
    assert lab.status(job)["state"] == "pending"

    # Whoever means it, says so: the file that remembers is deleted.
    with own_site.disks["queue"].away():
        (lab.work / "mounts.json").unlink()
        lab.start()
        assert lab.stop() == 0


def test_drops_are_taken_from_an_inbox_that_comes_back(own_site: Site) -> None:
    lab, disk = own_site.lab, own_site.disks["inbox"]
    lab.queue.pause_file.touch()
    with disk.away():
        other = lab.root / "elsewhere"
        other.mkdir()
        subprocess.run(["mount", disk.device, other], check=True)  # as it is seen by another host
        lab.drop("meanwhile", folder=other)
        subprocess.run(["umount", other], check=True)
    lab.ended("meanwhile", State.PENDING)
    lab.drop("after")
    lab.ended("after", State.PENDING)


def test_a_bind_mount_is_crossed_by_copies_though_its_device_is_the_same(tmp_path: Path, picture: Path) -> None:
    require_root()
    require("mount", "umount")
    (tmp_path / "real").mkdir()
    with bound(tmp_path / "real", tmp_path / "queue"):
        bench = Bench(tmp_path / "bench", picture, queue=tmp_path / "queue")
        assert bench.inbox.stat().st_dev == bench.queue.root.stat().st_dev
        with pytest.raises(OSError, match="cross-device"):
            picture.rename(bench.queue.root / "x")
        bench.drop()
        job = bench.take_one()
        assert (bench.queue.path(State.PENDING, job) / "beach.png").read_bytes() == picture.read_bytes()
        assert bench.left() == []
