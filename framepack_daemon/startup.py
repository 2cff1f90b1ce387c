"""What a daemon must have before it serves: its folders where they were, and the locks on them.

In the foreground what is missing ends it with an error. Under a service manager it waits for a share that is not
mounted and for a disk that is full, and says so: nobody's boot hangs on it, and no one has to start it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import structlog

from framepack_daemon import atomic
from framepack_daemon.errors import FolderAwayError
from framepack_daemon.reload import Reload
from framepack_daemon.report import BETWEEN, hindrance
from framepack_daemon.settings import Settings
from framepack_daemon.signals import Signals
from framepack_daemon.spool import mounts
from framepack_daemon.spool.lock import INBOX_LOCK, QUEUE_LOCK, FolderLock
from framepack_daemon.systemd import Service

LOOK_SECONDS = 1.0  # between two looks for what is missing
NAP_SECONDS = 0.1  # between two looks for a signal

_Given = TypeVar("_Given")
_log = structlog.get_logger(__name__)


def take_folders(settings: Settings, held: ExitStack) -> list[FolderLock]:
    """Make the folders that are missing and lock inbox and queue until `held` is closed.

    Raises `FolderAwayError`, `QueueHeldError` or OSError, and then holds nothing.
    """
    folders = (settings.inbox, settings.outputs, settings.queue_dir)
    mounts.expect(settings.work_dir, folders)
    for folder in (*folders, settings.work_dir):
        atomic.make_folder(folder)
    with ExitStack() as taken:
        locks = []
        for path, what in (
            (settings.queue_dir / QUEUE_LOCK, f"the queue {settings.queue_dir}"),
            (settings.inbox / INBOX_LOCK, f"the inbox {settings.inbox}"),
        ):
            try:
                locks.append(FolderLock(path, what))
            except OSError as error:
                error.filename = error.filename or str(path)  # a write does not name its file
                raise
            taken.callback(locks[-1].release)
        mounts.remember(settings.work_dir, folders)
        held.push(taken.pop_all())
    return locks


def persist(step: Callable[[], _Given], service: Service, signals: Signals, reload: Reload) -> _Given | None:
    """What `step` gives, tried again where a manager listens until the folders let it; None when told to stop."""
    failure = ""
    while not signals.stops:
        try:
            return step()
        except (FolderAwayError, OSError) as error:
            if not service.is_there:
                raise
            if str(error) != failure:
                failure = str(error)
                _log.error("start_waits", reason=failure, retry_seconds=LOOK_SECONDS)
        service.status(BETWEEN.join([*reload.remarks, hindrance("start", failure)]), at_once=True)
        service.ready()
        until = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < until and not signals.stops:
            service.feed_watchdog()
            reload.look()
            time.sleep(NAP_SECONDS)
    return None
