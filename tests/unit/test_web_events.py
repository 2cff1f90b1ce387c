"""What a listener of the gateway's streams gets while more happens than it has taken."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, cast

from framepack_daemon.web.events import _everything, _videos
from framepack_daemon.web.feed import Feed


def publish(feed: Feed, *names: str) -> None:
    feed._publish([("video", name, {"job_id": name, "name": f"{name}.mp4"}) for name in names])


def test_a_video_that_comes_while_another_is_sent_is_not_left_out() -> None:
    async def listen() -> list[str | None]:
        feed = Feed(cast("Any", None), poll_seconds=1, rescan_seconds=1)
        videos = _videos(feed, None)
        first = asyncio.ensure_future(anext(videos))
        await asyncio.sleep(0)  # it listens
        publish(feed, "a", "b")
        got = [(await first).data]
        publish(feed, "c")
        return [*got, *[(await asyncio.wait_for(anext(videos), 10)).data for _ in range(2)]]

    assert asyncio.run(listen()) == ["a.mp4", "b.mp4", "c.mp4"]


def test_an_event_that_comes_while_another_is_sent_is_not_left_out() -> None:
    async def listen() -> bytes:
        feed = Feed(cast("Any", None), poll_seconds=1, rescan_seconds=1)
        events = cast("AsyncIterator[bytes]", _everything(feed, feed.identify(0)))
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        publish(feed, "a", "b")
        got = await first
        publish(feed, "c")
        return got + await asyncio.wait_for(anext(events), 10)

    assert re.findall(rb"id: \w+-(\d)", asyncio.run(listen())) == [b"1", b"2", b"3"]
