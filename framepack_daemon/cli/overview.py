"""What `status` knows: the queue as one JSON object, read from the folders at the moment of asking.

States and order come from the state folders alone; status files are read for the rows that are shown and for no other,
so that ten thousand waiting jobs cost their names and records, not their files. Knows nothing of how it is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framepack_daemon.job import State
from framepack_daemon.spool import status, troubles
from framepack_daemon.spool.groups import halves
from framepack_daemon.spool.lock import daemon_runs

if TYPE_CHECKING:
    from framepack_daemon.cli.context import Face


def read(face: Face, rows: int) -> dict[str, Any]:
    """The whole queue, with at most `rows` jobs of each state; running ones first, the newest of the finished ones."""
    settings, queue, outputs = face.spool
    waiting = queue.waiting()
    names = {state: queue.names(state) for state in State}
    shown = {
        State.PROCESSING: sorted(names[State.PROCESSING])[:rows],
        State.PENDING: waiting[:rows],
        State.DONE: queue.newest(State.DONE, rows),
        State.FAILED: queue.newest(State.FAILED, rows),
    }
    running = daemon_runs(settings.queue_dir, settings.inbox)
    found: dict[str, Any] = {
        "daemon": {"running": running},
        "paused": queue.paused,
        "troubles": troubles.standing(settings.work_dir, (settings.inbox, outputs, queue.root), told=running),
        "folders": {"inbox": str(settings.inbox), "outputs": str(outputs), "queue": str(queue.root)},
        "counts": {str(state): len(names[state]) for state in State},
    }
    for state, jobs in shown.items():
        found[str(state)] = [status.current(queue, outputs, state, job) for job in jobs]
    for position, row in enumerate(found[State.PENDING], start=1):
        row["position"] = position
    excluded = (outputs, queue.root, settings.work_dir)
    found["halves"] = [{"name": name, "waits_for": reason} for name, reason in halves(settings.inbox, queue, excluded)]
    return found
