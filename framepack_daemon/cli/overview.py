"""What `status` knows: the queue as one JSON object, read from the folders at the moment of asking.

States and order come from the state folders alone; status files are read for the rows that are shown and for no other,
so that ten thousand waiting jobs cost their names and records, not their files. Knows nothing of how it is shown.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

from framepack_daemon.cli.context import daemon_runs
from framepack_daemon.job import State
from framepack_daemon.spool import status
from framepack_daemon.spool.groups import halves

if TYPE_CHECKING:
    from pathlib import Path

    from framepack_daemon.cli.context import Face
    from framepack_daemon.spool.queue import Queue


def read(face: Face, rows: int) -> dict[str, Any]:
    """The whole queue, with at most `rows` jobs of each state; running ones first, the newest of the finished ones."""
    settings, queue, outputs = face.spool
    waiting = queue.waiting()
    names = {state: queue.names(state) for state in State}
    shown = {
        State.PROCESSING: sorted(names[State.PROCESSING])[:rows],
        State.PENDING: waiting[:rows],
        State.DONE: _newest(queue, State.DONE, names[State.DONE], rows),
        State.FAILED: _newest(queue, State.FAILED, names[State.FAILED], rows),
    }
    found: dict[str, Any] = {
        "daemon": {"running": daemon_runs(settings.queue_dir)},
        "paused": queue.paused,
        "folders": {"inbox": str(settings.inbox), "outputs": str(outputs), "queue": str(queue.root)},
        "counts": {str(state): len(names[state]) for state in State},
    }
    for state, jobs in shown.items():
        found[str(state)] = [one(queue, outputs, state, job) for job in jobs]
    for position, row in enumerate(found[State.PENDING], start=1):
        row["position"] = position
    found["halves"] = [{"name": name, "waits_for": reason} for name, reason in halves(settings.inbox, queue)]
    return found


def one(queue: Queue, outputs: Path, state: State, job: str) -> dict[str, Any]:
    """A job's status file (design: the status file), its state taken from the folder it stands in."""
    body = status.read(outputs, job)
    if body is None or body.get("state") != state:
        # The file is away, or lags behind the folder for a moment: the job's own records say what there is to say.
        run = queue.run(state, job)
        body = status.compose(queue, run, state) if run else {"message": "has no readable record"}
    return body | {"job": job, "state": str(state)}


def _newest(queue: Queue, state: State, jobs: list[str], rows: int) -> list[str]:
    """The jobs that came into the state last, newest first."""

    def entered(job: str) -> int:
        try:
            return queue.path(state, job).stat().st_ctime_ns  # a rename sets it
        except FileNotFoundError:
            return 0

    return heapq.nlargest(rows, jobs, key=entered)
