"""Messages between the daemon and a worker: one JSON object a line, over a socket pair.

Down go `run` and `stop`; up come `loading`, `loaded`, `unavailable`, `started`, `step`, `section`, `rendered`,
`stopped` and `failed`. Knows what a message looks like, not what it means.
"""

from __future__ import annotations

import json
import select
import socket
from typing import Any

Message = dict[str, Any]


class Channel:
    """One end of the line."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = b""
        self.closed = False  # the other side is gone

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._socket.fileno()

    def send(self, event: str, **fields: Any) -> None:
        """Send one message; a closed line swallows it, as the reader will notice."""
        data = json.dumps({"event": event} | fields).encode() + b"\n"
        try:
            self._socket.sendall(data)
        except OSError:
            self.closed = True

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
