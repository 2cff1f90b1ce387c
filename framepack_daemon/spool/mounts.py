"""Mounted folders that go away: telling an unmounted share from a folder that somebody emptied.

An unmounted share leaves the empty folder beneath it, in which a queue or a video would be hidden as soon as the share
is back. So the mount point that a folder was found on is remembered, for a running daemon and beside its scratch for
the next one. Knows nothing of what the folders hold.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

import structlog

from framepack_daemon import atomic
from framepack_daemon.errors import FolderAwayError

MEMORY_FILE = "mounts.json"  # in work_dir: the mount point that each folder was on
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")  # as the kernel writes blanks and backslashes

_log = structlog.get_logger(__name__)


class Anchor:
    """A folder, and the mount point at or above it that must be there for it to be the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mount = mount_point(folder)
        self._seen = b""  # the mounts when the folder was last looked at

    @property
    def is_away(self) -> bool:
        """Whether what was mounted there is unmounted."""
        return self.mount not in _mount_points(_mounts())

    def expect(self) -> None:
        """Raise OSError while the folder is away; note it when another file system was mounted over it."""
        mounts = _mounts()
        if mounts == self._seen:
            return
        now = mount_point(self.folder)
        if now != self.mount:
            if self.is_away:
                raise OSError(errno.ENODEV, f"{self.mount} is not mounted", str(self.folder))
            hint = "what was in it before is hidden"
            _log.warning("mounted_over", folder=str(self.folder), mount=str(now), hint=hint)
            self.mount = now
        self._seen = mounts  # as it was before the look: what is mounted meanwhile is seen by the next one


def recall(work_dir: Path, folders: Iterable[Path]) -> dict[Path, Path]:
    """The folders that are away, and the mount point that is missing, by what the last daemon wrote down."""
    known, mounted = atomic.read_json(work_dir / MEMORY_FILE) or {}, _mount_points(_mounts())
    places = {folder: Path(str(known[str(folder)])) for folder in folders if str(folder) in known}
    return {folder: mount for folder, mount in places.items() if mount not in mounted}


def expect(work_dir: Path, folders: Iterable[Path]) -> None:
    """Raise `FolderAwayError` when one of the folders is away, before anything is made in the empty folder beneath."""
    for folder, mount in recall(work_dir, folders).items():
        raise FolderAwayError(
            f"{folder}: {mount} is not mounted, and was when a daemon ran here last",
            hint=f"mount it; or, if the folder shall stand here from now on, delete {work_dir / MEMORY_FILE}",
        )


def remember(work_dir: Path, folders: Iterable[Path]) -> None:
    """Write down the mount points of the folders for the next daemon."""
    known = {str(folder): str(mount_point(folder)) for folder in folders}
    if atomic.read_json(work_dir / MEMORY_FILE) != known:
        atomic.write_json(work_dir / MEMORY_FILE, known)


def mount_point(folder: Path) -> Path:
    """The nearest mount point at or above a folder, which need not exist."""
    mounted = _mount_points(_mounts())
    real = folder.resolve()
    return next((place for place in (real, *real.parents) if place in mounted), Path("/"))


def _mounts() -> bytes:
    """What is mounted where, as the kernel says it; empty when that cannot be read."""
    try:
        return _MOUNTS.read_bytes()
    except OSError:
        return b""


def _mount_points(mounts: bytes) -> set[Path]:
    """Where something else shows than what would be there without the mount.

    A service manager mounts a folder that a service may write onto itself: whether a share is there says only what lies
    beneath.
    """
    table = {fields[0]: fields for fields in (line.split(b" ") for line in mounts.splitlines())}
    plain = (_plain(fields[4]) for fields in table.values() if not _shows_itself(fields, table.get(fields[1])))
    return {Path("/"), *(Path(os.fsdecode(each)) for each in plain)}


def _shows_itself(fields: list[bytes], parent: list[bytes] | None) -> bool:
    """Whether a mount shows the very folder of its parent that it is mounted on.

    Fields: number, number of the parent, device, folder of the device that is shown, place, ...
    """
    if parent is None or fields[2] != parent[2]:
        return False
    inside = os.path.relpath(_plain(fields[4]), _plain(parent[4]))
    return os.path.normpath(os.path.join(_plain(parent[3]), inside)) == _plain(fields[3])  # noqa: PTH118 - bytes


def _plain(field: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), field)
