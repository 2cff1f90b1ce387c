"""The pages in outputs that the daemon wrote: told from those of somebody else, replaced as a whole, and removed.

A page of ours bears a mark in its head. Knows neither jobs nor what else is on a page.
"""

from __future__ import annotations

import contextlib
import re
import stat
from pathlib import Path

from framepack_daemon import atomic
from framepack_daemon.gallery_page import MARK

_HEAD_BYTES = 1024  # of a page, in which its mark stands
_TEMPORARY = re.compile(r"\.index[-\d]*\.html\.[0-9a-f]{8}\.tmp")


def is_ours(path: Path) -> bool:
    """Whether the name is free or has a page of ours, be it one that a power loss left empty."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    return MARK in head or not head.strip(b"\0")


def put(path: Path, text: str) -> None:
    """Write a page, unless somebody else's is there."""
    if is_ours(path):
        atomic.write_bytes(path, text.encode(), durable=False)  # the next daemon writes them all again


def remove(path: Path) -> None:
    """Remove a page of ours."""
    if is_ours(path):
        path.unlink(missing_ok=True)


def remove_torn(path: Path) -> None:
    """Remove what a daemon that was killed left of a page, if it is that."""
    if _TEMPORARY.fullmatch(path.name):
        with contextlib.suppress(OSError):
            path.unlink()
