"""A share whose handles go stale under a real daemon: jobs wait, and go on by themselves when it is back.

All folders of the daemon but its scratch are on one FUSE file system, as on a network share that another host writes to
as well: the test is that host. A line of `FAULTS` is a test, and one daemon serves them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from lab import Lab
from sites import Site
from stale_share import Share, mounted
from tools import require, require_root

from framepack_daemon.spool.lock import INBOX_LOCK, QUEUE_LOCK, daemon_runs

# Which folders go stale, when, and what `status` says cannot be done.
FAULTS = [
    ("inbox", "before a drop", "intake"),
    ("outputs", "during a job", "publishing"),
    ("inbox queue outputs", "during a job", "queue"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, models_dir, still) -> Iterator[Site[Share]]:
    require_root()
    require("fusermount3", "umount")
    root = tmp_path_factory.mktemp("stale")
    lab = Lab(root / "lab", models_dir, still)
    share = root / "share"
    lab.settings |= {"inbox": share / "inbox", "outputs": share / "outputs", "poll_seconds": 0.2}
    with mounted(lab.root, share, "inbox", "queue", "outputs") as parts:
        try:
            lab.start()
            lab.until(lambda: lab.events("model_loaded"), "the worker")
            yield Site(lab, parts)
        finally:
            lab.end()


@pytest.mark.parametrize(
    ("folders", "when", "said"), [pytest.param(*line, id=f"{line[0]} {line[1]}") for line in FAULTS]
)
def test_a_job_waits_for_a_share_that_is_stale_and_is_done_once(
    site: Site[Share], folders: str, when: str, said: str
) -> None:
    shares = [site.disks[folder] for folder in folders.split()]
    site.job_waits_and_is_done_once(f"{folders}-{when}".replace(" ", "-"), lambda: _stale(shares), when, said)


def test_its_locks_live_on_though_their_files_stay_stale(site: Site[Share]) -> None:
    def counts() -> list[int]:
        locks = site.lab.queue.root / QUEUE_LOCK, site.lab.inbox / INBOX_LOCK
        return [json.loads(lock.read_text())["count"] for lock in locks]

    with _stale(site.disks.values()):
        before = counts()
    site.lab.until(lambda: all(now > then for now, then in zip(counts(), before, strict=True)), "both locks to beat")
    assert daemon_runs(site.lab.settings["inbox"].with_name("queue"))


def test_a_daemon_stops_in_good_order_while_its_share_is_stale(site: Site[Share]) -> None:
    with _stale(site.disks.values()):
        assert site.lab.stop() == 0
    site.lab.start()
    assert site.lab.stop() == 0


@contextmanager
def _stale(shares: Iterable[Share]) -> Iterator[None]:
    """All of them are stale at once."""
    with ExitStack() as meanwhile:
        for share in shares:
            meanwhile.enter_context(share.stale())
        yield
