"""The status file of a job, `outputs/<job>.status.json`: written for people and scripts, never read as the state.

Written after a job enters a state and before it leaves it, whole or not at all. When `outputs/` is full or away that is
logged once and the job goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from framepack_daemon import atomic
from framepack_daemon.job import OUTCOME_FILE, REQUEST_FILE, Outcome, Role, Run, State
from framepack_daemon.spool import previews
from framepack_daemon.spool.mounts import Anchor
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.troubles import Troubles

SUFFIX = ".status.json"
# What is said of a job whose files were dropped again.
_WAITS_ALREADY = "it was dropped again, which starts nothing"
_ONCE_MORE = "dropped again: use `framepack-daemon retry`, or move it to pending/, to render it once more"

_log = structlog.get_logger(__name__)


@dataclass
class StatusWriter:
    """Writes status files into one folder."""

    queue: Queue
    outputs: Path
    troubles: Troubles = field(default_factory=Troubles)
    tell: Callable[[str, Mapping[str, Any]], None] = lambda _job, _body: None  # who else wants to know what is said
    failing: bool = field(default=False, init=False)  # the last write failed; said once
    anchor: Anchor = field(init=False)

    def __post_init__(self) -> None:
        """Remember what `outputs` is mounted on."""
        self.anchor = Anchor(self.outputs)

    def write(self, job: str, place: State, *, sync_folder: bool = True, **changes: Any) -> None:
        """Write the status of a job that stands in `place`; `changes` are fields of the file (design section 7).

        Without `sync_folder` the caller makes the names in the folder durable.
        """
        with self._lock():
            run = self.queue.run(place, job)
            if run is None:
                return
            # A directory that was set aside has a record of another job's id.
            body = compose(self.queue, replace(run, job=job), place)
            body["preview"] = previews.published(self.outputs, job)
            if place is State.FAILED or changes.get("state") is State.FAILED:
                body["message"] += _partial(body["preview"])
            body |= changes
            self._put(job, body, sync_folder=sync_folder)

    def amend(self, job: str, **changes: Any) -> None:
        """Change fields of a status file that is there."""
        with self._lock():
            body = read(self.outputs, job)
            if body is not None:
                self._put(job, body | changes)

    def says(self, job: str) -> str | None:
        """The state that a job's status file says; whoever wants to know hears what else is in it."""
        body = read(self.outputs, job) or {}
        self.tell(job, body)
        return body.get("state")

    def dropped_again(self, job: str, place: State) -> None:
        """Say that the job's files came once more, beside what there is to say of it."""
        if place in (State.PENDING, State.PROCESSING):
            self.amend(job, message=f"{_MESSAGES[place]}; {_WAITS_ALREADY}")
        else:
            outcome = atomic.read_json(self.queue.path(place, job) / OUTCOME_FILE) or {}
            self.write(job, place, message=f"{outcome.get('message') or _MESSAGES[place]}; {_ONCE_MORE}")

    def ended_outside(self, job: str) -> None:
        """Say of a job whose directory was removed that it is no more, unless it had ended before."""
        body = read(self.outputs, job)
        if body is not None and body.get("state") in (State.PENDING, State.PROCESSING):
            preview = previews.published(self.outputs, job)
            changes = {"preview": preview, "message": f"removed from the queue{_partial(preview)}", "progress": None}
            self.amend(job, state=State.FAILED, outcome=Outcome.CANCELLED, **changes)
        if body is None or body.get("state") != State.DONE:
            self.tell(job, {})  # there is nothing more to be told of it

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other threads and processes from putting an older status back, where the folder can be locked."""
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):
                held.enter_context(atomic.locked(self.outputs))
            yield

    def _put(self, job: str, body: dict[str, Any], *, sync_folder: bool = True) -> None:
        durable = body.get("state") in (State.DONE, State.FAILED)  # others are written again at the next start
        try:
            self.anchor.expect()
            atomic.write_json(path(self.outputs, job), body, durable=durable, sync_parent=sync_folder)
        except OSError as error:
            if not self.failing:
                _log.warning("status_not_written", folder=str(self.outputs), reason=str(error))
            self.failing = True
            self.troubles.note("status files", error)
        else:
            self.failing = False
            self.troubles.clear("status files")
        self.tell(job, body)


def path(outputs: Path, job: str) -> Path:
    """Where the status file of a job stands."""
    return outputs / f"{job}{SUFFIX}"


def read(outputs: Path, job: str) -> dict[str, Any] | None:
    """The status file of a job; None when there is none that can be read."""
    try:
        return atomic.read_json(path(outputs, job))
    except OSError:  # outputs is broken or closed to us: the job's own records say what there is to say
        return None


def current(queue: Queue, outputs: Path, state: State, job: str) -> dict[str, Any]:
    """A job's status file, its state taken from the folder it stands in."""
    body = read(outputs, job)
    if body is None or body.get("state") != state:
        # The file is away, or lags behind the folder for a moment: the job's own records say what there is to say.
        try:
            run = queue.run(state, job)
            body = compose(queue, run, state) if run else {"message": "has no readable record"}
        except PermissionError:
            body = {"message": "its directory is closed to this user"}
    return body | {"job": job, "state": str(state)}


def compose(queue: Queue, run: Run, state: State) -> dict[str, Any]:
    """What the job's directory says about it, as a status file."""
    folder = queue.path(state, run.job)
    outcome = atomic.read_json(folder / OUTCOME_FILE) or {}
    source = {role: run.file(role) for role in (Role.IMAGE, Role.VIDEO, Role.SIDECAR)}
    return {
        "job": run.job,
        "state": state,
        "outcome": outcome.get("outcome"),
        "message": outcome.get("message") or _MESSAGES[state],
        "error": outcome.get("error"),
        "source": {str(role): file and file.original for role, file in source.items()},
        "request": atomic.read_json(folder / REQUEST_FILE),
        "progress": None,
        "attempts": run.attempts,
        "submitted_at": run.submitted_at,
        "started_at": run.started_at,
        "finished_at": outcome.get("finished_at"),
        "timings": outcome.get("timings"),
        "device": outcome.get("device"),
        "memory": outcome.get("memory"),
        "model": outcome.get("model"),
        "versions": outcome.get("versions"),
        "video": outcome.get("video"),
        "preview": None,  # what the folder of outputs says, which this does not look at
        "updated_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


_MESSAGES = {
    State.PENDING: "waits for its turn",
    State.PROCESSING: "is being rendered",
    State.DONE: "the video is ready",
    State.FAILED: "failed",
}


def _partial(preview: str | None) -> str:
    """The end of a message about a job without a video, where there is something to see of it."""
    return f"; what was rendered is in {preview}" if preview else ""
