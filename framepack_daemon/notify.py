"""Word to people: a message by Apprise when a job is done or failed, the queue is empty, or rendering is held up.

Hears the daemon's events and sends from a thread of its own, so that a service that is slow or away holds nothing up;
what comes faster than it can be sent is dropped, and the log says so. Addresses hold secrets: no log and no error shows
one. Apprise is loaded only where addresses are set.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from framepack_daemon import atomic
from framepack_daemon.errors import ConfigurationError
from framepack_daemon.job import REQUEST_FILE
from framepack_daemon.printable import printable
from framepack_daemon.spool.queue import Queue

if TYPE_CHECKING:
    from apprise import Apprise

WAITING = 100  # messages that may wait to be sent
CLOSE_SECONDS = 5.0  # for the last messages, when the daemon ends
MAX_CHARACTERS = 1000  # of a reason; some services take no more

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Note:
    """One message."""

    kind: str  # one of the setting `notify_on`
    mood: str  # one of Apprise's types
    title: str
    body: str
    job: str | None = None


class Notifier:
    """Sends what happens to the addresses of the settings."""

    def __init__(self, addresses: Sequence[str], kinds: Sequence[str], jobs: Queue) -> None:
        """Raises `ConfigurationError` where Apprise is missing or does not know an address."""
        self._services = _services(addresses)
        self._kinds = frozenset(kinds)
        self._jobs = jobs
        self._notes: queue.Queue[Note | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Send what waits, as far as that goes quickly."""
        try:
            self._notes.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return  # the thread ends with the process
        self._thread.join(CLOSE_SECONDS)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Have an event told, if it is one of those; never waits."""
        note = compose(event)
        if note is None or (note.job is None and note.kind not in self._kinds):
            return
        try:
            self._notes.put_nowait(note)
        except queue.Full:
            _log.warning("notification_dropped", kind=note.kind, job=note.job, reason=f"{WAITING} wait to be sent")

    def _work(self) -> None:
        while (note := self._notes.get()) is not None:
            if note.job is None or self._is_wanted(note.kind, note.job):
                self._send(note)

    def _is_wanted(self, kind: str, job: str) -> bool:
        """Whether a job's end is told: its sidecar may say so, else the settings do."""
        state = self._jobs.state_of(job)
        request = atomic.read_json(self._jobs.path(state, job) / REQUEST_FILE) if state else None
        asked = (request or {}).get("notify")
        return asked if isinstance(asked, bool) else kind in self._kinds

    def _send(self, note: Note) -> None:
        from apprise import NotifyType  # noqa: PLC0415  it is there, and slow to load

        for number, service in enumerate(self._services, 1):
            if not service.notify(body=note.body, title=note.title, notify_type=NotifyType(note.mood)):
                _log.warning("notification_failed", kind=note.kind, job=note.job, url_number=number)


def compose(event: Mapping[str, Any]) -> Note | None:
    """What people are told of an event; None where it is none of theirs."""
    job, reason = event.get("job"), printable(event.get("reason", ""))[:MAX_CHARACTERS]
    where = f"on {socket.gethostname()}"
    match event["event"]:
        case "job_done":
            return Note("done", "success", f"{job} is done", f"{event['video']} is in the outputs folder {where}.", job)
        case "job_failed":
            return Note("failed", "failure", f"{job} failed", f"{where}: {reason}", job)
        case "job_refused":
            return Note("failed", "failure", f"{job} was refused", f"{where}: {reason}", job)
        case "queue_empty":
            counts = f"{event['done']} done, {event['failed']} failed"
            return Note("queue_empty", "info", "The queue is empty", f"{counts} {where} since it was last empty.")
        case "circuit_open":
            failed = f"The last {event['jobs']} jobs all made their worker fail {where}."
            again = f"The others wait; one is tried in {event['retry_seconds']:g} s. The log says what is wrong."
            return Note("circuit_open", "warning", "Rendering is held up", f"{failed} {again}")
    return None


def _services(addresses: Sequence[str]) -> list[Apprise]:
    """One for each address, so that it can be said which of them failed."""
    try:
        from apprise import Apprise  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigurationError(
            "notify_urls: Apprise, which sends notifications, is not installed",
            hint="pip install 'framepack-daemon[notify]'",
        ) from error
    services = []
    for number, address in enumerate(addresses, 1):
        service = Apprise()
        if not service.add(address):
            raise ConfigurationError(
                f"notify_urls: Apprise does not know what to do with number {number} ({address.partition(':')[0]}:…)",
                hint="its page lists the services and how their URLs are written: https://github.com/caronc/apprise",
            )
        services.append(service)
    return services
