"""Two Syncthing instances, one at a desk and one beside the daemon: pairs go one way, videos come the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab
from syncthing import Syncthing, a_pair
from tools import require
from writers import LONG, Stock, at_work, delivered, dwindles, jobs_of, waiting_in

from framepack_daemon import atomic
from framepack_daemon.job import State
from framepack_daemon.spool.capture import HIDDEN_FOLDER

# Lines of `.stignore` beside the daemon.
IGNORED_IN_INBOX = ["/.framepack-daemon"]
IGNORED_IN_OUTPUTS = ["/.*.tmp"]
VIDEOS = 3  # that are waited for at the other end; the others wait for their turn

pytestmark = LONG


@dataclass
class Sync:
    """The daemon, and the two instances with the folders of the one at the desk."""

    lab: Lab
    desk: Syncthing
    server: Syncthing
    inbox: Path
    outputs: Path

    def turn(self, desk: str, server: str) -> None:
        """Make the inbox go in these ways."""
        self.desk.turn("inbox", desk)
        self.server.turn("inbox", server)

    @contextmanager
    def everything_again(self, stock: Stock) -> Iterator[None]:
        """Wait until what is done here has brought a stock's pairs again, and nothing more is on its way.

        The pairs of earlier stocks, as far as they are still at the desk, come too.
        """
        wanted = self._known() + len(stock.stems)
        yield
        dwindles(self.lab, lambda: wanted - self._known(), "pairs to come again")
        # The daemon's lock comes back as often as it is taken away: its folder may never go.
        self.server.until(lambda: self.server.has_all("inbox"), "nothing more to come")

    def _known(self) -> int:
        return len(self.lab.events("job_known"))

    def arrived(self, stock: Stock) -> None:
        """Wait until what there is of a stock's jobs stands at the desk as it stands beside the daemon."""
        lab = self.lab

        def ahead() -> int:
            """Jobs that may be rendered before the last of these videos is."""
            return 0 if len(videos_of(lab, stock)) >= VIDEOS else len(lab.queue.names(State.PENDING)) + 1

        dwindles(lab, ahead, "jobs before the first videos")
        done = videos_of(lab, stock)
        lab.until(lambda: all((self.outputs / name).exists() for name in done), "the videos at the desk")
        assert [atomic.digest(self.outputs / name) for name in done] == [
            atomic.digest(lab.outputs / name) for name in done
        ]
        wanted = [f"{job}.status.json" for job in jobs_of(lab, stock)]
        lab.until(lambda: all((self.outputs / name).exists() for name in wanted), "the status files at the desk")

    def leftovers(self) -> list[str]:
        """Conflict copies on either side."""
        folders = (self.lab.inbox, self.lab.outputs, self.inbox, self.outputs)
        return [str(path) for folder in folders for path in folder.rglob("*") if "sync-conflict" in path.name]

    @property
    def lock(self) -> Path:
        """The daemon's lock in the inbox."""
        return self.lab.inbox / HIDDEN_FOLDER / "lock"


def videos_of(lab: Lab, stock: Stock) -> list[str]:
    return [f"{job}.mp4" for job in jobs_of(lab, stock) if (lab.queue.path(State.DONE, job)).is_dir()]


@pytest.fixture(scope="module")
def sync(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path) -> Iterator[Sync]:
    require("syncthing")
    root = tmp_path_factory.mktemp("syncthing")
    with ExitStack() as running:
        lab = running.enter_context(at_work(Lab(root / "lab", models_dir, still)))
        desk, server = running.enter_context(a_pair(root))
        sync = Sync(lab, desk, server, root / "desk-inbox", root / "desk-outputs")
        desk.share("inbox", sync.inbox, "sendonly", server)
        server.share("inbox", lab.inbox, "receiveonly", desk)
        desk.share("outputs", sync.outputs, "receiveonly", server)
        server.share("outputs", lab.outputs, "sendonly", desk)
        yield sync


def test_one_way(sync: Sync) -> None:
    sync.turn("sendonly", "receiveonly")
    stock = Stock(sync.inbox, "one-way-")
    delivered(sync.lab, stock)
    sync.arrived(stock)
    stock.renew(stock.stems[::3])
    delivered(sync.lab, stock)
    assert len(jobs_of(sync.lab, stock)) == len(stock.stems) + len(stock.stems[::3])
    assert all(path.exists() for path in stock.files())  # at the desk they stay
    assert sync.leftovers() == []


def test_revert_brings_everything_again_and_starts_nothing(sync: Sync) -> None:
    sync.turn("sendonly", "receiveonly")
    stock = Stock(sync.inbox, "reverted-")
    delivered(sync.lab, stock)
    jobs = jobs_of(sync.lab, stock)
    with sync.everything_again(stock):
        sync.server.press("revert", "inbox")
    delivered(sync.lab, stock)
    sync.lab.until(sync.lock.exists, "the lock, which the instance took away as a stranger's, to be made anew")
    assert sorted(jobs_of(sync.lab, stock)) == sorted(jobs)
    assert all(path.exists() for path in stock.files())
    assert sync.leftovers() == []


def test_override_brings_everything_again_and_starts_nothing(sync: Sync) -> None:
    sync.turn("sendonly", "sendreceive")
    stock = Stock(sync.inbox, "overridden-")
    delivered(sync.lab, stock)
    jobs = jobs_of(sync.lab, stock)
    sync.desk.until(lambda: sync.desk.state("inbox")["needTotalItems"] >= 2 * len(stock.stems), "the desk to hear")
    with sync.everything_again(stock):
        sync.desk.press("override", "inbox")
    delivered(sync.lab, stock)
    assert sorted(jobs_of(sync.lab, stock)) == sorted(jobs)
    assert all(path.exists() for path in stock.files())
    assert sync.leftovers() == []


def test_two_way(sync: Sync) -> None:
    sync.turn("sendreceive", "sendreceive")
    stock = Stock(sync.inbox, "two-way-")
    delivered(sync.lab, stock)
    sync.lab.until(lambda: not waiting_in(sync.inbox), "what was taken to be gone at the desk too")
    sync.arrived(stock)
    stock.renew(stock.stems[::3])
    delivered(sync.lab, stock)
    sync.lab.until(lambda: not waiting_in(sync.inbox), "what was taken to be gone at the desk too")
    assert len(jobs_of(sync.lab, stock)) == len(stock.stems) + len(stock.stems[::3])
    assert sync.leftovers() == []


def test_with_the_ignore_patterns_nothing_of_the_daemons_own_travels(sync: Sync) -> None:
    sync.turn("sendonly", "receiveonly")
    sync.server.ignore("inbox", *IGNORED_IN_INBOX)
    sync.server.ignore("outputs", *IGNORED_IN_OUTPUTS)
    lock = sync.lab.until(sync.lock.exists, "the lock") and sync.lock.stat().st_ino
    before = sync.desk.fetched()
    stock = Stock(sync.inbox, "ignoring-", large=0)
    delivered(sync.lab, stock)
    sync.arrived(stock)
    with sync.everything_again(stock):
        sync.server.press("revert", "inbox")
    delivered(sync.lab, stock)
    fetched = sync.desk.fetched() - before
    assert any(name.endswith(".mp4") for name in fetched)
    assert [name for name in fetched if name.startswith(".")] == []
    assert sync.lock.stat().st_ino == lock


def test_the_page_says_these_patterns() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sync-tools.md").read_text()
    for patterns in (IGNORED_IN_INBOX, IGNORED_IN_OUTPUTS):
        assert "\n".join(patterns) in page
