"""What the daemon is doing, in one line for people: `2 pending · beach 43 % · 1:12 left`.

First what keeps it from its work, then the work. Made from what the loop knows already; reads no folder but for the
pause.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from framepack_daemon.lifecycle import Lifecycle
from framepack_daemon.printable import printable
from framepack_daemon.progress import Running
from framepack_daemon.spool.troubles import Troubles
from framepack_daemon.workers.pool import Phase, Worker

BETWEEN = " · "
# What a trouble keeps from being written.
_PLACES = {
    "publishing": "outputs",
    "status files": "outputs",
    "gallery": "outputs",
    "intake": "inbox",
    "queue": "queue",
    "scratch": "scratch",
}
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
_NAMED = re.compile(r": '(/.*)'$")  # the file of an OSError
_AWAY = re.compile(r"(/.*) is not mounted")
_MINUTE, _HOUR = 60, 3600  # seconds


@dataclass(frozen=True)
class Report:
    """Describes one daemon."""

    lifecycle: Lifecycle
    troubles: Troubles
    workers: Sequence[Worker]

    @property
    def hindrances(self) -> list[str]:
        """What keeps the daemon from its work, in a few words each."""
        troubles = (hindrance(what, said) for what, said in self.troubles.reasons.items())
        dying = (
            f"the worker on {worker.device} does not start: see the log" for worker in self.workers if worker.failures
        )
        return list(dict.fromkeys([*troubles, *self.lifecycle.reasons.brief, *dying]))

    def line(self, *more: str) -> str:
        """The line, with `more` that keeps the daemon from what it was told."""
        return BETWEEN.join(dict.fromkeys([*more, *self.hindrances, *self._work()]))

    def _work(self) -> list[str]:
        pending, running = self.lifecycle.pending, self.lifecycle.running
        words = [f"{pending} pending"] if pending else []
        if self.lifecycle.queue.paused:
            words = [", ".join(["paused", *words])]
        if not running and any(worker.phase is Phase.LOADING for worker in self.workers):
            words.append("the model is loading")
        return [*words, *(_progress(each) for each in running)] or ["idle"]


def hindrance(what: str, reason: str) -> str:
    """In a few words, why something cannot be done; `reason` is what the system said."""
    place = _PLACES.get(what, what)
    if any(words in reason for words in _FULL):
        named = _NAMED.search(reason) if what not in _PLACES else None
        return f"disk full: {printable(named[1]) if named else place}"
    if away := _AWAY.search(reason):
        return f"waiting for {printable(away[1].rpartition(': ')[2])}: not mounted"
    return f"{place}: {printable(reason)}"


def stem(job: str) -> str:
    """A job's name without the digits."""
    return printable(job.rpartition("-")[0])


def _progress(running: Running) -> str:
    progress = running.status()["progress"]
    words = f"{stem(running.job)} {round(progress['fraction'] * 100)} %"
    left = progress["eta_seconds"]
    return words if left is None else f"{words}{BETWEEN}{_clock(left)} left"


def _clock(seconds: float) -> str:
    """Seconds as a clock shows them: 1:12, or 2:05:00."""
    whole = round(seconds)
    hours, minutes = whole // _HOUR, whole % _HOUR // _MINUTE
    return f"{hours}:{minutes:02}:{whole % _MINUTE:02}" if hours else f"{minutes}:{whole % _MINUTE:02}"
