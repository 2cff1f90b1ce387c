"""What the daemon tells a service manager, by systemd's protocol sd_notify: datagrams of `NAME=value` lines.

`NOTIFY_SOCKET` names the socket, a path or an abstract name; where it is not set nothing is sent, so that callers need
not ask. What would be said twice is said once. Does not know what is worth telling.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

STATUS_SECONDS = 1.0  # at least, between two lines of status: a quick step is not worth one
EXTENSION_SECONDS = 30.0  # of patience that is asked for at a time
_PER_SECOND = 1_000_000  # the protocol's times are in microseconds


class Service:
    """The manager of this process, if it has one."""

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        """`address` is a path, or `@` and an abstract name; empty where there is no manager."""
        self._address = address
        self._watchdog_seconds = watchdog_seconds  # within which it must be shown that we live; 0 where nobody asks
        self._fed_at = float("-inf")  # monotonic
        self._status = ""
        self._status_at = float("-inf")  # monotonic
        self.is_ready = False

    @classmethod
    def from_environment(cls) -> Service:
        """The manager that started this process; what it set is taken out of the way of the processes we start."""
        address, microseconds, pid = (
            os.environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        if not address.startswith(("/", "@")):
            return cls()
        ours = microseconds.isdigit() and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / _PER_SECOND if ours else 0.0)

    @property
    def is_there(self) -> bool:
        """Whether a manager listens."""
        return bool(self._address)

    def ready(self) -> None:
        """Say that the daemon has started; once."""
        if not self.is_ready:
            self.is_ready = True
            self._send(READY=1)

    def status(self, text: str, *, at_once: bool = False) -> None:
        """Say in a line for people what goes on, if that is news.

        Unless it is to be said `at_once`, a line that comes soon after another is left for the next call.
        """
        now = time.monotonic()
        if text == self._status or (now - self._status_at < STATUS_SECONDS and not at_once):
            return
        self._status, self._status_at = text, now
        self._send(STATUS=text)

    def stopping(self, status: str) -> None:
        """Say that the daemon ends, and what it still does."""
        self._status = status
        self._send(STOPPING=1, STATUS=status)

    def extend(self, seconds: float = EXTENSION_SECONDS) -> None:
        """Have the manager wait so long for the next word, beyond the time it allows for the start or the stop."""
        self._send(EXTEND_TIMEOUT_USEC=round(seconds * _PER_SECOND))

    def feed_watchdog(self) -> None:
        """Show that the daemon lives, as often as that is wanted."""
        if self._watchdog_seconds and time.monotonic() - self._fed_at >= self._watchdog_seconds / 4:
            self._fed_at = time.monotonic()
            self._send(WATCHDOG=1)

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Have the manager bear with one long step, in which nothing else is said."""
        self.extend(seconds)
        if self._watchdog_seconds:
            self._send(WATCHDOG_USEC=round(max(seconds, self._watchdog_seconds) * _PER_SECOND))
        try:
            yield
        finally:
            if self._watchdog_seconds:
                self._send(WATCHDOG_USEC=round(self._watchdog_seconds * _PER_SECOND))

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Say that the settings are read again; while the daemon starts that would be taken for its end."""
        if self.is_ready:
            self._send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            yield
        finally:
            if self.is_ready:
                self._send(READY=1)

    def _send(self, **fields: object) -> None:
        if not self._address:
            return
        lines = "\n".join(f"{name}={value}" for name, value in fields.items())
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        # A manager that is restarted hears the next word; the daemon works without one.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.settimeout(1.0)
            end.sendto(lines.encode(errors="backslashreplace"), address)
