"""The gallery, `outputs/index.html`: the queue and the videos on a page that opens from the share, without a server.

What is shown of a job is read from its status file, when a page that shows it is written. Status files tell of
themselves as they are written; so little is kept of each job, when it ended. A thread writes, at most once a second, so
that a slow share delays nobody. The newest few hundred that ended are on the front page, the others on pages of their
month, which change once for every hundred jobs. A page that somebody else put there is left alone; trouble is told once
and stops nothing. Knows nothing of HTML.
"""

from __future__ import annotations

import heapq
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon import gallery_files, gallery_page
from framepack_daemon.gallery_page import FRONT, Card
from framepack_daemon.job import State
from framepack_daemon.spool import status
from framepack_daemon.spool.line import Line, Place
from framepack_daemon.spool.mounts import Anchor
from framepack_daemon.spool.troubles import Troubles

TROUBLE = "gallery"
STOPPED = "The daemon is not running."
NEWEST = 200  # jobs that ended which the front page shows at least
MORE = 100  # that it shows besides, until these move to the pages of their months together
WAITING = 100  # waiting jobs that it shows
PART = 500  # jobs on a page of a month, which goes on on another page
PAUSE_SECONDS = 1.0  # between two writes
RETRY_SECONDS = 10.0  # after a write that failed
READ_PAUSE_SECONDS = 0.001  # between two status files of jobs that are not on the front page
CLOSE_SECONDS = 5.0  # at the daemon's end, for the last write
_OLDER = re.compile(r"index-\d{4}-\d\d(-\d+)?\.html")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _View:
    """What the loop saw when something had changed."""

    line: list[Place]
    notices: tuple[str, ...]
    troubles: Troubles
    is_last: bool = False


