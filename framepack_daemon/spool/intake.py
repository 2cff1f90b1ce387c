"""The intake thread: scan, enter what is ready, ring the daemon, sleep until a file may be ready or the bell rings.

It runs beside the main loop, so that hashing a large drop or decoding a picture never keeps a worker waiting. The two
share nothing but the folders.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from framepack_daemon.job import State
from framepack_daemon.spool.add import TAKING, Added, Door
from framepack_daemon.spool.capture import DropChangedError, release_all
from framepack_daemon.spool.inbox import Inbox
from framepack_daemon.spool.watch import Bell, folder_identity, is_remote

RETRY_SECONDS = 10.0  # after the queue or the drop folder could not be written
REST = 4.0  # times as long as a look that brought nothing, before the next: of a crowded folder events keep ringing

_log = structlog.get_logger(__name__)


class Intake(threading.Thread):
    """Takes drops from one inbox into one queue until it is stopped."""

    def __init__(
        self,
        inbox: Inbox,
        door: Door,
        entered: Callable[[set[str]], None],
        *,
        rescan_seconds: float,
        poll_seconds: float,
    ) -> None:
        """Call `entered` with the jobs of each drop that came in, new or known."""
        super().__init__(name="intake", daemon=True)
        self._inbox = inbox
        self._door = door
        self._entered = entered
        self._rescan_seconds = rescan_seconds
        self._poll_seconds = poll_seconds
        self._rung = threading.Event()
        self._ended = threading.Event()
        self._identities: dict[Path, tuple[int, int] | None] = {}  # of the folders of the last scan
        self._failing = False
        self._folders = [inbox.root]  # at the last scan
        self._bell = Bell(self._hear)
        self._touched: set[str] = set()  # names of files that may have changed since the last scan
        self._hearing = threading.Lock()

    def pace(self, rescan_seconds: float, poll_seconds: float) -> None:
        """Look so often from now on."""
        self._rescan_seconds, self._poll_seconds = rescan_seconds, poll_seconds
        self._rung.set()

    def stop(self) -> None:
        """End after the drop in hand."""
        self._ended.set()
        self._rung.set()
        self.join()

    def run(self) -> None:
        """The thread's work."""
        while not self._ended.is_set():
            self._rung.clear()
            due = self._try_to_look()
            pause = self._poll_seconds if is_remote(self._inbox.root) else self._rescan_seconds
            self._rung.wait(pause if due is None else min(pause, due))
        self._bell.stop()

    def _try_to_look(self) -> float | None:
        """`_look`, or seconds until the next try when a folder cannot be read or written; said once."""
        try:
            due = self._look()
        except OSError as error:
            if not self._failing:
                _log.error("intake_failed", reason=str(error), retry_seconds=RETRY_SECONDS)
            self._failing = True
            self._door.writer.troubles.note("intake", error)
            return RETRY_SECONDS
        self._failing = False
        self._door.writer.troubles.clear("intake")
        return due

    def _look(self) -> float | None:
        """Scan once and enter what is ready; seconds until the next file may be, None when a change decides.

        A drop that cannot be taken does not keep the others: the first of their errors is raised in the end.
        """
        # Watch first: what comes during the scan rings for the next one. A drop may wait for a job to end.
        ends = [self._door.queue.folder(state) for state in (State.DONE, State.FAILED)]
        self._bell.watch([*self._folders, *ends])
        self._give_back()
        looked_at = time.monotonic()
        with self._hearing:
            touched, self._touched = self._touched, set()
        scan = self._inbox.scan(touched)
        due = scan.due_seconds if scan.folders == self._folders else 0.0
        self._folders = scan.folders
        if not scan.drops:
            self._ended.wait(REST * (time.monotonic() - looked_at))
        failure: OSError | None = None
        for drop in scan.drops:
            if self._ended.is_set():
                break
            started = time.monotonic()
            try:
                added = self._door.add(drop)
            except DropChangedError as change:
                _log.info("drop_changed", stem=drop.stem, reason=change.message)
                due = 0.0
            except OSError as error:
                failure = failure or error
            else:
                self._tell(added, time.monotonic() - started)
        if failure is not None:
            raise failure
        return due

    def _hear(self, names: set[str]) -> None:
        with self._hearing:
            self._touched |= names
        self._rung.set()

    def _give_back(self) -> None:
        """Put back what was half taken when a folder or the queue went away, as shares do, once it is there again."""
        if self._failing:
            self._door.recover(TAKING)
        identities = {folder: folder_identity(folder) for folder in self._folders}
        for folder, identity in identities.items():
            if self._failing or self._identities.get(folder) != identity:
                release_all(folder)
        self._identities = identities

    def _tell(self, added: Added, seconds: float) -> None:
        for job in added.jobs:
            if added.refusal:
                _log.warning("job_refused", job=job, reason=added.refusal.message)
            else:
                _log.info("job_submitted", job=job, seconds=round(seconds, 3))
        for job in added.known:
            _log.info("job_known", job=job)
        self._entered({*added.jobs, *added.known})
