"""Waiting for jobs: a progress bar for each on a terminal, a line at each change otherwise.

Looks at the folders and status files a few times a second; the state is the folder's, the rest the status file's.
Speaks on standard error only. Does not know who made the jobs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from framepack_daemon.cli import wording
from framepack_daemon.cli.context import console, note, report
from framepack_daemon.errors import EXIT_DONE, EXIT_JOB_FAILED, FramepackError
from framepack_daemon.job import State
from framepack_daemon.printable import printable
from framepack_daemon.spool.status import current

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.progress import TaskID

    from framepack_daemon.spool.queue import Queue

POLL_SECONDS = 0.2
GONE_SECONDS = 2.0  # a job that is in no folder for so long was removed; for a moment a rename can hide it
LAG_SECONDS = 10.0  # given to a status file to follow its job into done/ or failed/


class JobEndedBadlyError(FramepackError):
    """A job that was waited for failed or was cancelled."""

    code = "job_failed"
    exit_code = EXIT_JOB_FAILED


class Display(Protocol):
    """What shows how far the jobs are."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def show(self, job: str, status: dict[str, Any]) -> None:
        """Show the job as it now is."""


class Lines:
    """A line when a job enters a state or a section."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Any, ...]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, job: str, status: dict[str, Any]) -> None:
        """A line, if something changed that is worth one."""
        now = status.get("progress") or {}
        news = (status["state"], now.get("section"), None if now else status.get("message"))
        if self._said.get(job) != news:
            self._said[job] = news
            note(printable(f"{job}: {status['state']}: {wording.progress(status)}"))


class Bars:
    """A bar for each job."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.fields[job]}", markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            console=console(stderr=True),
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, job: str, status: dict[str, Any]) -> None:
        """Move the job's bar."""
        done = status["state"] == State.DONE
        words = wording.video(status) if done else wording.progress(status) or status["state"]
        if job not in self._tasks:
            self._tasks[job] = self._progress.add_task("", total=1.0, job=printable(job))
        share = 1.0 if done else wording.fraction(status)
        self._progress.update(self._tasks[job], completed=share, description=printable(words))


@dataclass
class _Watch:
    """What is remembered of a job while it is waited for."""

    seen: float  # monotonic time at which it last stood in a folder
    ended: float | None = None  # when it was first seen in done/ or failed/


def follow(
    queue: Queue, outputs: Path, jobs: Sequence[str], alive: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Wait until every job has ended; their statuses, in order.

    `alive` is asked between two looks and raises what should end the waiting. Raises `JobEndedBadlyError` for a job
    that was removed.
    """
    ended: dict[str, dict[str, Any]] = {}
    watches = {job: _Watch(time.monotonic()) for job in jobs}
    display: Display = Bars() if console(stderr=True).is_terminal else Lines()
    with display:
        while True:
            for job, watch in watches.items():
                if job not in ended and (status := _look(queue, outputs, job, watch)):
                    display.show(job, status)
                    if watch.ended is not None and _final(status, watch.ended):
                        ended[job] = status
            if len(ended) == len(watches):
                return [ended[job] for job in jobs]
            alive()
            time.sleep(POLL_SECONDS)


def _look(queue: Queue, outputs: Path, job: str, watch: _Watch) -> dict[str, Any] | None:
    state = queue.state_of(job)
    now = time.monotonic()
    if state is None:
        if now - watch.seen > GONE_SECONDS:
            raise JobEndedBadlyError(f"{job}: was removed from the queue")
        return None
    watch.seen = now
    watch.ended = (watch.ended or now) if state in (State.DONE, State.FAILED) else None
    return current(queue, outputs, state, job)


def _final(status: dict[str, Any], since: float) -> bool:
    """Whether the status file has followed its job, or had its time to."""
    return status.get("outcome") is not None or time.monotonic() - since > LAG_SECONDS


def result(outputs: Path, status: dict[str, Any]) -> Path:
    """Where the video of a job that ended is; `JobEndedBadlyError` with the job's own message when it has none."""
    if status["state"] == State.DONE:
        return outputs / ((status.get("video") or {}).get("file") or f"{status['job']}.mp4")
    error = status.get("error") or {}
    message = error.get("message") or status.get("message") or status.get("outcome") or "failed"
    raise JobEndedBadlyError(f"{status['job']}: {message}", hint=error.get("hint") or "")


def results(outputs: Path, statuses: Sequence[dict[str, Any]], say: Callable[[Path], None]) -> int:
    """Say where each video is, or why there is none; the exit code."""
    code = EXIT_DONE
    for status in statuses:
        try:
            say(result(outputs, status))
        except JobEndedBadlyError as error:
            report(error)
            code = EXIT_JOB_FAILED
    return code
