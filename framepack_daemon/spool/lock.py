"""One daemon per inbox and per queue: a lock in each, and a beating counter for shares where locks stay local.

The lock file says who holds it: host, boot, process, and a count that goes up every `BEAT_SECONDS`. Where another
host's count moves, its daemon lives, whatever the lock says. Released in an orderly way, the file is empty.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from framepack_daemon import atomic
from framepack_daemon.errors import QueueHeldError

BEAT_SECONDS = 10.0
_PATIENCE_SECONDS = 1.5 * BEAT_SECONDS
_GLANCE_SECONDS = 0.5


class FolderLock:
    """The lock file of one folder, held until `release`."""

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock at `path`; `what` names it in messages. Raises `QueueHeldError`."""
        atomic.make_folder(path.parent)
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, atomic.FILE_MODE)
        self._count = 0
        try:
            self._lock()
            self._await_other_host(what)
        except BlockingIOError as error:
            holder = self._read()
            os.close(self._descriptor)
            raise QueueHeldError(
                f"{what} is held by another daemon (process {holder.get('pid', '?')} on {holder.get('host', '?')})",
                hint="one daemon serves an inbox and a queue; stop that one, or give this one folders of its own",
            ) from error
        except QueueHeldError:
            os.close(self._descriptor)
            raise
        self.beat()

    def _lock(self) -> None:
        """Take the lock; a command that looks whether a daemon runs holds it for an instant only."""
        until = time.monotonic() + _GLANCE_SECONDS
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_GLANCE_SECONDS / 10)
            else:
                return

    def beat(self) -> None:
        """Show that the holder lives."""
        self._count += 1
        self._write(json.dumps({**_me(), "pid": os.getpid(), "count": self._count}).encode())

    def release(self) -> None:
        """Let the next daemon in."""
        self._write(b"")
        os.close(self._descriptor)

    def _await_other_host(self, what: str) -> None:
        """Give another host's daemon the time to show that it lives."""
        before = self._read()
        if not before or {key: before.get(key) for key in _me()} == _me():
            return
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            time.sleep(BEAT_SECONDS / 20)
            if self._read() != before:
                raise QueueHeldError(
                    f"{what} is held by a daemon on {before.get('host', '?')}", hint="one daemon serves a queue"
                )

    def _read(self) -> dict[str, object]:
        try:
            value = json.loads(os.pread(self._descriptor, 4096, 0))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def _write(self, data: bytes) -> None:
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))


def _me() -> dict[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {"host": socket.gethostname(), "boot": boot.read_text().strip() if boot.exists() else ""}
