"""The signals that the daemon heeds: caught as flags, which its loop reads.

SIGTERM and SIGINT ask it to stop. So does SIGHUP, as a terminal sends it that is closed; under a service manager, where
no terminal is, it asks for the settings to be read again. Does not know what either means for a job.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Signals:
    """What was asked for since the daemon started."""

    def __init__(self, *, hangup_reloads: bool) -> None:
        self.stops = 0  # how often it was told to stop
        self.wake: Callable[[], None] = lambda: None  # is called from the handler
        self._hangup_reloads = hangup_reloads
        self._reload = False

    def take_reload(self) -> bool:
        """Whether the settings are to be read again; told once for each time."""
        if not self._reload:
            return False  # without a write: a signal may come in this moment
        self._reload = False
        return True

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Heed signals, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heeded = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._hangup_reloads:
            self._reload = True
        else:
            self.stops += 1
        self.wake()
