"""What exists of a job's video while it runs: `outputs/<job>.preview.mp4`, and the picture of the step, `.step.jpg`.

A thread copies them from scratch, so that a slow share delays nobody; of several copies that wait, one is made, of the
newest. What it may be called is asked of the job's place when it is whole: a preview while the job waits or runs, the
partial video when it failed or was cancelled, nothing once its video is published. These names carry the job's id, and
whatever bears one is taken for the job's own. Trouble is logged once and stops nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import structlog

from framepack_daemon import atomic
from framepack_daemon.job import JOB_ID, OUTCOME_FILE, Outcome, State
from framepack_daemon.scratch import PREVIEW, STEP_PICTURE
from framepack_daemon.spool.mounts import Anchor
from framepack_daemon.spool.queue import Queue

# Behind `<job>.` in outputs, the first two as in scratch.
PARTIAL = "partial.mp4"  # what there was when the job was cancelled or failed
NAMES = (PREVIEW, STEP_PICTURE, PARTIAL)
CLOSE_SECONDS = 5.0  # at the daemon's end, for the copy in work

_log = structlog.get_logger(__name__)


class Previews:
    """The previews of one queue's jobs."""

    def __init__(self, queue: Queue, outputs: Path, work_dir: Path) -> None:
        self._queue = queue
        self._outputs = outputs
        self._work_dir = work_dir
        self._anchor = Anchor(outputs)
        self._lock = threading.Lock()  # held while a name in outputs changes, not while a copy is made
        self._changed = threading.Condition(self._lock)
        self._waiting: dict[tuple[str, str], None] = {}  # job and name, in order
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failing = False  # the last copy failed; said once

    def path(self, job: str, name: str) -> Path:
        """Where it stands in outputs."""
        return self._outputs / f"{job}.{name}"

    def offer(self, job: str, name: str) -> None:
        """Have the job's file of that name (`PREVIEW`, `STEP_PICTURE`) copied, soon."""
        with self._changed:
            self._waiting[job, name] = None
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="previews", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Finish what waits, if that is soon done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def discard(self, job: str) -> None:
        """Remove everything of a job whose video is published: it holds what they hold.

        Raises OSError when outputs cannot be written.
        """
        with self._lock:
            for name in NAMES:
                self.path(job, name).unlink(missing_ok=True)

    def keep(self, job: str) -> str | None:
        """Turn the preview of a job that ended without its video into the partial one; its name, if there is one."""
        preview, partial = self.path(job, PREVIEW), self.path(job, PARTIAL)
        try:
            with self._lock:
                self.path(job, STEP_PICTURE).unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    preview.replace(partial)
        except OSError as error:
            self._say(job, error)
        return partial.name if os.path.lexists(partial) else None

    def settle(self, published: Iterable[str]) -> None:
        """Bring the names of what an earlier daemon left in outputs up to date."""
        for file in published:
            job = next((file.removesuffix(f".{name}") for name in (PREVIEW, STEP_PICTURE) if file.endswith(name)), "")
            state = self._queue.state_of(job) if JOB_ID.fullmatch(job) else None
            if state is State.DONE:
                self.discard(job)
            elif state is State.FAILED:
                self.keep(job)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                job, name = next(iter(self._waiting))
                del self._waiting[job, name]
            try:
                self._copy(job, name)
            except FileNotFoundError:
                continue  # the job is over, and its scratch gone
            except OSError as error:
                self._say(job, error)
            else:
                self._failing = False

    def _copy(self, job: str, name: str) -> None:
        source = self._work_dir / job / name
        hidden = self._outputs / atomic.hidden_name(f"{job}.{name}")
        self._anchor.expect()
        try:
            atomic.copy(source, hidden, durable=name == PREVIEW)
            with self._lock:
                place = self._place(job, name)
                if place is not None:
                    hidden.replace(place)
        finally:
            hidden.unlink(missing_ok=True)

    def _place(self, job: str, name: str) -> Path | None:
        """What a copy that is whole is to be called; None for one that came too late."""
        state = self._queue.state_of(job)
        outcome = (atomic.read_json(self._queue.path(state, job) / OUTCOME_FILE) or {}) if state else {}
        if outcome.get("outcome") == Outcome.COMPLETED:
            return None  # its video is being published, or is
        ended = state not in (State.PENDING, State.PROCESSING) or bool(outcome)
        if ended and name == STEP_PICTURE:
            return None
        return self.path(job, PARTIAL if ended else name)

    def _say(self, job: str, error: OSError) -> None:
        if not self._failing:
            _log.warning("preview_not_written", job=job, reason=str(error))
        self._failing = True


def published(outputs: Path, job: str) -> str | None:
    """Name of what there is to see of a job without a video, in outputs: its preview, else its partial video."""
    names = (f"{job}.{name}" for name in (PREVIEW, PARTIAL))
    return next((name for name in names if os.path.lexists(outputs / name)), None)
