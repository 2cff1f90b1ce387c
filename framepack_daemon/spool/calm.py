"""Which drop folders need no other look: no file in them is being watched, and no name has come or gone since.

Whether names changed is told by the folder's own time stamp, where file systems keep one that can be trusted. So a
folder full of files that wait for their partners costs nothing. A hint that is doubted every minute; knows nothing of
drops.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framepack_daemon.spool.watch import is_remote

STAMP_SECONDS = 2.0  # a folder's time stamp is no coarser than this: a change after that shows
DOUBT_SECONDS = 60.0  # after which a calm folder is looked at all the same


@dataclass
class _Look:
    """What a folder was like when it was first seen so."""

    stamp: tuple[int, int, int]  # device, inode, time of the last change of its names
    values: Any  # what else decides over its drops
    since: float  # monotonic
    begun: float  # monotonic; the last look at its names
    calm: bool = False


class Calm:
    """Remembers which folders a look brought nothing from."""

    def __init__(self) -> None:
        self._looks: dict[Path, _Look] = {}

    def holds(self, folder: Path, values: Any, *, doubted: bool) -> bool:
        """Whether a look would bring nothing, which may be `doubted`; else it begins now and ends with `note`."""
        now = time.monotonic()
        look = self._looks.get(folder)
        stamp = _stamp(folder)
        if look is None or look.stamp != stamp or look.values != values:
            look = self._looks[folder] = _Look(stamp, values, now, now)
        elif look.calm and not doubted and now < look.begun + DOUBT_SECONDS:
            return True
        look.begun, look.calm = now, False
        return False

    def note(self, folder: Path, *, watching: bool) -> None:
        """Say whether the look found files that have to be watched."""
        look = self._looks[folder]
        look.calm = not watching and look.begun >= look.since + STAMP_SECONDS and not is_remote(folder)


def _stamp(folder: Path) -> tuple[int, int, int]:
    try:
        found = folder.stat()
    except OSError:
        return 0, 0, 0
    return found.st_dev, found.st_ino, found.st_mtime_ns
