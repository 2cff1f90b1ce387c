"""What the model test of the spool drives and looks at: the daemon's parts without a daemon, and all that lies around.

`Spool` is a bench with everything that a daemon has but its processes: a `Slot` stands where a worker would, and says
what it is told to. `look_around` tells where each dropped content is. Knows no rules.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spool_bench import SIDECAR, Bench

from framepack_daemon import atomic
from framepack_daemon.endings import Endings
from framepack_daemon.job import JOB_ID, Run, State
from framepack_daemon.lifecycle import Lifecycle
from framepack_daemon.workers.pool import Phase

STEMS = ("a", "b")
IMAGES = ("red", "blue", "torn")
SIDECARS = ("one", "two", "twins", "broken")
ATTEMPTS = 3

# A name of a directory that a job of these stems can have: restored drops, copies and what was set aside included.
NAME = re.compile(
    r"(?P<stem>[ab])(?:-copy|-restored-\d+|\.conflict-\d+)*"
    r"(?:-(?P<hex>[0-9a-f]{12})(?:-copy|\.conflict-\d+)*)?"
)
DROPPED = re.compile(r"[ab](?: \(restored \d+\))?\.(?:png|json)")  # files, in the inbox and in jobs

Item = tuple[str, str]  # a stem, and the label of the content of one of its files


class Slot:
    """Stands where a worker would: holds a job, and says what became of it when it is asked to."""

    device = "none"

    def __init__(self) -> None:
        self.job: str | None = None
        self.stopping = False
        self.phase = Phase.IDLE
        self.scratch = Path()

    def start(self, job: str, *, scratch: str, **_: Any) -> None:
        assert self.job is None, "a busy worker was given a job"
        self.job, self.stopping, self.phase, self.scratch = job, False, Phase.BUSY, Path(scratch)

    def stop_job(self) -> None:
        self.stopping = True

    def let_go(self) -> str:
        """The job, which it holds no longer."""
        assert self.job is not None
        job, self.job, self.stopping, self.phase = self.job, None, False, Phase.IDLE
        return job

    def rendered(self, take: int) -> dict[str, Any]:
        """Render the job's video in no time; the message that says so."""
        assert self.job is not None
        self.scratch.mkdir(parents=True, exist_ok=True)
        (self.scratch / "video.mp4").write_text(f"video of {self.job}, take {take}")
        (self.scratch / "poster.jpg").write_text("poster")
        video = {"sha256": atomic.digest(self.scratch / "video.mp4")[1]}
        facts = {"timings": {}, "device": "none", "memory": {}, "model": {}, "versions": {}}
        return {"event": "rendered", "job": self.let_go(), "video": video, **facts}

    def failed(self, code: str, *, retryable: bool) -> dict[str, Any]:
        """The message that the job failed."""
        problem = {"code": code, "message": code, "hint": "", "traceback": "", "retryable": retryable}
        return {"event": "failed", "job": self.let_go(), **problem}


class Spool(Bench):
    """What one daemon has in memory, and the folders that outlive it."""

    def __init__(self, root: Path, picture: Path) -> None:
        super().__init__(root, picture)
        self.endings = Endings(self.queue, self.keeper, self.publisher, self.writer, self.previews, self.work)
        self.lifecycle = Lifecycle(
            self.queue, self.keeper, self.endings, self.writer, self.previews, self.work, ATTEMPTS
        )
        self.slots = [Slot(), Slot()]

    def tidy(self, heard: set[str] | None = None) -> None:
        """One look at everything, or at the jobs that something was heard of; the workers of departed ones stop."""
        self.lifecycle.stop_departed(self.slots)  # type: ignore[arg-type]  # slots stand for workers
        self.keeper.tidy(self.lifecycle.held(self.slots), heard)  # type: ignore[arg-type]

    def start(self) -> None:
        """Give every idle slot the next job."""
        for slot in self.slots:
            if slot.phase is Phase.IDLE:
                self.lifecycle.start_next(slot, self.slots)  # type: ignore[arg-type]

    def hear(self, slot: Slot, message: dict[str, Any]) -> None:
        """Do what a slot's message asks for."""
        self.lifecycle.handle(message, slot)  # type: ignore[arg-type]

    def placed(self) -> list[tuple[State, str]]:
        """Every directory in a state, sorted."""
        return [(state, job) for state in State for job in self.jobs(state)]