class Gallery:
    """The gallery in one folder of outputs."""

    def __init__(self, outputs: Path) -> None:
        self._outputs = outputs
        self._anchor = Anchor(outputs)
        self._changed = threading.Condition()  # held for what follows, but never while a file is read or written
        self._running: dict[str, object] = {}  # and what the page shows of how far each is
        self._recent: dict[str, float] = {}  # jobs of the front page, and when they ended
        self._older: dict[str, float] = {}  # those of the other pages
        self._older_until = -math.inf  # the latest of these times
        self._stale: set[str] = set()  # jobs of whose status the pages do not know yet
        self._is_due = True
        self._look_at = 0.0  # monotonic; a copy of a long line costs, and nothing is written sooner
        self._older_is_due = True
        self._notices: tuple[str, ...] = ()
        self._view: _View | None = None
        self._closed: Callable[[], _View] | None = None  # what there is to see when the daemon has stopped
        # Of the thread alone:
        self._cards: dict[str, Card | None] = {}  # of the front page; None where there is nothing to show
        self._pages: dict[str, int | None] = {}  # of the months, and what is on them; None where that is out of date
        self._unknown: list[str] | None = None  # jobs of status files that nobody told of; None until looked for
        self._is_mine = True  # said once, when it is not
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def hear(self, job: str, body: Mapping[str, Any]) -> None:
        """Take in what a job's status file says, nothing where there is none; callable from any thread."""
        state, when = body.get("state"), gallery_page.ended_at(body)
        with self._changed:
            before = self._time_of(job)
            if state == State.DONE and before == when:
                return  # what is said of a finished video once more, nobody sees
            self._stale.add(job)
            if state == State.PROCESSING:
                shown = _headway(body)
                if self._running.get(job) == shown:
                    return
                self._running[job] = shown
            else:
                self._running.pop(job, None)
            is_old = when <= self._older_until
            self._older_is_due |= is_old or job in self._older
            if before != when or state != State.FAILED:
                self._older.pop(job, None)
                self._recent.pop(job, None)
                if state in (State.DONE, State.FAILED):
                    (self._older if is_old else self._recent)[job] = when
            self._is_due = True

    def look(self, line: Line, notices: Iterable[str], troubles: Troubles) -> None:
        """Have what changed since the last look written soon; `notices` say what keeps the daemon from its work."""
        with self._changed:
            told = tuple(notices)
            if (told == self._notices and not self._is_due) or time.monotonic() < self._look_at:
                return
            self._notices, self._is_due = told, False
            self._look_at = time.monotonic() + PAUSE_SECONDS
            self._call(_View(line.everyone(), told, troubles))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="gallery", daemon=True)
                self._thread.start()
        self._closed = lambda: _View(line.everyone(), (*told, STOPPED), troubles, is_last=True)

    def close(self) -> None:
        """Write for the last time: the daemon stops."""
        if self._thread is not None and self._closed is not None:
            self._closing.set()
            self._call(self._closed())
            self._thread.join(CLOSE_SECONDS)

    def _call(self, view: _View) -> None:
        with self._changed:
            self._view = view
            self._changed.notify()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                self._changed.wait_for(lambda: self._view is not None)
                view, self._view = self._view, None
            assert view is not None
            is_last = view.is_last
            try:
                self._anchor.expect()
                self._write(view)
            except OSError as error:
                if view.troubles.note(TROUBLE, error):
                    _log.warning("gallery_not_written", folder=str(self._outputs), reason=str(error))
                self._cards.clear()  # some of these may be of a share that was away
                self._is_due = self._older_is_due = True
                self._closing.wait(RETRY_SECONDS)
            else:
                view.troubles.clear(TROUBLE)
                self._closing.wait(PAUSE_SECONDS)

    @property
    def _is_called(self) -> bool:
        """Whether there is something to do that comes before the pages of the months."""
        return self._view is not None or self._closing.is_set()

    def _write(self, view: _View) -> None:
        """Write what is not up to date, the front page first; what is left when something changes is left."""
        was_mine, self._is_mine = self._is_mine, gallery_files.is_ours(self._outputs / FRONT)
        if not self._is_mine:
            if was_mine:
                hint = "move it away to have a gallery, or set gallery to false"
                _log.warning("gallery_name_taken", file=str(self._outputs / FRONT), hint=hint)
            return
        with self._changed:
            stale, self._stale = self._stale, set()
            self._older_is_due |= self._turn_over()
            running, recent = list(self._running), _newest_first(self._recent)
        for job in stale:
            self._cards.pop(job, None)
        self._write_front(view, running, recent)
        if self._unknown is None:
            self._unknown = self._find_unknown({job for *_, job in view.line})
        self._learn(self._unknown)
        if self._older_is_due and not self._unknown and self._write_older(stale):
            self._write_front(view, running, recent)

    def _turn_over(self) -> bool:
        """Have the oldest jobs of the front page go to the pages of their months, when they are enough."""
        if len(self._recent) < NEWEST + MORE:
            return False
        oldest = _newest_first(self._recent)[NEWEST:]
        self._older_until = self._recent[oldest[0]]
        for job in oldest:
            self._older[job] = self._recent.pop(job)
        return True

    def _write_front(self, view: _View, running: list[str], recent: list[str]) -> None:
        moved = {*running, *recent}
        line = [place for place in view.line if place[-1] not in moved]
        waiting = [job for *_, job in heapq.nsmallest(WAITING, line)]
        runs = [self._card(job, gallery_page.runs) for job in running]
        waits = [self._card(job, gallery_page.waits) for job in waiting]
        ended = [self._card(job, gallery_page.ended) for job in recent]
        self._cards = {job: self._cards[job] for job in (*running, *waiting, *recent)}
        body = [
            *map(gallery_page.notice, view.notices),
            *gallery_page.queue(self._there(runs), self._there(waits), len(line) - len(waiting)),
            *gallery_page.finished(self._there(ended)),
            *gallery_page.older(sorted(self._pages, reverse=True)),
        ]
        gallery_files.put(self._outputs / FRONT, gallery_page.page("Videos", body))

    def _write_older(self, stale: set[str]) -> bool:
        """Write the pages of the months that have changed, and remove those that are no more; whether one came or went.

        Ends when something else is to be done; the next call goes on.
        """
        with self._changed:
            self._older_is_due = False
            older = sorted((when, job) for job, when in self._older.items())
        before, wanted = set(self._pages), dict(_parts(older))
        for name, jobs in wanted.items():
            if not stale.isdisjoint(job for _, job in jobs):
                self._pages[name] = None
        for name, jobs in wanted.items():
            if self._is_called:
                self._older_is_due = True
                return before != self._pages.keys()
            if self._pages.get(name) != (content := hash(tuple(jobs))):
                cards = self._there(self._read_slowly(job) for _, job in reversed(jobs))
                page = gallery_page.page(f"Videos {gallery_page.month(name)}", gallery_page.cards(cards), back=True)
                gallery_files.put(self._outputs / name, page)
                self._pages[name] = content
        for name in before - wanted.keys():
            gallery_files.remove(self._outputs / name)
            del self._pages[name]
        return before != self._pages.keys()

    def _find_unknown(self, waiting: set[str]) -> list[str]:
        """The jobs of status files that nobody told of: they have left the queue, and their videos are still here.

        In passing, the pages of an earlier daemon are noted, and what is left of one that was killed is removed.
        """
        unknown = []
        with os.scandir(self._outputs) as entries:
            for entry in entries:
                job = entry.name.removesuffix(status.SUFFIX)
                if job != entry.name:
                    if job not in waiting and job not in self._running and self._time_of(job) is None:
                        unknown.append(job)
                elif _OLDER.fullmatch(entry.name) and gallery_files.is_ours(Path(entry.path)):
                    self._pages[entry.name] = None
                else:
                    gallery_files.remove_torn(Path(entry.path))
        return unknown

    def _learn(self, unknown: list[str]) -> None:
        """Take in the status files of these jobs, until something else is to be done."""
        while unknown and not self._is_called:
            self._closing.wait(READ_PAUSE_SECONDS)
            job = unknown.pop()
            body = status.read(self._outputs, job) or {}
            if body.get("state") == State.DONE:
                self.hear(job, body)

    def _card(self, job: str, make: Callable[[str, Mapping[str, Any]], Card | None]) -> Card | None:
        """What the front page shows of a job, from the last time where nothing has changed."""
        if job not in self._cards:
            self._cards[job] = make(job, status.read(self._outputs, job) or {})
        return self._cards[job]

    def _read_slowly(self, job: str) -> Card | None:
        self._closing.wait(READ_PAUSE_SECONDS)
        return gallery_page.ended(job, status.read(self._outputs, job) or {})

    def _there(self, cards: Iterable[Card | None]) -> list[Card]:
        """Those that there is something to show of: their video has not been taken away."""
        return [card for card in cards if card and (not card.file or os.path.lexists(self._outputs / card.file))]

    def _time_of(self, job: str) -> float | None:
        """When a job ended that is known to have ended."""
        return self._recent.get(job, self._older.get(job))


def _newest_first(times: Mapping[str, float]) -> list[str]:
    return sorted(times, key=lambda job: (-times[job], job))


def _headway(body: Mapping[str, Any]) -> object:
    """What of a running job's progress is worth another page."""
    progress = body.get("progress")
    return progress.get("section") if isinstance(progress, dict) else body.get("message"), body.get("preview")


def _parts(older: list[tuple[float, str]]) -> Iterable[tuple[str, list[tuple[float, str]]]]:
    """Names of pages and what is on them, of jobs in the order in which they ended."""
    for month, jobs in groupby(older, lambda item: time.strftime("%Y-%m", time.localtime(item[0]))):
        whole = list(jobs)
        for part in range(math.ceil(len(whole) / PART)):
            name = f"index-{month}.html" if part == 0 else f"index-{month}-{part + 1}.html"
            yield name, whole[part * PART : (part + 1) * PART]
