"""Who watches the daemon without a hand in its work: numbers for Prometheus, word to people, the gallery.

The daemon passes on what its workers say and has it look once a turn; the rest is heard from the log's events. What is
not asked for by the settings is not there. Knows how things stand, and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import structlog

from framepack_daemon import logs
from framepack_daemon.exports import TextFile, served
from framepack_daemon.gallery import Gallery
from framepack_daemon.lifecycle import Lifecycle
from framepack_daemon.metrics import Metrics
from framepack_daemon.notify import Notifier
from framepack_daemon.report import Report
from framepack_daemon.settings import Settings
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.troubles import Troubles
from framepack_daemon.workers.channel import Message
from framepack_daemon.workers.pool import Worker, devices

PAUSED = "Paused: no further job starts until somebody says: framepack-daemon resume"

_log = structlog.get_logger(__name__)


class Observer:
    """Watches one daemon."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigurationError` where the settings ask for what cannot be."""
        self._settings = settings
        self._notifier: Notifier | None = None
        if settings.notify_urls:
            addresses = [address.get_secret_value() for address in settings.notify_urls]
            self._notifier = Notifier(addresses, settings.notify_on, Queue(settings.queue_dir))
        self._metrics: Metrics | None = None
        self._file: TextFile | None = None
        if settings.metrics_file or settings.metrics_socket:
            self._metrics = Metrics(settings.queue_dir, devices(settings.device), settings.model)
        if settings.metrics_file and self._metrics:
            self._file = TextFile(settings.metrics_file, self._metrics.registry)
        self._gallery: Gallery | None = None
        self._is_told = False  # the gallery has heard of every job that there was at the start
        self._ends: Counter[str] = Counter()  # events by name, since the queue was last empty
        self._is_empty = True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen, and answer who asks."""
        with ExitStack() as held:
            if self._metrics and self._settings.metrics_socket:
                held.enter_context(served(self._settings.metrics_socket, self._metrics.registry))
            if self._file:
                held.callback(self._file.remove)
            if self._notifier:
                self._notifier.start()
                held.callback(self._notifier.close)
            if self._settings.gallery:
                self._gallery = Gallery(self._settings.outputs)
                held.callback(self._gallery.close)
            held.enter_context(logs.listening(self._hear))
            yield

    def follow(self, message: Message, worker: Worker) -> None:
        """Hear what a worker says."""
        if self._metrics:
            self._metrics.follow(message, worker.device)

    def tell(self, job: str, body: Mapping[str, Any]) -> None:
        """Hear what a job's status file says; callable from any thread."""
        if self._gallery:
            self._gallery.hear(job, body)

    def look(self, lifecycle: Lifecycle, workers: Sequence[Worker], troubles: Troubles) -> None:
        """Look at how things stand; once a turn."""
        is_empty = not lifecycle.keeper.line and not lifecycle.held(workers)
        if is_empty and not self._is_empty:
            _log.info("queue_empty", done=self._ends["job_done"], failed=self._ends["job_failed"])
            self._ends.clear()
        self._is_empty = is_empty
        if self._metrics and self._metrics.look(lifecycle.keeper, workers, troubles.reasons) and self._file:
            self._file.write()
        self._is_told |= not lifecycle.keeper.is_behind
        if self._gallery and self._is_told:
            paused = [PAUSED] if lifecycle.queue.paused else []
            notices = [*paused, *Report(lifecycle, troubles, workers).hindrances]
            self._gallery.look(lifecycle.keeper.line, notices, troubles)

    def _hear(self, event: Mapping[str, Any]) -> None:
        self._ends[event["event"]] += 1
        if self._metrics:
            self._metrics.hear(event)
        if self._notifier:
            self._notifier.hear(event)
