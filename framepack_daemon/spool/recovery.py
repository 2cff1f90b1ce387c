"""Recovery: what the last daemon left half done is finished or undone, before anything else runs.

Every step leaves something that the next start recovers from, for recovery may be killed too. Who merely stands in a
state is left to the keeper; what has an outcome is brought to its end by the daemon's first turn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import structlog

from framepack_daemon import atomic
from framepack_daemon.job import ID_DIGITS, State
from framepack_daemon.spool import capture, status
from framepack_daemon.spool.keeper import Keeper

_TEMPORARY = re.compile(rf"^\..+-[0-9a-f]{{{ID_DIGITS}}}\..+\.[0-9a-f]{{8}}\.tmp$")

_log = structlog.get_logger(__name__)


def recover(keeper: Keeper, drop_folders: Iterable[Path], seconds: float = math.inf) -> None:
    """Put in order what a crash left in the queue, the drop folders, outputs and scratch.

    Jobs that merely stand somewhere are entered for so many seconds, the others by the keeper's next passes.
    """
    queue = keeper.queue
    queue.make()
    keeper.door.recover()
    for folder in drop_folders:
        capture.release_all(folder)
    for path in queue.trash.iterdir():
        atomic.remove_tree(path)
    published = [path.name for path in keeper.outputs.iterdir()]
    for name in published:
        if _TEMPORARY.match(name):
            (keeper.outputs / name).unlink(missing_ok=True)
    keeper.settle_conflicts()
    for job in queue.names(State.PROCESSING):
        try:
            if not queue.has_outcome(State.PROCESSING, job):
                queue.move(job, State.PROCESSING, State.PENDING)
                _log.info("job_recovered", job=job)
        except PermissionError as error:
            if not keeper.barred.note(job, State.PROCESSING, error):
                raise
    keeper.tidy(held=frozenset(), seconds=seconds)
    keeper.line_up()
    _end_vanished(keeper, published)
    _discard_left_scratch(keeper)
    keeper.previews.settle(published)


def _end_vanished(keeper: Keeper, published: Iterable[str]) -> None:
    """Say of jobs that were removed while no daemon ran that they are no more; by the names in outputs."""
    for name in published:
        job = name.removesuffix(status.SUFFIX)
        if job != name and not keeper.is_known(job) and keeper.queue.state_of(job) is None:
            keeper.previews.keep(job)
            keeper.arrivals.discard_scratch(job)
            keeper.writer.ended_outside(job)


def _discard_left_scratch(keeper: Keeper) -> None:
    """Remove what a crash let stay in scratch of jobs that have ended."""
    for path in keeper.work_dir.iterdir():
        if path.is_dir() and keeper.queue.state_of(path.name) in (State.DONE, State.FAILED):
            keeper.arrivals.discard_scratch(path.name)
