"""What keeps the daemon from its work: folders that are full, read-only or away.

Each is kept from the first failure to the next success, in memory and in a file beside scratch, where `status` finds
what no status file can say. Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framepack_daemon import atomic
from framepack_daemon.job import now
from framepack_daemon.spool import mounts

FILE = "troubles.json"  # in work_dir


@dataclass
class Troubles:
    """The troubles of one daemon; callable from any thread."""

    path: Path | None = None  # where they are written down
    _known: dict[str, dict[str, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, reason: object) -> bool:
        """Keep that `what` fails; whether this is news."""
        with self._lock:
            before = self._known.get(what)
            if before and before["reason"] == str(reason):
                return False
            self._known[what] = {"reason": str(reason), "since": before["since"] if before else now()}
            self._write()
            return before is None

    def clear(self, what: str) -> None:
        """Forget it: it went well."""
        with self._lock:
            if self._known.pop(what, None):
                self._write()

    @property
    def reasons(self) -> dict[str, str]:
        """What fails now, and why."""
        with self._lock:
            return {what: said["reason"] for what, said in self._known.items()}

    def begin(self) -> None:
        """Forget what the last daemon wrote down."""
        self._write()

    def _write(self) -> None:
        # Where scratch cannot be written either, the log has said it.
        with contextlib.suppress(OSError):
            if self.path is not None:
                atomic.write_json(self.path, self._known, durable=False)


def read(path: Path) -> list[dict[str, str]]:
    """What a running daemon wrote down: of each trouble `what`, `reason` and `since`."""
    return [{"what": what, **said} for what, said in (atomic.read_json(path) or {}).items() if isinstance(said, dict)]


def standing(work_dir: Path, folders: Sequence[Path], *, told: bool) -> list[dict[str, str]]:
    """What keeps jobs from running: `folders` that are not mounted and, if `told`, what the running daemon noted."""
    away = mounts.recall(work_dir, folders)
    found = [{"what": str(folder), "reason": f"{mount} is not mounted"} for folder, mount in away.items()]
    return found + (read(work_dir / FILE) if told else [])
