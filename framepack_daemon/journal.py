"""Events as entries of systemd's journal: `journalctl -u framepack-daemon JOB=beach-1f3a9c02d4e5` finds those of a job.

Each event goes to the journal's own socket, its fields in capitals beside a line for people; where the socket does not
take it, another handler has it. The protocol, large entries included, is logging-journald's; its handler is not used,
since it knows no fields but those of `logging`. Does not know what is logged.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any, TextIO

import structlog
from logging_journald import JournaldTransport

from framepack_daemon.printable import printable

IDENTIFIER = "framepack-daemon"
STREAM_VARIABLE = "JOURNAL_STREAM"  # device:inode of the stream that systemd connected to the journal
MAX_NAME = 64  # characters of a field's name
# Names that mean something to the journal itself; and the event's and its time, which the journal has under others.
_RESERVED = {"MESSAGE", "MESSAGE_ID", "PRIORITY", "ERRNO", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY", "SYSLOG_PID", "TID"}
_SAID = {"level", "timestamp"}
_DEBUG, _INFO, _WARNING, _ERROR, _CRITICAL = 7, 6, 4, 3, 2  # syslog.h


def is_connected(stream: TextIO) -> bool:
    """Whether systemd has connected the stream to the journal."""
    try:
        there = os.fstat(stream.fileno())
    except (OSError, ValueError):  # it is closed, or no file at all
        return False
    return os.environ.get(STREAM_VARIABLE) == f"{there.st_dev}:{there.st_ino}"


class JournalHandler(logging.Handler):
    """Sends events to the journal, or has `fallback` handle them."""

    def __init__(self, fallback: logging.Handler) -> None:
        super().__init__()
        self._fallback = fallback
        # Unconnected: a journal that is started anew listens at the same path.
        self._transport = JournaldTransport(connected=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one event."""
        try:
            self._transport.send(entry(record).items())
        except OSError:
            self._fallback.handle(record)

    def close(self) -> None:
        """Close the socket."""
        self._transport.socket.close()
        super().close()


def entry(record: logging.LogRecord) -> dict[str, str]:
    """The fields of the journal's entry."""
    event: Mapping[str, Any]
    if isinstance(record.msg, dict):
        event = record.msg
    else:
        event = {"event": record.getMessage(), "logger": record.name, "exc_info": record.exc_info}
    event = structlog.processors.format_exc_info(None, "", dict(event))
    fields = {field_name(key): _text(value) for key, value in event.items() if key not in _SAID and value is not None}
    return {
        **fields,
        "MESSAGE": _message(event),
        "PRIORITY": str(_priority(record.levelno)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "SYSLOG_PID": str(os.getpid()),
    }


def field_name(key: str) -> str:
    """A name as the journal takes it: capitals, digits and underscores, the first a letter."""
    name = re.sub(r"[^A-Z0-9_]", "_", key.upper()).lstrip("_0123456789")[:MAX_NAME]
    return name if name and name not in _RESERVED else f"FRAMEPACK_{name}"[:MAX_NAME]


def _message(event: Mapping[str, Any]) -> str:
    """The event in a line for people, and its traceback below."""
    told = [
        f"{key}={_text(value)}"
        for key, value in event.items()
        if key not in {"event", "exception", *_SAID} and value is not None
    ]
    line = printable(" ".join([str(event.get("event")), *told]))
    return f"{line}\n{printable(event['exception'], keep=_KEPT)}" if "exception" in event else line


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode(errors="backslashreplace").decode()


_KEPT = "\n\t"  # in a traceback


def _priority(level: int) -> int:
    if level >= logging.CRITICAL:
        return _CRITICAL
    if level >= logging.ERROR:
        return _ERROR
    if level >= logging.WARNING:
        return _WARNING
    return _INFO if level >= logging.INFO else _DEBUG
