"""What every route needs: the folders, read at the moment of asking, and the feed of what changes in them.

Holds no state of its own, so that several gateways may run at once and any of them be killed at any time. Everything
here may wait for a disk, and is called outside the event loop. Knows no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from framepack_daemon.errors import UnknownJobError
from framepack_daemon.job import State
from framepack_daemon.settings import Settings
from framepack_daemon.spool import mounts, status
from framepack_daemon.spool.lock import daemon_runs
from framepack_daemon.spool.mounts import Anchor
from framepack_daemon.spool.queue import Queue
from framepack_daemon.web import views
from framepack_daemon.web.feed import Feed
from framepack_daemon.web.numbers import Numbers
from framepack_daemon.web.settings import WebSettings

ROWS = 100  # jobs of each state in a list, unless asked otherwise


@dataclass
class Gateway:
    """One gateway on one queue."""

    settings: Settings
    web: WebSettings
    queue: Queue = field(init=False)
    outputs: Path = field(init=False)
    feed: Feed = field(init=False)
    numbers: Numbers = field(init=False)

    def __post_init__(self) -> None:
        """Remember what the folders are mounted on."""
        self.queue, self.outputs = Queue(self.settings.queue_dir), self.settings.outputs
        self._anchors = (Anchor(self.queue.root), Anchor(self.outputs))
        self.feed = Feed(self, poll_seconds=self.settings.poll_seconds, rescan_seconds=self.settings.rescan_seconds)
        self.numbers = Numbers(self.feed)

    def expect(self) -> None:
        """Raise `FolderAwayError` or OSError while a folder is not mounted: nothing must be written beneath it."""
        mounts.expect(self.settings.work_dir, (self.outputs, self.queue.root))
        for anchor in self._anchors:
            anchor.expect()

    def state(self, job: str) -> State:
        """The state that the job is in; `UnknownJobError` for what is no job."""
        state = self.queue.state_of(job)
        if state is None:
            raise UnknownJobError(f"{job}: no such job", hint="GET /queue lists the jobs")
        return state

    def body(self, job: str) -> dict[str, Any]:
        """The job's status file; `UnknownJobError` for what is no job."""
        return status.current(self.queue, self.outputs, self.state(job), job)

    def summary(self, job: str) -> dict[str, Any]:
        """The job as it stands in a list; `UnknownJobError` for what is no job."""
        return self._summary(self.state(job), job)

    def overview(self, rows: int = ROWS) -> dict[str, Any]:
        """The jobs that run, those that wait in their order, and the newest of those that ended: `rows` of each."""
        waiting = self.queue.waiting()
        listed = {
            State.PROCESSING: sorted(self.queue.names(State.PROCESSING)),
            State.PENDING: waiting,
            State.DONE: self.queue.newest(State.DONE, rows),
            State.FAILED: self.queue.newest(State.FAILED, rows),
        }
        shown = {
            job: self._summary(state, job) | ({"position": place} if state is State.PENDING else {})
            for state, jobs in listed.items()
            for place, job in enumerate(jobs[:rows], start=1)
        }
        counts = {str(state): len(self.queue.names(state)) for state in State}
        return {"queue": list(shown.values()), "counts": counts, "paused": self.queue.paused}

    def daemon_runs(self) -> bool:
        """Whether a daemon on this machine holds the queue."""
        return daemon_runs(self.settings.queue_dir, self.settings.inbox)

    def _summary(self, state: State, job: str) -> dict[str, Any]:
        shown = views.summary(status.current(self.queue, self.outputs, state, job))
        run = self.queue.run(state, job) if state is State.PENDING else None
        return shown | ({"priority": run.priority} if run else {})


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


Here = Annotated[Gateway, Depends(_gateway)]
