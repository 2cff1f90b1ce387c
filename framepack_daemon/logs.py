"""Structured logs: an event name and fields, for a person on a terminal, as entries of the journal, or as JSON lines.

`configure` is called before the first event. structlog's events and those of other libraries (stdlib `logging`,
warnings) leave through one handler, so that lines never mix; `listening` lets other parts hear our own events too.
Values come from dropped files too: what could drive a terminal is escaped. Does not know what is logged.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from framepack_daemon.journal import JournalHandler, is_connected
from framepack_daemon.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from structlog.typing import EventDict, Processor, WrappedLogger

OURS = "framepack_daemon"  # the root of our loggers' names
# watchdog calls it an error whenever it is stopped; the others write addresses, whose secrets do not belong into a log.
# What matters of them, spool.watch and notify say.
QUIET = ("watchdog", "apprise", "urllib3")


def configure(log_format: str = "auto", log_level: str = "info", stream: TextIO | None = None) -> None:
    """Send every event of `log_level` and above to `stream` (standard error).

    `log_format` is `console`, `json`, `journal`, or `auto`: the journal where systemd has connected the stream to it,
    console on a terminal, JSON otherwise. Other libraries speak from warnings on, and from `info` on where `log_level`
    is `debug`. Calling it again replaces the settings.
    """
    stream = stream or sys.stderr
    if log_format == "auto":
        log_format = "journal" if is_connected(stream) else "console" if stream.isatty() else "json"
    console = log_format == "console"
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
    handler: logging.Handler = logging.StreamHandler(stream)
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
    if log_format == "journal":
        handler = JournalHandler(fallback=handler)
    _install(handler, getattr(logging, log_level.upper()))


def _install(handler: logging.Handler, level: int) -> None:
    """Have everything of `level` and above leave through `handler` alone."""
    root, ours = logging.getLogger(), logging.getLogger(OURS)
    before = [each for each in root.handlers if each.name == OURS]
    handler.name = OURS
    # Who listens hears of what is done, also where that is not logged.
    handler.addFilter(lambda record: record.levelno >= level or not record.name.startswith(OURS))
    root.addHandler(handler)
    for old in before:  # after that: another thread's event may leave twice, but is not lost
        root.removeHandler(old)
        old.close()
    root.setLevel(logging.INFO if level == logging.DEBUG else logging.WARNING)
    ours.setLevel(min(level, logging.INFO))
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.captureWarnings(True)


class _Listener(logging.Handler):
    def __init__(self, hear: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__()
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, dict):
            self._hear(record.msg)


@contextmanager
def listening(hear: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Have `hear` called with each of our own events from info on, in the thread that logs it."""
    listener, ours = _Listener(hear), logging.getLogger(OURS)
    ours.addHandler(listener)
    try:
        yield
    finally:
        ours.removeHandler(listener)


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