@dataclass(frozen=True)
class Contents:
    """The few contents that are dropped, by label; the record of all that was ever written, by stem."""

    by_label: dict[str, bytes]
    written: set[Item] = field(default_factory=set)

    @classmethod
    def of(cls, picture: bytes, other: bytes) -> Contents:
        """Two pictures and a torn one; two requests, one for two videos, and one that is no JSON."""
        sidecars = {"one": SIDECAR, "two": SIDECAR | {"seed": 8}, "twins": SIDECAR | {"variations": 2}}
        texts = {label: json.dumps(fields).encode() for label, fields in sidecars.items()}
        return cls({"red": picture, "blue": other, "torn": picture[:-40], **texts, "broken": b"{"})

    def label(self, content: bytes) -> str:
        """What a content is called; the strange are called by themselves."""
        return next((label for label, known in self.by_label.items() if known == content), repr(content[:40]))

    def explains(self, name: str) -> bool:
        """Whether a directory in the queue can have that name, by what was written."""
        read = NAME.fullmatch(name)
        return read is not None and (read["hex"] is None or read["hex"] in self._ids(read["stem"]))

    def _ids(self, stem: str) -> set[str]:
        """The last parts of the ids that pairs of that stem can have."""
        labels = [label for of, label in self.written if of == stem]
        images, sidecars = ([label for label in labels if label in kind] for kind in (IMAGES, SIDECARS))
        return {part for image in images for sidecar in sidecars for part in self._parts(image, sidecar)}

    def _parts(self, image: str, sidecar: str) -> list[str]:
        """The last parts of the ids of a pair: as one job, and as each of two variations."""
        total = hashlib.sha256()
        for role, label in (("image", image), ("sidecar", sidecar)):
            content = self.by_label[label]
            total.update(f"{role}\0{len(content)}\0".encode() + content)
        totals = [total]
        for number in range(2):
            totals.append(total.copy())
            totals[-1].update(f"variation\0{number}\0".encode())
        return [total.hexdigest()[:12] for total in totals]


def is_own_name(job: str) -> bool:
    """Whether it is an id, and not the name of a copy, of what was set aside, or that somebody gave."""
    return JOB_ID.fullmatch(job) is not None and "copy" not in job and "conflict" not in job


@dataclass(frozen=True)
class View:
    """What lies around at one moment."""

    groups: list[frozenset[Item]]  # the dropped contents that stand together in one place
    states: dict[str, set[State]]  # of each job
    known: list[frozenset[Item]]  # what ended jobs, and those that have lost files, consisted of by their records
    videos: dict[str, bytes]  # in outputs, by name


def look_around(spool: Spool, contents: Contents) -> View:
    """Everything that lies around."""
    groups = list(_inbox_groups(spool, contents).values())
    states: dict[str, set[State]] = {}
    known = []
    for state, job in spool.placed():
        states.setdefault(job, set()).add(state)
        folder = spool.queue.path(state, job)
        groups.append(frozenset(_item(path, contents) for path in folder.iterdir() if DROPPED.fullmatch(path.name)))
        run = spool.queue.run(state, job)
        ended = state in (State.DONE, State.FAILED)
        if run is not None and (ended or any(not (folder / item.name).exists() for item in run.files)):
            known.append(frozenset(_recorded(run, contents)))
    videos = {path.name: path.read_bytes() for path in spool.outputs.glob("*.mp4")}
    return View(groups, states, known, videos)


def _inbox_groups(spool: Spool, contents: Contents) -> dict[str, frozenset[Item]]:
    found: dict[str, frozenset[Item]] = {}
    for path in sorted(spool.inbox.iterdir()):
        if DROPPED.fullmatch(path.name):
            found[path.stem] = found.get(path.stem, frozenset()) | {_item(path, contents)}
    return found


def _item(path: Path, contents: Contents) -> Item:
    return path.name[0], contents.label(path.read_bytes())


def _recorded(run: Run, contents: Contents) -> list[Item]:
    """What the files of a job were when it was taken."""
    digests = {hashlib.sha256(content).hexdigest(): label for label, content in contents.by_label.items()}
    return [(item.name[0], digests[item.sha256]) for item in run.files]
