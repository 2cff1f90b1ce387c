"""Messages between the daemon and a worker: one JSON object a line, over a socket pair.

Down go `run`, `stop` and `load`; up come `loading`, `loaded`, `unavailable`, `started`, `step`, `section`, `rendered`,
`stopped` and `failed`, and `alive` all the time. Knows what a message looks like, not what it means.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from typing import Any

Message = dict[str, Any]
ALIVE = "alive"  # the message that says no more than that the process runs
BEAT_SECONDS = 1.0  # between two of them


class Channel:
    """One end of the line."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = b""
        self._sending = threading.Lock()
        self.closed = False  # the other side is gone

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._socket.fileno()

    def send(self, event: str, **fields: Any) -> None:
        """Send one message, from any thread; a closed line swallows it, as the reader will notice."""
        data = json.dumps({"event": event} | fields).encode() + b"\n"
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError:
            self.closed = True

    def keep_alive(self) -> None:
        """Send a sign of life all the time, from a thread of its own: a long step does not stop it, SIGSTOP does."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self.closed:
            self.send(ALIVE)
            time.sleep(BEAT_SECONDS)

    def receive(self, timeout: float | None = 0.0) -> list[Message]:
        """What has come, waiting up to `timeout` seconds for the first (None: for ever); empty when nothing has."""
        ready, _, _ = select.select([self._socket], [], [], timeout)
        if ready:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                data = b""
            self.closed = not data
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
        self.closed = True
