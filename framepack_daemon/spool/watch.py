"""The bell: file system events that wake a scan sooner than its timer would.

An event says only that something of that name may have changed; what is there, the scan finds out. Watches are not
recursive, are set anew when a folder was deleted and made again, and are left out on file systems that do not tell of
other hosts' changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog
from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

_log = structlog.get_logger(__name__)

# Reading a file, which the daemon does itself on every scan, must not ring.
_TELLING: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
]

# File systems whose events do not tell of changes that other hosts make (names as in /proc/self/mountinfo).
REMOTE_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse", "virtiofs")


class Bell(FileSystemEventHandler):
    """Rings `ring` when something changes in one of the watched folders, with the names of what may have changed."""

    def __init__(self, ring: Callable[[set[str]], None]) -> None:
        self._ring = ring
        self._observer: BaseObserver | None = None  # made when it is needed: it may be refused
        self._watches: dict[Path, tuple[tuple[int, int], ObservedWatch | None]] = {}
        self._warned = False

    def watch(self, folders: Iterable[Path]) -> None:
        """Watch exactly these folders; called on every scan, it sees which of them are new, gone or made anew."""
        wanted = {path: identity for path in folders if (identity := folder_identity(path)) is not None}
        for path in [path for path, (identity, _) in self._watches.items() if wanted.get(path) != identity]:
            self._forget(path)
        for path, identity in wanted.items():
            if path not in self._watches:
                self._watches[path] = identity, self._schedule(path)

    @property
    def is_deaf(self) -> bool:
        """Whether changes in one of the folders may go unheard: scans have to be frequent."""
        return any(watch is None for _, watch in self._watches.values())

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Ring."""
        self._ring({Path(os.fsdecode(path)).name for path in (event.src_path, event.dest_path)})

    def stop(self) -> None:
        """End the watching thread."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()

    def _schedule(self, path: Path) -> ObservedWatch | None:
        if is_remote(path):
            return None
        try:
            if self._observer is None:
                observer: BaseObserver = Observer()
                observer.start()
                self._observer = observer
            return self._observer.schedule(self, str(path), recursive=False, event_filter=_TELLING)
        except OSError as error:  # no watches or no instances left: the timer still scans
            if not self._warned:
                _log.warning("no_file_events", folder=str(path), reason=str(error), hint="scans go on by the timer")
            self._warned = True
            return None

    def _forget(self, path: Path) -> None:
        _, watch = self._watches.pop(path)
        if watch is not None and self._observer is not None:
            self._observer.unschedule(watch)


def folder_identity(path: Path) -> tuple[int, int] | None:
    """(device, inode) of a folder; None when it is away. Another identity means another folder of the same name."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def file_system(path: Path) -> str:
    """Type of the file system that `path` is on, as the kernel calls it; empty when that cannot be told."""
    best = ""
    try:
        device = os.stat(path).st_dev  # noqa: PTH116
        wanted = f"{os.major(device)}:{os.minor(device)}"
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in mounts:
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            best = right.split()[0]
    return best


def is_remote(path: Path) -> bool:
    """Whether the folder's file system does not tell of changes that other hosts make."""
    kind = file_system(path)
    return kind.split(".")[0] in REMOTE_FILE_SYSTEMS and kind != "fuse.overlayfs"
