"""The daemon: startup, one loop that waits for news, shutdown.

The loop wakes for a worker's message, a change in the state folders, a new job or a signal; it makes the records agree
with the folders, gives idle workers the next job, and publishes what is rendered. Signal handlers only set a flag. The
folders are the state; what it remembers of a running job is only what the status file shows. Never imports torch.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

import structlog

from framepack_daemon import atomic
from framepack_daemon.endings import Endings
from framepack_daemon.errors import EXIT_DONE
from framepack_daemon.job import State
from framepack_daemon.lifecycle import Lifecycle
from framepack_daemon.settings import Settings
from framepack_daemon.spool.add import Door
from framepack_daemon.spool.capture import HIDDEN_FOLDER
from framepack_daemon.spool.inbox import Inbox, Timing
from framepack_daemon.spool.intake import Intake
from framepack_daemon.spool.keeper import Keeper
from framepack_daemon.spool.lock import BEAT_SECONDS, FolderLock
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.publish import Publisher
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter
from framepack_daemon.spool.watch import Bell
from framepack_daemon.workers.pool import Limits, Phase, Worker, devices

TICK_SECONDS = 1.0  # the longest time between two looks at the folders, should an event be lost

_log = structlog.get_logger(__name__)


class Daemon:
    """One daemon on one inbox and one queue."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue = queue = Queue(settings.queue_dir)
        writer = StatusWriter(queue, settings.outputs)
        self._previews = previews = Previews(queue, settings.outputs, settings.work_dir)
        door = Door(queue, writer, settings.model)
        self._inbox = Inbox(
            settings.inbox,
            queue,
            Timing(settings.settle_seconds, settings.incomplete_seconds, settings.partner_seconds),
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
        self._workers = [self._make_worker(device) for device in devices(settings.device)]
        self._intake = Intake(
            self._inbox,
            door,
            self.wake,
            rescan_seconds=settings.rescan_seconds,
            poll_seconds=settings.poll_seconds,
        )
        self._bell = Bell(self.wake)
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._signals = 0

    def wake(self) -> None:
        """Have the loop look at everything; callable from any thread and from signal handlers."""
        os.eventfd_write(self._woken, 1)

    def run(self) -> int:
        """Serve until a signal says stop; the exit code."""
        settings = self._settings
        with ExitStack() as held:
            for folder in (settings.inbox, settings.outputs, settings.queue_dir, settings.work_dir):
                atomic.make_folder(folder)
            locks = [
                FolderLock(settings.queue_dir / ".lock", f"the queue {settings.queue_dir}"),
                FolderLock(settings.inbox / HIDDEN_FOLDER / "lock", f"the inbox {settings.inbox}"),
            ]
            for lock in locks:
                held.callback(lock.release)
            held.enter_context(self._signals_caught())
            self._keeper.recover(self._inbox.folders())
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
        return EXIT_DONE

    def _loop(self, locks: list[FolderLock]) -> None:
        beat_at = time.monotonic() + BEAT_SECONDS
        failing = False
        while not self._signals:
            if not self._intake.is_alive():
                raise RuntimeError("the intake thread ended")
            try:
                self._turn()
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + BEAT_SECONDS
                    for lock in locks:
                        lock.beat()
            except OSError as error:
                # A full disk or a share that is away: everything is derived from the folders again when they are back.
                if not failing:
                    _log.error("queue_unreachable", reason=str(error))
                failing = True
            else:
                failing = False
            self._wait(TICK_SECONDS)

    def _turn(self) -> None:
        """Look at everything once, and do what there is to do."""
        self._bell.watch([self._queue.root, *(self._queue.folder(state) for state in State)])
        self._hear()
        self._lifecycle.stop_departed(self._workers)
        self._keeper.tidy(self._lifecycle.held(self._workers))
        for worker in self._workers:
            worker.ensure_started()
            if worker.phase is Phase.IDLE:
                self._lifecycle.start_next(worker, self._workers)
        self._endings.settle()
        self._lifecycle.write_progress()

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
        for worker in self._workers:
            for message in worker.receive():
                self._lifecycle.handle(message, worker)

    def _shut_down(self) -> None:
        """Stop the workers after their step and put their jobs back; a second signal, or time, kills them."""
        until = time.monotonic() + self._settings.stop_timeout_seconds
        for worker in self._workers:
            self._lifecycle.stop_for_shutdown(worker)
        while any(worker.job for worker in self._workers):
            self._wait(min(TICK_SECONDS, max(until - time.monotonic(), 0)))
            if self._signals > 1 or time.monotonic() >= until:
                for worker in self._workers:
                    worker.kill()
            self._hear()
        for worker in self._workers:
            worker.close()
        self._endings.settle()

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        """Count stop signals while the daemon runs."""

        def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of a handler
            self._signals += 1
            self.wake()

        stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in stopping}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _make_worker(self, device: str) -> Worker:
        settings = self._settings
        return Worker(
            device,
            models_dir=settings.models_dir,
            loras_dir=settings.loras_dir,
            model=settings.model,
            threads=settings.threads,
            memory=settings.memory,
            preservation=settings.gpu_memory_preservation,
            limits=Limits(settings.step_timeout_seconds, settings.load_timeout_seconds),
            log=settings.work_dir / f"worker-{device.replace(':', '-')}.log",
        )


def run(settings: Settings) -> int:
    """The daemon in the foreground; the exit code. Raises `QueueHeldError` when another one serves these folders."""
    return Daemon(settings).run()
