"""Structured logs: an event name and fields, for a person on a terminal and as JSON lines everywhere else.

`configure` is called once per process, before the first event. structlog's events and those of other libraries (stdlib
`logging`, warnings) leave through one handler on standard error, so that lines never mix.
Values come from dropped files too: what could drive a terminal is escaped. Does not know what is logged.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from framepack_daemon.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import EventDict, Processor, WrappedLogger

OURS = "framepack_daemon"  # the root of our loggers' names
QUIET = "watchdog"  # calls it an error whenever it is stopped; what matters of it, spool.watch says


def configure(log_format: str = "auto", log_level: str = "info", stream: TextIO | None = None) -> None:
    """Send every event of `log_level` and above to `stream` (standard error).

    `log_format` is `console`, `json`, or `auto`: console on a terminal, JSON otherwise. Other libraries speak from
    warnings on, and from `info` on where `log_level` is `debug`. Calling it again replaces the settings.
    """
    stream = stream or sys.stderr
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper("%H:%M:%S", utc=False) if console else structlog.processors.TimeStamper("iso"),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *(_console(stream) if console else _json()),
            ],
        )
    )
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each.formatter, structlog.stdlib.ProcessorFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    level = log_level.upper()
    root.setLevel(logging.INFO if level == "DEBUG" else logging.WARNING)
    logging.getLogger(OURS).setLevel(level)
    logging.getLogger(QUIET).setLevel(logging.CRITICAL)
    logging.captureWarnings(True)


def _console(stream: TextIO) -> list[Processor]:
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    return [
        _escape,
        structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=24, sort_keys=False
        ),
    ]


def _json() -> list[Processor]:
    # json.dumps escapes all but ASCII: exact for programs, harmless on a terminal.
    return [structlog.processors.JSONRenderer(default=str)]


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> Mapping[str, Any]:
    """`event` with texts safe for a terminal; a traceback keeps its line breaks."""
    return {key: _safe(value, keep="\n\t" if key == "exception" else "") for key, value in event.items()}


def _safe(value: Any, *, keep: str = "") -> Any:
    if isinstance(value, dict):
        return {_safe(key): _safe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_safe(each) for each in value]
    return value if isinstance(value, (int, float, type(None))) else printable(value, keep=keep)
