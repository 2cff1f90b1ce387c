"""The ways out for the numbers: a file for node_exporter's textfile collector, and a Unix socket that answers HTTP GET.

Neither may keep the daemon from its work: a file that cannot be written is told once and tried again with the next
numbers. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, MetricsHandler, write_to_textfile

from framepack_daemon.errors import ConfigurationError

_log = structlog.get_logger(__name__)


class TextFile:
    """The numbers in a file, which is replaced as a whole."""

    def __init__(self, path: Path, registry: CollectorRegistry) -> None:
        self._path = path
        self._registry = registry
        self._failing = False

    def write(self) -> None:
        """Write the numbers as they are now."""
        try:
            write_to_textfile(str(self._path), self._registry)
        except OSError as error:
            if not self._failing:
                _log.warning("metrics_not_written", file=str(self._path), reason=str(error))
            self._failing = True
        else:
            self._failing = False

    def remove(self) -> None:
        """Take the file away: it would tell of a daemon that is no more."""
        with contextlib.suppress(OSError):
            self._path.unlink()


@contextlib.contextmanager
def served(path: Path, registry: CollectorRegistry) -> Iterator[None]:
    """Answer with the numbers on the socket `path`, in a thread."""
    try:
        _make_way(path)
        server = socketserver.ThreadingUnixStreamServer(str(path), MetricsHandler.factory(registry))
    except OSError as error:
        raise ConfigurationError(
            f"metrics_socket: {path}: {error.strerror or error}",
            hint="name a new file in a folder that the daemon may write, with at most 107 bytes",
        ) from error
    server.daemon_threads = True  # one that reads slowly does not hold up the end
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        with contextlib.suppress(OSError):
            path.unlink()


def _make_way(path: Path) -> None:
    """Remove a socket that nobody listens on any more; OSError when somebody does, or when it is no socket."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(None, "is another file", str(path))
        with socket.socket(socket.AF_UNIX) as end, contextlib.suppress(ConnectionRefusedError):
            end.connect(str(path))
            raise FileExistsError(None, "another daemon answers there", str(path))
        path.unlink()
