"""Streams of server-sent events: one for everything, and the original's two.

Each is a listener of the feed. A stream that broke goes on where it was, by `Last-Event-ID`; where that is not possible
(another process, or too long ago), `/events` sends the whole queue first. Reads folders by the gateway alone.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Annotated, Any

from fastapi import APIRouter, Header
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from framepack_daemon.errors import UnknownJobError
from framepack_daemon.job import State
from framepack_daemon.web import views
from framepack_daemon.web.feed import Event, Feed
from framepack_daemon.web.gateway import Gateway, Here
from framepack_daemon.web.models import JobId
from framepack_daemon.web.problems import documented

PING_SECONDS = 15  # between two comments that keep proxies from closing the stream
SEND_SECONDS = 60.0  # after which a client that takes nothing is let go
TOGETHER = 100  # events at most, that are sent in one piece
RETRY_MILLISECONDS = 2000  # after which a browser connects again

router = APIRouter(tags=["events"])
LastEventId = Annotated[
    str | None, Header(max_length=100, description="The id of the last event that came; browsers send it themselves.")
]


def _documented(example: str) -> dict[int | str, dict[str, Any]]:
    content = {"text/event-stream": {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": "Events, for as long as the client listens.", "content": content}}


@router.get(
    "/events",
    response_class=EventSourceResponse,
    responses=_documented('event: job\nid: 3f9a1c02-17\ndata: {"job_id": "beach-1f3a9c02d4e5", "progress": 43, …}\n\n')
    | documented(422),
)
async def events(here: Here, last_event_id: LastEventId = None) -> EventSourceResponse:
    """Everything that changes, in one stream.

    `snapshot` comes first, unless `Last-Event-ID` says where to go on: the answer of `GET /queue`. Then `job` with a
    job as in that list, whenever something about it changed; `removed` with its `job_id`; `video` with the `name` of an
    MP4 that was published; `queue` with `paused`.
    """
    return _stream(here.feed, _everything(here.feed, last_event_id))


@router.get(
    "/stream/status/{job_id}",
    response_class=EventSourceResponse,
    responses=_documented('event: progress\ndata: {"job_id": "beach-1f3a9c02d4e5", "status": "processing", …}\n\n')
    | documented(404, 422),
)
async def stream_status(here: Here, job_id: JobId) -> EventSourceResponse:
    """The answer of `GET /status/{job_id}` as a `progress` event on each change, and as a last `status` event."""
    await run_in_threadpool(here.state, job_id)
    return _stream(here.feed, _one(here, job_id))


@router.get(
    "/video_stream",
    response_class=EventSourceResponse,
    responses=_documented("id: 3f9a1c02-18\ndata: beach-1f3a9c02d4e5.mp4\n\n") | documented(422),
)
async def video_stream(here: Here, last_event_id: LastEventId = None) -> EventSourceResponse:
    """The name of each MP4, once it is published."""
    return _stream(here.feed, _videos(here.feed, last_event_id))


def _stream(feed: Feed, content: AsyncIterator[ServerSentEvent | bytes]) -> EventSourceResponse:
    async def counted() -> AsyncIterator[ServerSentEvent | bytes]:
        feed.listeners += 1
        try:
            async for event in content:
                yield event
        finally:
            feed.listeners -= 1

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(counted(), headers=headers, ping=PING_SECONDS, send_timeout=SEND_SECONDS)


async def _everything(feed: Feed, identity: str | None) -> AsyncIterator[ServerSentEvent | bytes]:
    place = feed.place(identity)
    while True:
        missed = feed.since(place) if place is not None else None
        if missed is None or place is None:
            place, text = await feed.snapshot()
            yield ServerSentEvent(text, event="snapshot", id=feed.identify(place), retry=RETRY_MILLISECONDS)
            continue
        for begin in range(0, len(missed), TOGETHER):
            together = missed[begin : begin + TOGETHER]
            yield b"".join(_encoded(event, feed.identify(event.number)) for event in together)
            place = together[-1].number
        await feed.beyond(place)


@lru_cache(maxsize=TOGETHER)
def _encoded(event: Event, identity: str) -> bytes:
    """The event as it goes to every listener."""
    return ServerSentEvent(event.text, event=event.kind, id=identity).encode()


async def _videos(feed: Feed, identity: str | None) -> AsyncIterator[ServerSentEvent]:
    place = feed.place(identity)
    place = feed.position if place is None else place
    while True:
        missed = feed.since(place)
        if missed is None:  # it fell too far behind
            place = feed.position
        for event in missed or []:
            if event.kind == "video":
                yield ServerSentEvent(json.loads(event.text)["name"], id=feed.identify(event.number))
            place = event.number  # not the newest: more may have come while this one was sent
        await feed.beyond(place)


async def _one(here: Gateway, job: str) -> AsyncIterator[ServerSentEvent]:
    before = None
    while True:
        place = here.feed.position
        try:
            body = await run_in_threadpool(here.body, job)
        except UnknownJobError:
            body = {"job": job, "state": State.FAILED, "message": "removed from the queue"}
        shown = json.dumps(views.wire(body))
        if shown != before:
            yield ServerSentEvent(shown, event="progress")
            before = shown
        if views.is_over(body):
            yield ServerSentEvent(shown, event="status")
            return
        while not any(event.job == job for event in here.feed.since(place) or []):
            await here.feed.beyond(here.feed.position)
