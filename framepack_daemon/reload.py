"""Settings that are read again while the daemon runs, as a service manager's SIGHUP asks for.

Some take effect at once and touch no job; the others, on which the daemon is built, are named as waiting for a restart.
Settings that are wrong change nothing, and that is said until they are put right. Does not know what a setting is for.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from framepack_daemon import logs
from framepack_daemon.errors import ConfigurationError
from framepack_daemon.printable import printable
from framepack_daemon.settings import Settings
from framepack_daemon.signals import Signals
from framepack_daemon.systemd import Service

RELOADED = (
    "rescan_seconds",
    "poll_seconds",
    "settle_seconds",
    "incomplete_seconds",
    "partner_seconds",
    "max_attempts",
    "step_timeout_seconds",
    "load_timeout_seconds",
    "heartbeat_timeout_seconds",
    "stop_timeout_seconds",
    "log_level",
)

_log = structlog.get_logger(__name__)


class Reload:
    """The settings in force, and the way to newer ones."""

    def __init__(self, settings: Settings, read: Callable[[], Settings], service: Service, signals: Signals) -> None:
        """`read` gives the settings as they would be for a daemon that starts now, or raises `ConfigurationError`."""
        self.settings = settings
        self.remarks: list[str] = []  # in a few words each, what of the last reading is not in force
        self.apply: Callable[[Settings], None] = lambda _: None  # is called with what has changed
        self._read = read
        self._service = service
        self._signals = signals

    def look(self) -> None:
        """Read the settings again if that was asked for since the last look."""
        if self._signals.take_reload():
            with self._service.reloading():
                self._reload()

    def _reload(self) -> None:
        try:
            wanted = self._read()
        except ConfigurationError as error:
            _log.error("reload_refused", reason=error.message, hint=error.hint)
            self.remarks = [f"settings not reloaded: {printable(error.message)}"]
            return
        changed = [name for name in Settings.model_fields if getattr(wanted, name) != getattr(self.settings, name)]
        news = {name: getattr(wanted, name) for name in changed if name in RELOADED}
        waiting = [name for name in changed if name not in RELOADED]
        self.settings = self.settings.model_copy(update=news)
        logs.configure(self.settings.log_format, self.settings.log_level)
        self.apply(self.settings)
        _log.info("settings_reloaded", changed=list(news))
        if waiting:
            _log.warning("restart_needed", settings=waiting)
        self.remarks = [f"restart needed for {', '.join(waiting)}"] if waiting else []
