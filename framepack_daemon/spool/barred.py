"""Directories in the queue that the daemon may not move or write, as a copy that another user made: passed over.

Each is said once, in the log and as a trouble, and is left alone until its permissions let the daemon in; the jobs
beside it go on. Moves nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from framepack_daemon.job import State
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.troubles import Troubles

TROUBLE = "permissions"

_log = structlog.get_logger(__name__)


@dataclass
class Barred:
    """The barred directories of one queue."""

    queue: Queue
    troubles: Troubles
    _places: dict[str, Path] = field(default_factory=dict)  # by name
    _said: set[Path] = field(default_factory=set)  # in the log; more than permissions may be in the way

    def __contains__(self, job: str) -> bool:
        """Whether the directory of that name is barred."""
        return job in self._places

    def note(self, job: str, state: State, error: OSError) -> bool:
        """Whether the error says that the job's directory in `state` is barred, which is passed over from now on."""
        place = self.queue.path(state, job)
        failed = Path(os.fsdecode(error.filename or ""))
        inside = any(root in (failed, *failed.parents) for root in (place, self.queue.building))
        ours = (self.queue.folder(each) for each in State)
        if not (isinstance(error, PermissionError) and inside and all(is_writable(folder) for folder in ours)):
            return False
        if place not in self._said:
            _log.warning("job_barred", job=job, folder=str(place), reason=str(error), hint=hint(place))
        self._said.add(place)
        self._places[job] = place
        self._tell()
        return True

    def look(self) -> None:
        """Forget those that are gone or let the daemon in."""
        for job in [job for job, place in self._places.items() if _is_open(place)]:
            del self._places[job]
            self._tell()

    def _tell(self) -> None:
        if not self._places:
            self.troubles.clear(TROUBLE)
            return
        first, *others = self._places.values()
        more = f", nor {len(others)} more" if others else ""
        self.troubles.note(TROUBLE, f"the daemon may not write {first}{more}: {hint(first)}")


def hint(place: Path) -> str:
    """What mends it."""
    return f"let its group do so: chmod -R g+rwX {place}"


def _is_open(place: Path) -> bool:
    """Whether a directory can be moved and written, and what is in it be read; true also where it is gone."""
    if not os.path.lexists(place):
        return True
    try:
        inside = [place, *place.iterdir()]
    except (PermissionError, FileNotFoundError):  # closed; or it goes in this very moment, which the next look sees
        return False
    return is_writable(place) and all(os.access(path, os.R_OK, effective_ids=True) for path in inside)


def is_writable(folder: Path) -> bool:
    """Whether names in the folder may be changed."""
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
