"""The four state folders: where jobs stand, and the one way in which they change place.

The folder a job stands in is its state; this module lists, finds and renames, and keeps nothing in memory. Knows
neither drops nor workers.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
from dataclasses import replace
from pathlib import Path

from framepack_daemon import atomic
from framepack_daemon.job import OUTCOME_FILE, OWN_FILES, RUN_FILE, Run, State
from framepack_daemon.spool.capture import ORIGIN_FILE
from framepack_daemon.spool.line import places

# Where the same id stands twice, the first of these is the job and the other a conflict.
PRECEDENCE = (State.PROCESSING, State.DONE, State.FAILED, State.PENDING)
MAX_NAME_BYTES = 255
MAX_ASIDE_BYTES = 200  # of a directory's name that one set aside keeps; the rest is for `.conflict-N.status.json`
# What a crash leaves in a job's directory: records half written, and where its files came from.
_TORN = re.compile(
    rf"\.({'|'.join(map(re.escape, sorted(OWN_FILES)))})\.[0-9a-f]{{8}}\.tmp|{re.escape(ORIGIN_FILE)}",
)


class Queue:
    """The queue under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.building = root / ".building"  # jobs that are being put together; never a state
        self.trash = root / ".trash"  # jobs that are being removed
        self.pause_file = root / "pause"

    def make(self) -> None:
        """Make the folders that are missing, and remove those that a crash left half made."""
        for torn in self.root.glob(".*.tmp"):
            torn.rmdir()
        for folder in (*(self.root / state for state in State), self.building, self.trash):
            if not folder.is_dir():
                # Under a hidden name first: one that is there has its mode, whenever a crash comes.
                hidden = folder.with_name(atomic.hidden_name(folder.name))
                atomic.make_folder(hidden)
                with contextlib.suppress(FileExistsError):
                    atomic.move(hidden, folder)
            # What a user copies into it is to be moved and written by the daemon, and the other way round.
            atomic.let_group_write(folder)

    def folder(self, state: State) -> Path:
        """The folder of a state."""
        return self.root / state

    def path(self, state: State, job: str) -> Path:
        """The directory that the job has in that state."""
        return self.root / state / job

    def names(self, state: State) -> list[str]:
        """Names of the directories in a state, in no order; empty when the folder is away."""
        try:
            with os.scandir(self.root / state) as entries:
                return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        except FileNotFoundError:
            return []

    def state_of(self, job: str) -> State | None:
        """The state the job is in, or None; what is no bare name is no job."""
        if not is_name(job):
            return None
        # Twice: a job that is claimed between two of the looks stands where the first time was looked already.
        return next((state for state in PRECEDENCE * 2 if self.path(state, job).is_dir()), None)

    def move(self, job: str, source: State, target: State) -> None:
        """Change the job's state: one rename.

        Raises FileNotFoundError when the job is no longer in `source` and FileExistsError when the id is taken in
        `target`.
        """
        atomic.move(self.path(source, job), self.path(target, job))

    def run(self, state: State, job: str) -> Run | None:
        """The job's record; None when there is none that can be read."""
        return read_run(self.path(state, job))

    def has_outcome(self, state: State, job: str) -> bool:
        """Whether it is written down how the job ended."""
        return (self.path(state, job) / OUTCOME_FILE).exists()

    def save_run(self, state: State, run: Run) -> None:
        """Replace the job's record where it stands; FileNotFoundError when it does not stand there."""
        atomic.write_json(self.path(state, run.job) / RUN_FILE, run.as_dict())

    def remove_torn(self, state: State, job: str) -> None:
        """Remove what a crash has left in the job's directory."""
        with os.scandir(self.path(state, job)) as entries:
            torn = [entry.path for entry in entries if _TORN.fullmatch(entry.name)]
        for path in torn:
            Path(path).unlink(missing_ok=True)

    def waiting(self) -> list[str]:
        """Ids of the pending jobs in the order in which they will run: priority, then how long they have waited."""
        return [job for *_, job in sorted(places(self.folder(State.PENDING), self.names(State.PENDING)))]

    def newest(self, state: State, rows: int) -> list[str]:
        """The jobs that came into the state last, newest first, at most so many."""

        def entered(job: str) -> int:
            try:
                return self.path(state, job).stat().st_ctime_ns  # a rename sets it
            except FileNotFoundError:
                return 0

        return heapq.nlargest(rows, self.names(state), key=entered)

    def set_aside(self, path: Path, name: str = "") -> Path:
        """Move a directory that clashes with a job to `failed/<name>.conflict-N`; where it is now.

        `name` is that of the directory unless it is given.
        """
        name = os.fsencode(name or path.name)[:MAX_ASIDE_BYTES].decode(errors="ignore")
        for number in range(1, 10_000):
            target = self.path(State.FAILED, f"{name}.conflict-{number}")
            try:
                atomic.move(path, target)
            except FileExistsError:
                continue
            return target
        raise FileExistsError(f"{path.name}: too many conflicts in {self.folder(State.FAILED)}")

    def discard(self, path: Path) -> None:
        """Remove a directory of the queue: out of sight by one rename, then for good."""
        hidden = self.trash / atomic.hidden_name(path.name)
        atomic.make_folder(self.trash)
        atomic.move(path, hidden)
        atomic.remove_tree(hidden)

    @property
    def paused(self) -> bool:
        """Whether `queue/pause` is there: no job is started. False where that cannot be told, as on a stale share."""
        try:
            return self.pause_file.exists()
        except OSError:
            return False

    def requeue(self, job: str, source: State) -> None:
        """Put a job that cannot run now behind the others of its priority."""
        run = self.run(source, job)
        if run is not None:
            self.save_run(source, run.requeued())
        self.move(job, source, State.PENDING)

    def charge(self, job: str, started_at: str) -> Run | None:
        """Count an attempt at a job in `processing/`, before it starts."""
        run = self.run(State.PROCESSING, job)
        if run is not None:
            run = replace(run, attempts=run.attempts + 1, started_at=run.started_at or started_at)
            self.save_run(State.PROCESSING, run)
        return run


def read_run(folder: Path) -> Run | None:
    """The record in a job's directory, wherever that stands; None when there is none that can be read."""
    value = atomic.read_json(folder / RUN_FILE)
    try:
        return Run.from_dict(value) if value is not None else None
    except (TypeError, KeyError, ValueError):
        return None


def is_name(text: str) -> bool:
    """Whether the text can be the name of a directory: never a path that leads elsewhere."""
    fits = 0 < len(text.encode(errors="surrogatepass")) <= MAX_NAME_BYTES
    return fits and "/" not in text and "\0" not in text and not text.startswith(".")
