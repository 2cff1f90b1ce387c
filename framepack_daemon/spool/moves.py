"""What a person can do to a job: each is one rename of its directory, as a file manager could do it too.

The daemon sees that the directory moved and does the rest. Every answer is a sentence; who asks for what a job's state
does not allow gets a `StateError` that says what does. Needs no daemon.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from framepack_daemon import atomic
from framepack_daemon.errors import StateError, UnknownJobError
from framepack_daemon.job import OUTCOME_FILE, RUN_FILE, Outcome, State
from framepack_daemon.spool import barred, previews, status
from framepack_daemon.spool.publish import PICTURES
from framepack_daemon.spool.queue import Queue

RACES = 5  # times a job may change its state under our hands before we give up
MIN_PREFIX = 2  # characters of a job id that may stand for the whole


def resolve(queue: Queue, text: str) -> str:
    """The job that `text` names: a full id, or the beginning of just one."""
    if queue.state_of(text) is not None:
        return text
    known = [job for state in State for job in queue.names(state)]
    begin = sorted({job for job in known if len(text) >= MIN_PREFIX and job.startswith(text)})
    if len(begin) == 1:
        return begin[0]
    if begin:
        raise UnknownJobError(f"{text}: names {len(begin)} jobs", hint=f"one of {', '.join(begin[:5])}")
    stems = {job.rpartition("-")[0]: job for job in known}
    close = [stems[stem] for stem in difflib.get_close_matches(text.rpartition("-")[0] or text, stems, n=3)]
    hint = f"did you mean {', '.join(close)}?" if close else "`framepack-daemon status` lists the jobs"
    raise UnknownJobError(f"{text}: no such job", hint=hint)


def cancel(queue: Queue, job: str) -> str:
    """End a job that waits or runs: it goes to `failed/` as cancelled."""
    return _attempt(queue, job, _cancel)


def _cancel(queue: Queue, job: str, state: State) -> str:
    if state is State.DONE or _published(queue, job, state):
        return f"{job}: already completed"
    if state is State.FAILED:
        return f"{job}: already {_ending(queue, job)}"
    queue.move(job, state, State.FAILED)
    return f"{job}: cancelled"


def interrupt(queue: Queue, job: str) -> str:
    """Stop a running job and let it wait behind the others of its priority, keeping what it has rendered."""
    return _attempt(queue, job, _interrupt)


def _interrupt(queue: Queue, job: str, state: State) -> str:
    if _published(queue, job, state):
        return f"{job}: already completed"
    if state is State.PENDING:
        return f"{job}: is not running; it waits"
    if state is not State.PROCESSING:
        raise StateError(f"{job}: is not running; it is {state}", hint=f"`framepack-daemon retry {job}` runs it again")
    queue.move(job, State.PROCESSING, State.PENDING)
    return f"{job}: interrupted; it waits again and keeps what it has rendered"


def retry(queue: Queue, job: str) -> str:
    """Run a job that has ended once more, with the same seed."""
    return _attempt(queue, job, _retry)


def _retry(queue: Queue, job: str, state: State) -> str:
    if state is State.PENDING:
        return f"{job}: waits already"
    if state is State.PROCESSING:
        raise StateError(f"{job}: is running", hint=f"`framepack-daemon interrupt {job}` stops it first")
    run = queue.run(state, job)
    gone = [item.original for item in run.files if not (queue.path(state, job) / item.name).exists()] if run else []
    if gone:
        raise StateError(
            f"{job}: was pruned; {', '.join(gone)} is no longer there",
            hint=f"`framepack-daemon remove {job}` forgets it; then drop the files again",
        )
    queue.move(job, state, State.PENDING)
    return f"{job}: waits to run again"


def remove(queue: Queue, job: str) -> str:
    """Take a job out of the queue for good, in whatever state; a video that was published stays."""
    return _attempt(queue, job, _remove)


def _remove(queue: Queue, job: str, state: State) -> str:
    queue.discard(queue.path(state, job))
    return f"{job}: removed" + (" and stopped" if state is State.PROCESSING else "")


def prioritise(queue: Queue, job: str, priority: int) -> str:
    """Give a job that waits another priority; the daemon reads it within its next looks at the folders."""

    def act(queue: Queue, job: str, state: State) -> str:
        run = queue.run(state, job)
        if state is not State.PENDING or run is None:
            raise StateError(f"{job}: does not wait; it is {state}", hint="only what waits has a place in the line")
        queue.save_run(state, replace(run, priority=priority))
        return f"{job}: waits with priority {priority}"

    return _attempt(queue, job, act)


def _attempt(queue: Queue, job: str, act: Callable[[Queue, str, State], str]) -> str:
    """Do `act` in the state that the job is in; when it moves under our hands, look again."""
    for _ in range(RACES):
        state = queue.state_of(job)
        if state is None:
            raise UnknownJobError(f"{job}: no such job", hint="`framepack-daemon status` lists the jobs")
        try:
            return act(queue, job, state)
        except FileNotFoundError:
            continue
        except FileExistsError as error:
            raise StateError(
                f"{job}: stands in two states at once", hint="the daemon sets the second one aside; try again"
            ) from error
        except PermissionError as error:
            if not barred.is_writable(queue.folder(state)):
                raise
            place = queue.path(state, job)
            raise StateError(f"{job}: {place} may not be moved or written", hint=barred.hint(place)) from error
    raise StateError(f"{job}: changes its state too fast", hint="try again")


def _published(queue: Queue, job: str, state: State) -> bool:
    """Whether a job in `processing/` is rendered: from there on it can only be completed."""
    return state is State.PROCESSING and queue.has_outcome(state, job)


def _ending(queue: Queue, job: str) -> str:
    """How a job in `failed/` ended; one that was done before, as the daemon has not seen yet, by being moved there."""
    outcome = (atomic.read_json(queue.path(State.FAILED, job) / OUTCOME_FILE) or {}).get("outcome")
    return str(Outcome.CANCELLED if outcome in (None, Outcome.COMPLETED) else outcome)


def pause(queue: Queue) -> str:
    """Start no more jobs; the running one goes on."""
    if queue.paused:
        return "already paused"
    atomic.make_folder(queue.root)
    queue.pause_file.touch()
    return "paused: jobs that wait stay waiting; what runs goes on"


def resume(queue: Queue) -> str:
    """Start jobs again."""
    try:
        queue.pause_file.unlink()
    except FileNotFoundError:
        return "not paused"
    return "resumed"


def prune(
    queue: Queue, outputs: Path, *, keep: int | None, older_than_seconds: float | None, videos: bool, forget: bool
) -> list[str]:
    """Remove the files of ended jobs: those beyond the newest `keep`, and those that ended so long ago.

    A job's `run.json` and `outcome.json` stay, so that the same drop still starts nothing, unless `forget`. Published
    videos and pictures stay unless `videos`, status files unless `forget`. Gives back the pruned ids, oldest first.
    """
    ended = sorted(
        (when, state, job) for state in (State.DONE, State.FAILED) for job in queue.names(state) if (
            when := _ended_at(queue, state, job)
        ) is not None
    )  # fmt: skip
    too_many = len(ended) - keep if keep is not None else 0
    limit = time.time() - older_than_seconds if older_than_seconds is not None else float("-inf")
    pruned = []
    for place, (when, state, job) in enumerate(ended):
        if place < too_many or when < limit:
            # One that is run again or removed at this moment is no longer ours to prune.
            with contextlib.suppress(FileNotFoundError):
                if _prune(queue, outputs, state, job, videos=videos, forget=forget):
                    pruned.append(job)
    return pruned


def _ended_at(queue: Queue, state: State, job: str) -> float | None:
    """When the job ended, in seconds since the epoch; None when it does not say (it may be on its way)."""
    outcome = atomic.read_json(queue.path(state, job) / OUTCOME_FILE)
    try:
        return datetime.fromisoformat(str((outcome or {}).get("finished_at"))).timestamp()
    except ValueError:
        return None


def _prune(queue: Queue, outputs: Path, state: State, job: str, *, videos: bool, forget: bool) -> bool:
    folder = queue.path(state, job)
    outcome = atomic.read_json(folder / OUTCOME_FILE) or {}
    published = (outcome.get("video") or {}).get("file")
    if not forget:
        extra = [path for path in folder.iterdir() if path.name not in (RUN_FILE, OUTCOME_FILE)]
        if not extra and not videos:
            return False
        for path in extra:
            atomic.remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
    names = [f"{job}{status.SUFFIX}"] if forget else []
    if videos:
        names += [f"{job}.{suffix}" for suffix in (*PICTURES.values(), *previews.NAMES)]
        names += [Path(published).name] if published else []
    for name in names:
        (outputs / name).unlink(missing_ok=True)
    if forget:
        queue.discard(folder)  # last: as long as it is there, the rest can be pruned again
    return True
