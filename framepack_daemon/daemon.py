"""The daemon: startup, one loop that waits for news, shutdown.

The loop wakes for a worker's message, a change in the state folders, a new job or a signal; it makes the records agree
with the folders, gives idle workers the next job, and publishes what is rendered. Signal handlers only set a flag. The
folders are the state; what it remembers of a running job is only what the status file shows. Never imports torch.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress

import structlog

from framepack_daemon import parts
from framepack_daemon.endings import Endings
from framepack_daemon.errors import EXIT_DONE
from framepack_daemon.job import State
from framepack_daemon.lifecycle import Lifecycle
from framepack_daemon.observer import Observer
from framepack_daemon.reload import Reload
from framepack_daemon.report import Report, stem
from framepack_daemon.settings import Settings
from framepack_daemon.signals import Signals
from framepack_daemon.spool import troubles
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.inbox import Inbox
from framepack_daemon.spool.intake import Intake
from framepack_daemon.spool.keeper import Keeper
from framepack_daemon.spool.lock import BEAT_SECONDS, FolderLock
from framepack_daemon.spool.mounts import Anchor
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.publish import Publisher
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.recovery import recover
from framepack_daemon.spool.status import StatusWriter
from framepack_daemon.spool.troubles import Troubles
from framepack_daemon.spool.watch import Bell
from framepack_daemon.startup import persist, take_folders
from framepack_daemon.systemd import Service
from framepack_daemon.workers.channel import Message
from framepack_daemon.workers.pool import Phase, Worker

TICK_SECONDS = 1.0  # the longest time between two turns, and between two looks at folders that tell of no changes
ENTER_SECONDS = 0.02  # of one turn, for jobs that came into a state; a worker that becomes idle does not wait longer
CALM_SECONDS = 5.0  # without a failure, until one is news again: on a full disk some turns have nothing to write
LOOK_SHARE = 0.05  # of the time, at most, goes into looks at everything
PATIENCE_SECONDS = 600.0  # that a service manager is asked for: for a long queue's look, and a slow share's video

_log = structlog.get_logger(__name__)


class Daemon:
    """One daemon on one inbox and one queue, whose folders are there and locked."""

    def __init__(self, reload: Reload, service: Service, signals: Signals, observer: Observer) -> None:
        self._reload = reload
        settings = reload.settings
        self._service = service
        self._signals = signals
        self._observer = observer
        self._queue = queue = Queue(settings.queue_dir)
        self._troubles = Troubles(settings.work_dir / troubles.FILE)
        self._anchor = Anchor(settings.queue_dir)
        writer = StatusWriter(queue, settings.outputs, self._troubles, observer.tell)
        self._previews = previews = Previews(queue, settings.outputs, settings.work_dir)
        door = Door(queue, writer, settings.model)
        self._inbox = Inbox(
            settings.inbox,
            queue,
            parts.timing(settings),
            excluded=(settings.outputs, settings.queue_dir, settings.work_dir),
        )
        self._keeper = Keeper(
            queue, door, writer, previews, settings.outputs, settings.work_dir, settings.settle_seconds
        )
        publisher = Publisher(queue, settings.outputs, settings.work_dir, writer, previews)
        self._endings = Endings(queue, self._keeper, publisher, writer, previews, settings.work_dir)
        self._lifecycle = Lifecycle(
            queue, self._keeper, self._endings, writer, previews, settings.work_dir, settings.max_attempts
        )
        self._workers = parts.workers(settings)
        self._intake = Intake(
            self._inbox,
            door,
            self._hear_of,
            rescan_seconds=settings.rescan_seconds,
            poll_seconds=settings.poll_seconds,
        )
        self._bell = Bell(self._hear_of)
        self._report = Report(self._lifecycle, self._troubles, self._workers)
        self._heard: set[str] = set()  # names of jobs that may have moved, since the last turn
        self._hearing = threading.Lock()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._unheard: deque[tuple[Message, Worker]] = deque()
        self._look_at = 0.0  # monotonic; when all four state folders are listed again

    def wake(self) -> None:
        """Have the loop look at everything; callable from any thread and from signal handlers."""
        os.eventfd_write(self._woken, 1)

    def _hear_of(self, names: set[str]) -> None:
        """Have the loop look at the jobs of these names; callable from any thread."""
        with self._hearing:
            self._heard |= names
        self.wake()

    def run(self, locks: list[FolderLock]) -> None:
        """Serve until a signal says stop."""
        settings = self._reload.settings
        self._signals.wake = self.wake
        self._reload.apply = self._apply
        self._troubles.begin()
        if persist(self._recover, self._service, self._signals, self._reload) is None:
            return
        with ExitStack() as held:
            for worker in self._workers:
                worker.ensure_started()
            self._intake.start()
            held.callback(self._intake.stop)
            held.callback(self._bell.stop)
            held.callback(self._previews.close)
            _log.info(
                "daemon_started",
                inbox=str(settings.inbox),
                outputs=str(settings.outputs),
                queue=str(settings.queue_dir),
                workers=[worker.device for worker in self._workers],
                pending=len(self._queue.names(State.PENDING)),
            )
            self._loop(locks)
            self._shut_down()
            _log.info("daemon_stopped")

    def _recover(self) -> bool:
        """Finish or undo what the last daemon left half done."""
        self._service.status("looking through the queue", at_once=True)
        with self._service.patience(PATIENCE_SECONDS):
            recover(self._keeper, self._inbox.folders(), seconds=0.0)
        return True

    def _apply(self, settings: Settings) -> None:
        """Have new settings take effect, as far as that leaves the running jobs alone."""
        self._inbox.timing = parts.timing(settings)
        self._intake.pace(settings.rescan_seconds, settings.poll_seconds)
        self._keeper.arrivals.settle_seconds = settings.settle_seconds
        self._lifecycle.max_attempts = settings.max_attempts
        for worker in self._workers:
            worker.limits = parts.limits(settings)
        self._look_at = 0.0

    def _loop(self, locks: list[FolderLock]) -> None:
        beat_at = time.monotonic() + BEAT_SECONDS
        failed_at = 0.0  # monotonic; 0 when all is well
        while not self._signals.stops:
            if not self._intake.is_alive():
                raise RuntimeError("the intake thread ended")
            self._reload.look()
            try:
                self._turn()
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + BEAT_SECONDS
                    for lock in locks:
                        lock.beat()
            except OSError as error:
                # A full disk or a share that is away: everything is derived from the folders again when they are back.
                if not failed_at:
                    _log.error("queue_unreachable", reason=str(error))
                failed_at = time.monotonic()
                self._troubles.note("queue", error)
                self._look_at = 0.0  # what was heard of in this turn is forgotten
            else:
                if failed_at and time.monotonic() >= failed_at + CALM_SECONDS:
                    failed_at = 0.0
                    self._troubles.clear("queue")
            self._tell()
            self._wait(ENTER_SECONDS if self._keeper.is_behind else TICK_SECONDS)

    def _tell(self) -> None:
        """Tell the service manager, and who else watches, how things are, and that they go on."""
        answered = any(worker.answered for worker in self._workers)
        self._service.status(self._report.line(*self._reload.remarks), at_once=answered and not self._service.is_ready)
        if answered:
            self._service.ready()
        elif not self._service.is_ready:
            self._service.extend()
        if not any(worker.is_stuck for worker in self._workers):
            self._service.feed_watchdog()
        self._observer.look(self._lifecycle, self._workers, self._troubles)

    def _turn(self) -> None:
        """Look at everything once, and do what there is to do."""
        self._anchor.expect()
        self._bell.watch([self._queue.root, *(self._queue.folder(state) for state in State)])
        self._hear()
        self._lifecycle.stop_departed(self._workers)
        self._tidy()
        for worker in self._workers:
            worker.ensure_started()
            if worker.phase is Phase.IDLE:
                self._lifecycle.look_for_model(worker)
            if worker.phase is Phase.IDLE:
                self._lifecycle.start_next(worker, self._workers)
        self._lifecycle.reasons.explain_waiting(self._workers)
        self._settle()
        self._lifecycle.write_progress()

    def _settle(self) -> None:
        """Publish what is rendered; onto a slow share that takes its time."""
        if self._endings.due():
            with self._service.patience(PATIENCE_SECONDS):
                self._endings.settle()

    def _tidy(self) -> None:
        """Make the records agree with the folders: for what was heard of, and now and then for everything."""
        held, started = self._lifecycle.held(self._workers), time.monotonic()
        with self._hearing:
            heard, self._heard = self._heard, set()
        self._keeper.tidy(held, heard, ENTER_SECONDS)  # first: of a job that came and went, only the bell has told
        if started < self._look_at:
            return
        self._keeper.tidy(held, seconds=ENTER_SECONDS)
        pause = TICK_SECONDS if self._bell.is_deaf else self._reload.settings.rescan_seconds
        self._look_at = started + max(pause, (time.monotonic() - started) / LOOK_SHARE)

    def _wait(self, seconds: float) -> None:
        """Sleep until there is news, at most so long."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for worker in self._workers:
                if worker.fileno() >= 0:
                    selector.register(worker.fileno(), selectors.EVENT_READ)
            selector.select(seconds)
        with suppress(BlockingIOError):
            os.eventfd_read(self._woken)

    def _hear(self) -> None:
        """Do what the workers' messages ask for; one that fails for a folder's sake is the first of the next turn."""
        for worker in self._workers:
            for message in worker.receive():
                self._observer.follow(message, worker)
                self._unheard.append((message, worker))
        while self._unheard:
            self._lifecycle.handle(*self._unheard[0])
            self._unheard.popleft()

    def _shut_down(self) -> None:
        """Stop the workers after their step and put their jobs back; a second signal, or time, kills them."""
        until = time.monotonic() + self._reload.settings.stop_timeout_seconds
        jobs = ", ".join(stem(worker.job) for worker in self._workers if worker.job)
        self._service.stopping(f"stopping: {jobs} at its next step" if jobs else "stopping")
        for worker in self._workers:
            self._lifecycle.stop_for_shutdown(worker)
        while any(worker.job and not worker.is_stuck for worker in self._workers):
            self._service.extend()
            self._service.feed_watchdog()
            self._wait(min(TICK_SECONDS, max(until - time.monotonic(), 0)))
            if self._signals.stops > 1 or time.monotonic() >= until:
                for worker in self._workers:
                    worker.kill()
            with suppress(OSError):  # where the queue cannot be written, the next daemon does it
                self._hear()
        for worker in self._workers:
            worker.close()
        with suppress(OSError):
            self._settle()


def run(settings: Settings, read: Callable[[], Settings]) -> int:
    """The daemon in the foreground; the exit code. `read` gives the settings anew where they are to be reloaded.

    Raises `QueueHeldError` when another one serves these folders.
    """
    observer = Observer(settings)
    service = Service.from_environment()
    signals = Signals(hangup_reloads=service.is_there)
    reload = Reload(settings, read, service, signals)
    with signals.caught(), ExitStack() as held:
        locks = persist(lambda: take_folders(settings, held), service, signals, reload)
        if locks is not None:
            held.enter_context(observer.watching())
            Daemon(reload, service, signals, observer).run(locks)
    return EXIT_DONE
