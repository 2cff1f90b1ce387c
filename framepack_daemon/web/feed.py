"""What changes in the folders, as one numbered row of events that any number of listeners follow.

One watch feeds them all: file system events ring, a look at what they named finds out what changed, and the timer looks
at everything, as the daemon's own intake does. A listener keeps its place in the row, so that each event reaches it
once; one that comes with a place from another process, or that fell too far behind, starts anew with a snapshot.
Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from framepack_daemon.errors import UnknownJobError
from framepack_daemon.job import State
from framepack_daemon.printable import printable
from framepack_daemon.spool import status
from framepack_daemon.spool.queue import PRECEDENCE, Queue
from framepack_daemon.spool.watch import Bell, folder_identity

KEPT = 10_000  # events that a listener may be behind

_log = structlog.get_logger(__name__)


class Source(Protocol):
    """The folders, as the gateway reads them."""

    queue: Queue
    outputs: Any

    def summary(self, job: str) -> dict[str, Any]:
        """The job in a list."""

    def overview(self) -> dict[str, Any]:
        """The whole queue."""


@dataclass(frozen=True)
class Event:
    """Something that changed."""

    number: int
    kind: str  # job, removed, video or queue
    job: str  # "" for the queue itself
    text: str  # JSON


News = list[tuple[str, str, dict[str, Any]]]  # kind, job, data


class Feed:
    """The events of one queue, since this process began."""

    def __init__(self, source: Source, *, poll_seconds: float, rescan_seconds: float) -> None:
        self._source = source
        self._poll_seconds, self._rescan_seconds = poll_seconds, rescan_seconds
        self._epoch = secrets.token_hex(4)
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._more = asyncio.Event()  # replaced at each event: who waits for it sees exactly the next
        self._heard: set[str] = set()
        self._rung = asyncio.Event()
        self._states: dict[str, State] = {}  # where each job stood at the last look
        self._shown: dict[str, int] = {}  # hash of what was last told of a job
        self._paused = False
        self._has_looked = False
        self._snapshot: tuple[int, str] | None = None
        self._copying = asyncio.Lock()
        self.position = 0  # number of the newest event
        self.listeners = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the folders while the block runs."""
        loop = asyncio.get_running_loop()

        def ring(names: set[str]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the watching thread not yet
                loop.call_soon_threadsafe(self._ring, names)

        bell = Bell(ring)
        with contextlib.suppress(OSError):  # a folder is away: the first look is made when it is back
            await asyncio.to_thread(self._first_look, bell)
        task = asyncio.create_task(self._follow(bell))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await asyncio.to_thread(bell.stop)

    def identify(self, number: int) -> str:
        """The id of an event, as `Last-Event-ID` brings it back."""
        return f"{self._epoch}-{number}"

    def place(self, identity: str | None) -> int | None:
        """The place in the row that an id means; None for one that is not, or no longer, known here."""
        epoch, _, digits = (identity or "").partition("-")
        if epoch != self._epoch or not digits.isdecimal() or len(digits) > len(str(self.position)):
            return None
        number = int(digits)
        return number if self.since(number) is not None else None

    def since(self, number: int) -> list[Event] | None:
        """The events after that place; None when some of them are no longer kept, or none of them can be."""
        missed = self.position - number
        if not 0 <= missed <= len(self._events):
            return None
        return [self._events[place] for place in range(len(self._events) - missed, len(self._events))]

    async def beyond(self, number: int) -> None:
        """Wait until there are events after that place."""
        while self.position <= number:
            await self._more.wait()

    async def snapshot(self) -> tuple[int, str]:
        """(a place in the row, the whole queue as JSON as it was then or a little later)."""
        async with self._copying:
            if self._snapshot is None or self._snapshot[0] != self.position:
                position = self.position
                overview = await asyncio.to_thread(self._source.overview)
                self._snapshot = position, json.dumps(overview)
            return self._snapshot

    def _ring(self, names: set[str]) -> None:
        self._heard |= names
        self._rung.set()

    async def _follow(self, bell: Bell) -> None:
        failing = False  # said once
        while True:
            if failing:
                await asyncio.sleep(self._poll_seconds)
                thorough = True
            else:
                thorough = not await self._rings(self._poll_seconds if bell.is_deaf else self._rescan_seconds)
            heard, self._heard = self._heard, set()
            self._rung.clear()
            news: News = []
            try:
                if not self._has_looked:
                    await asyncio.to_thread(self._first_look, bell)
                await asyncio.to_thread(self._look, bell, heard, news, thorough=thorough)
            except Exception as error:  # noqa: BLE001 - mostly a folder that is away; whatever it is, looks go on
                if not failing:
                    _log.warning("feed_failed", reason=str(error) or repr(error))
                failing = True
                self._ring(heard)
            else:
                if failing:
                    _log.info("feed_recovered")
                failing = False
            self._publish(news)

    async def _rings(self, seconds: float) -> bool:
        """Whether something is heard of within so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._rung.wait()
        return False

    def _publish(self, news: News) -> None:
        for kind, job, data in news:
            self.position += 1
            self._events.append(Event(self.position, kind, job, json.dumps(data)))
        if news:
            self._more.set()
            self._more = asyncio.Event()

    def _watch(self, bell: Bell) -> None:
        queue = self._source.queue
        bell.watch((queue.root, *(queue.folder(state) for state in State), self._source.outputs))

    def _first_look(self, bell: Bell) -> None:
        self._watch(bell)
        self._states = {job: state for state in reversed(PRECEDENCE) for job in self._source.queue.names(state)}
        self._paused = self._source.queue.paused
        self._has_looked = True

    def _look(self, bell: Bell, heard: set[str], news: News, *, thorough: bool) -> None:
        """Add to `news` what is new of the jobs that something was heard of, or of all.

        Raises OSError when a folder is away, or when the news of some jobs is missing.
        """
        queue = self._source.queue
        self._watch(bell)
        for folder in map(queue.folder, State):
            if folder_identity(folder) is None:  # the share is away: that is not "every job was removed"
                raise FileNotFoundError(errno.ENOENT, "is away", str(folder))
        paused = queue.paused
        if self._paused != paused:
            self._paused = paused
            news.append(("queue", "", {"paused": paused}))
        failed: OSError | None = None
        for job in dict.fromkeys([*_jobs(heard), *(self._suspects() if thorough else ())]):
            try:
                self._look_at(job, news)
            except OSError as error:
                failed = error
        if failed:
            raise failed

    def _suspects(self) -> Iterable[str]:
        """Jobs that moved without a sound, and those that run."""
        queue = self._source.queue
        stand = {job: state for state in reversed(PRECEDENCE) for job in queue.names(state)}
        moved = [job for job, state in stand.items() if self._states.get(job) is not state]
        return [
            *moved,
            *(job for job in self._states if job not in stand),
            *(job for job, state in stand.items() if state is State.PROCESSING and job not in moved),
        ]

    def _look_at(self, job: str, news: News) -> None:
        state = self._source.queue.state_of(job)
        before = self._states.get(job)
        try:
            summary = self._source.summary(job) if state else None
        except UnknownJobError:
            summary = None
        if summary is None or state is None:
            if before is not None:
                del self._states[job]
                self._shown.pop(job, None)
                news.append(("removed", job, {"job_id": printable(job)}))
            return
        state = State(summary["state"])
        self._states[job] = state
        shown = hash(json.dumps(summary))
        if self._shown.get(job) != shown:
            self._shown[job] = shown
            news.append(("job", job, summary))
        if state is State.DONE and before is not State.DONE:
            news.append(("video", job, {"job_id": printable(job), "name": summary["video"]}))


def _jobs(names: Iterable[str]) -> list[str]:
    """The jobs that names of files in outputs and of directories in the queue speak of."""
    return sorted({name.removesuffix(status.SUFFIX) for name in names if not name.startswith(".")})
