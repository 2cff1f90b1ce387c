"""What is pushed to open pages: after each change of the queue, the parts of the page that are others now.

One task looks for changes while anybody listens, however many do; what a language's pages get is rendered once. A page
gets the whole board first, so that nothing needs to be remembered of it while it is away. Knows nothing of the words.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace

import structlog

from framepack_daemon.web.feed import Feed
from framepack_daemon.web.page_board import Board, Card, Reader

PAUSE_SECONDS = 0.3  # at least, between two readings of the folders
READ_SECONDS = 10.0  # at most, for what the feed does not tell: the daemon's end, a file in the inbox

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Rendered:
    """A board in one language."""

    frame: Board  # without what the cards say
    whole: str
    cards: dict[str, str]


Render = Callable[[str, Board], Rendered]


@dataclass
class Pushes:
    """Feeds every open page of one gateway."""

    reader: Reader
    render: Render
    feed: Feed
    _listeners: int = 0
    _board: Board | None = None
    _revision: int = 0
    _rendered: dict[str, tuple[int, Rendered]] = field(default_factory=dict)
    _bell: asyncio.Event = field(default_factory=asyncio.Event)  # look now
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _task: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Have the folders read again at once: a person did something."""
        self.reader.forget()
        self._bell.set()

    async def listen(self, language: str) -> AsyncIterator[str]:
        """Fragments for one page, until it goes: the whole board, then what changes."""
        self._listeners += 1
        if self._task is None or self._task.done():
            self._board = None
            self._task = asyncio.create_task(self._follow())
        self._bell.set()
        shown: Rendered | None = None
        try:
            while True:
                now = await self._newer(shown, language)
                if text := _difference(shown, now):
                    yield text
                shown = now
        finally:
            self._listeners -= 1

    async def _newer(self, shown: Rendered | None, language: str) -> Rendered:
        """The newest board in that language, once it is another than the one shown."""
        async with self._news:
            await self._news.wait_for(lambda: self._board is not None and self._render(language) is not shown)
        return self._render(language)

    def _render(self, language: str) -> Rendered:
        """The newest board in that language."""
        revision, rendered = self._rendered.get(language, (-1, None))
        if rendered is None or revision != self._revision:
            assert self._board is not None
            rendered = self.render(language, self._board)
            self._rendered[language] = (self._revision, rendered)
        return rendered

    async def _follow(self) -> None:
        """Read the folders whenever they have changed, as long as anybody listens."""
        failing = False  # said once
        while self._listeners:
            self._bell.clear()
            place = self.feed.position
            try:
                await self._take(await asyncio.to_thread(self.reader.board))
            except OSError as error:  # a folder is away or broken: the next look tries again
                if not failing:
                    _log.warning("feed_failed", reason=str(error))
                failing = True
            else:
                failing = False
            await asyncio.sleep(PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READ_SECONDS):
                    await _first(self._bell.wait(), self.feed.beyond(place))

    async def _take(self, board: Board) -> None:
        """Keep the board and tell the listeners, if it is another one."""
        if board == self._board:
            return
        async with self._news:
            self._board = board
            self._revision += 1
            self._news.notify_all()


async def _first(*waits: Coroutine[None, None, object]) -> None:
    """Wait for the first of several things to happen."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def frame(board: Board) -> Board:
    """The board without what its cards say: which there are, and everything around them."""

    def bare(cards: list[Card]) -> list[Card]:
        return [replace(card, body={}, position=None, left=None, video=None, preview=None) for card in cards]

    return replace(board, queue=bare(board.queue), failed=bare(board.failed), finished=bare(board.finished))


def _difference(before: Rendered | None, now: Rendered) -> str:
    """What turns the page that shows `before` into one that shows `now`; empty when that is the same."""
    if before is None or before.frame != now.frame:
        return f'<hx-partial hx-target="#board" hx-swap="innerMorph">{now.whole}</hx-partial>'
    return "".join(
        f'<hx-partial hx-target="#card-{key}" hx-swap="outerMorph">{text}</hx-partial>'
        for key, text in now.cards.items()
        if before.cards[key] != text
    )
