"""One daemon per inbox and per queue: a lock in each, and a beating counter for shares where locks stay local.

The lock file says who holds it: host, boot, process, and a count that goes up every `BEAT_SECONDS`. Where another
host's count moves, its daemon lives, whatever the lock says. A file that was deleted, as mirroring tools do, is made
anew at the next beat. Released in an orderly way, the file is empty.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from framepack_daemon import atomic
from framepack_daemon.errors import QueueHeldError
from framepack_daemon.spool.capture import HIDDEN_FOLDER

QUEUE_LOCK = ".lock"  # in the queue folder
INBOX_LOCK = f"{HIDDEN_FOLDER}/lock"  # in the inbox
BEAT_SECONDS = 10.0
_PATIENCE_SECONDS = 1.5 * BEAT_SECONDS
_GLANCE_SECONDS = 0.5
_NONE = -1  # no descriptor


class FolderLock:
    """The lock file of one folder, held until `release`."""

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock at `path`; `what` names it in messages. Raises `QueueHeldError`."""
        self._path = path
        self._what = what
        self._count = 0
        atomic.make_folder(path.parent)
        self._descriptor = self._take()

    def _take(self) -> int:
        """A descriptor of the lock file with the lock on it, and our name in it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, atomic.FILE_MODE)
        try:
            _lock(descriptor)
            self._await_other_host(descriptor)
            self._sign(descriptor)
        except BlockingIOError as error:
            holder = _read(descriptor)
            os.close(descriptor)
            raise QueueHeldError(
                f"{self._what} is held by another daemon"
                f" (process {holder.get('pid', '?')} on {holder.get('host', '?')})",
                hint="one daemon serves an inbox and a queue; stop that one, or give this one folders of its own",
            ) from error
        except (QueueHeldError, OSError):
            os.close(descriptor)
            raise
        return descriptor

    def beat(self) -> None:
        """Show that the holder lives, in a new file where the old one was deleted.

        Raises `QueueHeldError` when another daemon has taken that meanwhile.
        """
        try:
            if self._stands():
                self._sign(self._descriptor)
                return
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            self._let_go()  # what was opened before a share went stale stays so when the share is back
        with contextlib.suppress(FileNotFoundError):  # while the whole folder is away there is nothing to hold
            self._path.parent.mkdir(exist_ok=True)
            taken = self._take()
            self._let_go()
            self._descriptor = taken

    def _stands(self) -> bool:
        """Whether the file that we hold is the one that others find."""
        try:
            return self._descriptor != _NONE and os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _let_go(self) -> None:
        if self._descriptor != _NONE:
            with contextlib.suppress(OSError):  # the descriptor is gone all the same
                os.close(self._descriptor)
        self._descriptor = _NONE

    def _sign(self, descriptor: int) -> None:
        self._count += 1
        _write(descriptor, json.dumps({**_me(), "pid": os.getpid(), "count": self._count}).encode())

    def release(self) -> None:
        """Let the next daemon in; our name stays where the folder cannot be written."""
        with contextlib.suppress(OSError):
            _write(self._descriptor, b"")
        self._let_go()

    def _await_other_host(self, descriptor: int) -> None:
        """Give another host's daemon the time to show that it lives."""
        before = _read(descriptor)
        if not before or {key: before.get(key) for key in _me()} == _me():
            return
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            time.sleep(BEAT_SECONDS / 20)
            if _read(descriptor) != before:
                raise QueueHeldError(
                    f"{self._what} is held by a daemon on {before.get('host', '?')}", hint="one daemon serves a queue"
                )


def daemon_runs(queue_dir: Path, inbox: Path | None = None) -> bool:
    """Whether a daemon holds the queue, or the inbox, where that is given and the queue may be away.

    On a share whose locks are local, a daemon on another host is not seen.
    """
    for lock in (queue_dir / QUEUE_LOCK, *([inbox / INBOX_LOCK] if inbox else [])):
        with contextlib.suppress(OSError):
            if atomic.is_locked(lock):
                return True
    return False


def _lock(descriptor: int) -> None:
    """Take the lock; a command that looks whether a daemon runs holds it for an instant only."""
    until = time.monotonic() + _GLANCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(_GLANCE_SECONDS / 10)
        else:
            return


def _read(descriptor: int) -> dict[str, object]:
    try:
        value = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _write(descriptor: int, data: bytes) -> None:
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))


def _me() -> dict[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {"host": socket.gethostname(), "boot": boot.read_text().strip() if boot.exists() else ""}
