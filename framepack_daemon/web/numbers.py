"""The gateway's own numbers for Prometheus; those of queue and workers the daemon gives itself.

Labels are the routes' patterns and never a client's words, so that their number is bounded. Knows no route.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from framepack_daemon.web.feed import Feed

METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60)  # seconds


class Numbers:
    """The numbers of one gateway."""

    def __init__(self, feed: Feed) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(namespace="framepack_web", registry=registry)
        self._requests = Counter(
            "framepack_web_requests", "Answers, by route.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "framepack_web_request_seconds",
            "Time until an answer began.",
            ("method", "route"),
            buckets=BUCKETS,
            registry=registry,
        )
        listeners = Gauge("framepack_web_listeners", "Open streams of events.", registry=registry)
        listeners.set_function(lambda: feed.listeners)
        events = Gauge("framepack_web_events", "Events since the start.", registry=registry)
        events.set_function(lambda: feed.position)

    def text(self) -> bytes:
        """Every number, in Prometheus' text format."""
        return generate_latest(self.registry)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answer."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class Counting:
    """Counts what goes through it."""

    def __init__(self, app: ASGIApp, *, numbers: Numbers) -> None:
        self._app = app
        self._numbers = numbers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count its answer."""
        began = time.monotonic()

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._numbers.count(scope, message["status"], time.monotonic() - began)
            await send(message)

        await self._app(scope, receive, count if scope["type"] == "http" else send)
