"""The gateway's feed while folders are away or cannot be read: it says so once, and loses no event over it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from served import served, until
from spool_bench import SIDECAR, Bench

from framepack_daemon.job import State
from framepack_daemon.settings import Settings
from framepack_daemon.spool import moves
from framepack_daemon.spool.queue import Queue
from framepack_daemon.web.gateway import Gateway
from framepack_daemon.web.settings import WebSettings

POLL_SECONDS, RESCAN_SECONDS = 0.1, 0.5

pytestmark = pytest.mark.timeout(60)


def test_a_share_that_is_away_is_told_once_and_so_is_what_happened_there(still: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "share", still)
    away = Queue(bench.root / "away")

    def said() -> list[str]:
        found = [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]
        return [event["event"] for event in found if event["event"].startswith("feed_")]

    with (
        served(bench.root, poll_seconds=POLL_SECONDS, rescan_seconds=RESCAN_SECONDS) as gateway,
        gateway.stream("/events") as events,
    ):
        next(events)
        job = gateway.add(bench.picture, SIDECAR)
        bench.queue.pause_file.touch()
        until(lambda: next(events)["event"] == "queue")
        bench.queue.root.rename(away.root)
        until(said)
        moves.cancel(away, job)
        time.sleep(5 * POLL_SECONDS)
        away.root.rename(bench.queue.root)
        until(lambda: said()[1:])
        until(lambda: json.loads(next(events)["data"]).get("status") == "cancelled")
        assert said() == ["feed_failed", "feed_recovered"]


def test_a_gateway_that_starts_on_a_share_that_is_away_tells_of_nothing_old_when_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.drop()
    job = bench.take_one()
    bench.queue.move(job, State.PENDING, State.DONE)
    gateway = Gateway(settings_of(bench), WebSettings())
    away = [OSError(errno.ESTALE, os.strerror(errno.ESTALE))] * 2
    names = Queue.names

    def stale(queue: Queue, state: State) -> Any:
        if away:
            raise away.pop()
        return names(queue, state)

    async def follow() -> list[str]:
        monkeypatch.setattr(Queue, "names", stale)
        async with gateway.feed.running():
            await asyncio.sleep(2 * RESCAN_SECONDS)
            bench.queue.move(job, State.DONE, State.FAILED)
            await asyncio.wait_for(gateway.feed.beyond(0), 30)
            return [event.kind for event in gateway.feed.since(0) or []]

    assert asyncio.run(follow()) == ["job"]
    assert away == []


def settings_of(bench: Bench) -> Settings:
    folders = {"inbox": bench.inbox, "outputs": bench.outputs, "work_dir": bench.work}
    return Settings(**folders, poll_seconds=POLL_SECONDS, rescan_seconds=RESCAN_SECONDS)


class Unreadable(Gateway):
    """A gateway that may not read some jobs."""

    closed: frozenset[str] = frozenset()

    def summary(self, job: str) -> dict[str, Any]:
        """The job, unless it is one of them."""
        if job in self.closed:
            raise PermissionError(job)
        return super().summary(job)


def test_a_job_that_cannot_be_read_holds_up_no_other_and_is_told_of_later(bench: Bench) -> None:
    async def follow() -> None:
        gateway = Unreadable(settings_of(bench), WebSettings())
        async with gateway.feed.running():
            for seed in range(3):
                bench.drop(f"beach{seed}", seed=seed)
            jobs = frozenset(added.jobs[0] for added in bench.take())
            gateway.closed = jobs
            for job in jobs:
                bench.queue.move(job, State.PENDING, State.FAILED)
            first = bench.queue.names(State.FAILED)[0]
            gateway.closed = frozenset([first])
            await told(gateway, jobs - {first})
            gateway.closed = frozenset()
            await told(gateway, jobs)

    async def told(gateway: Gateway, jobs: frozenset[str]) -> None:
        place = 0
        while not jobs <= {event.job for event in gateway.feed.since(0) or [] if '"state": "failed"' in event.text}:
            await gateway.feed.beyond(place)
            place = gateway.feed.position

    asyncio.run(asyncio.wait_for(follow(), 30))
