"""Processes for one file each, at the cost of a fork: a small server has what they need loaded already.

A server is started for a module when the first file is to be examined, and lives as long as the process that asks; each
file is examined by a fork of it, which sets its own limits and dies with its answer or by its alarm. Several threads
may ask; each has a server to itself meanwhile. Knows nothing of files or of what is said about them.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from types import ModuleType
from typing import BinaryIO

SPARE_SECONDS = 30.0  # beyond its time, after which a process is taken for one that its alarm did not end
_MESSAGE_BYTES = 65536  # at most, of a request

_lock = threading.Lock()
_idle: dict[str, list[_Server]] = {}  # servers by the module that they have loaded
os.register_at_fork(after_in_child=_idle.clear)  # a copy of this process starts its own


def examine(module: str, arguments: list[str], file: BinaryIO, timeout_seconds: float) -> tuple[int, bytes, bytes]:
    """Call `main` of `module` in a process of its own, with `file` as its standard input.

    Gives back (exit code, or minus the signal that ended it; what it printed; what it complained of). A process that
    takes too long is ended by SIGALRM. Raises OSError when there can be none.
    """
    with _lock:
        servers = _idle.setdefault(module, [])
        server = servers.pop() if servers else None
    try:
        server = server or _Server(module)
        found = server.examine(arguments, file, timeout_seconds)
    except ConnectionError:  # it was killed, perhaps long ago, and not by this file, which it never touched
        server = _Server(module)
        found = server.examine(arguments, file, timeout_seconds)
    with _lock:
        servers.append(server)
    return found


class _Server:
    """The asking side of one server."""

    def __init__(self, module: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", "-m", __name__, module]
        with theirs:
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
            self._process = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)

    def examine(self, arguments: list[str], file: BinaryIO, timeout_seconds: float) -> tuple[int, bytes, bytes]:
        """What `examine` gives; ConnectionError when the server is no more, TimeoutError when it does not answer."""
        self._channel.settimeout(timeout_seconds + SPARE_SECONDS)
        request = json.dumps({"arguments": arguments, "timeout_seconds": timeout_seconds}).encode()
        with open(os.memfd_create("said"), "rb") as said, open(os.memfd_create("complaint"), "rb") as complaint:  # noqa: PTH123
            try:
                socket.send_fds(self._channel, [request], [file.fileno(), said.fileno(), complaint.fileno()])
                code = self._channel.recv(_MESSAGE_BYTES)
            except OSError:
                self._end()
                raise
            if not code:
                self._end()
                raise ConnectionResetError
            for answer in (said, complaint):
                answer.seek(0)
            return int(code), said.read(), complaint.read()

    def _end(self) -> None:
        self._channel.close()
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)


def _serve(module: ModuleType) -> None:
    """Answer requests, which come with descriptors for the three standard streams, until nobody can ask any more."""
    with socket.socket(fileno=0) as channel:
        while True:
            request, streams, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 3)
            if not request:
                return
            child = os.fork()
            if child == 0:
                _examine_and_exit(module, streams, **json.loads(request))
            for stream in streams:
                os.close(stream)
            _, status = os.waitpid(child, 0)
            with suppress(BrokenPipeError):  # who asked is no more: the next look ends this
                channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _examine_and_exit(module: ModuleType, streams: list[int], arguments: list[str], timeout_seconds: float) -> None:
    """The process of one file."""
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, timeout_seconds)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - what is there was opened on the server's channel
        module.main(arguments)
        sys.stdout.flush()
        code = 0
    except Exception:  # noqa: BLE001 - the last words of a process, which its parent passes on
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks: then nobody can ask any more
    os.chdir("/")
    examiner = importlib.import_module(sys.argv[1])
    examiner.warm()
    _serve(examiner)
