"""What people and sync tools drop into the inbox of a soak, and what must have become of it.

The kinds of drops, the commands that run beside them, and a ledger that follows the daemon's log. Knows no figures of
processes; `soak.py` says when something is dropped.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from main_job import Site
from PIL import Image

from framepack_daemon.errors import FramepackError
from framepack_daemon.job import State
from framepack_daemon.spool import moves

# 112 pixels high: the smallest at which torch decodes the tiny model's frames in its fast way.
SMALLEST = {"prompt": "waves", "width": 64, "height": 112, "frames": 5, "num_inference_steps": 1}
PUSHED = 4  # pairs in a folder that a sync tool pushes; each push brings one that is new
MAX_WAITING = 15  # jobs; while more wait, nothing is dropped that has to be rendered
MAX_INBOX = 100  # files; while more lie there, nothing is dropped whose content has to be looked at
KEPT = 300  # ended jobs that `prune` leaves; longer than any pair is dropped again
AGAIN = 0.2  # of the turns of the desk, in which a pair is written there a second time
SYNCTHINGS = (".stfolder", ".stignore")  # what Syncthing keeps in a folder
HALF_SECONDS = 8.0  # until a lone half is completed


class SoakSite(Site):
    """The folders, with what the soak asks of them."""

    def queue_length(self) -> int:
        """Jobs that wait."""
        return len(self.queue.names(State.PENDING))

    def inbox_files(self) -> int:
        """Files that lie in the inbox and are to be taken."""
        return sum(path.suffix in (".png", ".jpg", ".json") for path in self.inbox.rglob("[a-z]*")) - 1  # a preset

    def ended(self) -> int:
        """Jobs that have ended and are still there."""
        return len(self.queue.names(State.DONE)) + len(self.queue.names(State.FAILED))

    def is_quiet(self) -> bool:
        """Whether nothing is left to do."""
        busy = self.queue.names(State.PENDING) + self.queue.names(State.PROCESSING)
        return not busy and self.inbox_files() == 0

    def leftovers(self) -> list[str]:
        """Temporary files and folders that should be gone when nothing runs."""
        folders = (self.outputs, self.queue.building, self.queue.trash)
        hidden = [path for folder in folders for path in folder.glob(".*") if path.name not in SYNCTHINGS]
        aside = list(self.queue.folder(State.FAILED).glob("*.conflict-*"))
        scratch = [path for path in (self.root / "work").iterdir() if path.is_dir()]
        return [str(path.relative_to(self.root)) for path in (*hidden, *aside, *scratch)]


@dataclass
class Ledger:
    """What was dropped, and what the daemon's log says became of it, by the stem of the drop."""

    log: Path
    kinds: dict[str, str] = field(default_factory=dict)
    again: Counter[str] = field(default_factory=Counter)  # how often each was run again
    events: dict[str, Counter[str]] = field(default_factory=dict)
    finished: deque[str] = field(default_factory=lambda: deque(maxlen=10))  # jobs that were done lately
    _read: int = 0

    def follow(self) -> None:
        """Read on in the log."""
        with self.log.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        whole = data.rfind(b"\n") + 1
        self._read += whole
        for line in data[:whole].splitlines():
            event = json.loads(line) if line.startswith(b"{") else {}
            job = event.get("job")
            if job:
                self.events.setdefault(job.rpartition("-")[0], Counter())[event["event"]] += 1
                if event["event"] == "job_done":
                    self.finished.append(job)

    def count(self, name: str) -> int:
        """How many such events there were."""
        return sum(counter[name] for counter in self.events.values())

    def violations(self) -> list[str]:
        """Drops that did not enter once and end once."""
        return [fault for stem in self.kinds if (fault := self._fault(stem))]

    def _fault(self, stem: str) -> str:
        kind, seen = self.kinds[stem], self.events.get(stem, Counter())
        runs = 1 + self.again[stem]
        if kind in ("refused", "ambiguous"):
            good = seen["job_refused"] == 1 and seen["job_submitted"] == 0
        else:
            ends = seen["job_done"] + (seen["job_cancelled"] if kind == "cancel" else 0)
            good = seen["job_submitted"] == 1 and ends == runs and seen["job_failed"] == seen["job_refused"] == 0
        return "" if good else f"{stem} ({kind}, run {runs} times): {dict(seen)}"


@dataclass
class User:
    """Drops, moves and commands, as people and their tools do them."""

    site: Site
    ledger: Ledger
    drops: int = 0
    pushes: int = 0
    problems: list[str] = field(default_factory=list)  # of the commands
    desk: Path | None = None  # a folder from which Syncthing sends
    _made: int = 0  # of stems
    _random: random.Random = field(default_factory=lambda: random.Random(1))
    _recent: deque[tuple[str, bytes]] = field(default_factory=lambda: deque(maxlen=40))
    _at_desk: list[tuple[str, bytes]] = field(default_factory=list)  # pairs there, the newest last
    _halves: deque[tuple[float, str]] = field(default_factory=deque)
    _doomed: set[str] = field(default_factory=set)  # stems to be cancelled as soon as they are jobs
    _running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.picture = self.site.root / "picture.png"
        Image.linear_gradient("L").resize((64, 112)).convert("RGB").save(self.picture)
        self.folders = {name: self.site.root / name for name in ("push", "mirror")}
        for folder in self.folders.values():
            folder.mkdir()
        (self.folders["mirror"] / "defaults.json").write_text('{"crf": 30}')
        shutil.copytree(self.folders["mirror"], self.site.inbox / "mirror")

    def drop(self, kind: str) -> int:
        """Do what one place in the round asks for; the number of drops it was."""
        if kind in self.folders:
            self._push(kind)
            self.drops += PUSHED
            return PUSHED
        self.drops += 1
        if kind == "desk" and self.desk:
            self._send(self.desk)
            return 1
        kind = self._affordable(kind)
        if kind == "repeat":
            if self._recent:
                self._put(self.site.inbox, *self._random.choice(self._recent))
        else:
            self._put_new(kind, self.site.inbox)
        return 1

    def _affordable(self, kind: str) -> str:
        """The kind of drop, or a cheaper one while there is too much to be rendered or to be looked at."""
        if kind == "desk":
            kind = "ambiguous"  # there is none
        if self.site.inbox_files() > MAX_INBOX:
            return "ambiguous"  # refused by its names alone
        if kind in ("new", "half", "cancel") and self.site.queue_length() > MAX_WAITING:
            return "refused"
        return kind

    def _send(self, desk: Path) -> None:
        """Clear the desk of old pairs that have become jobs, and write a new one or, now and then, a late one anew."""
        for stem, _ in self._at_desk[:-PUSHED]:
            if stem in self.ledger.events:
                (desk / f"{stem}.png").unlink()
                (desk / f"{stem}.json").unlink()
        self._at_desk = [pair for pair in self._at_desk if (desk / f"{pair[0]}.json").exists()]
        late = [pair for pair in self._at_desk[-PUSHED:] if pair[0] in self.ledger.events]
        if late and self._random.random() < AGAIN:
            self._put(desk, *late[-1])
        elif len(self._at_desk) <= 3 * PUSHED:
            self._put_new("new" if self.site.queue_length() <= MAX_WAITING else "refused", desk)

    def on_the_way(self) -> list[str]:
        """Pairs at the desk that have not become jobs yet."""
        return [stem for stem, _ in self._at_desk if stem not in self.ledger.events]

    def _put_new(self, kind: str, folder: Path) -> str:
        self._made += 1
        stem = f"{kind}{self._made:06}"
        self.ledger.kinds[stem] = kind
        fields = SMALLEST | {"seed": self._made}
        if kind == "refused":
            fields["colour"] = "blue"
        elif kind == "cancel":
            fields["priority"] = -1
            self._doomed.add(stem)
        sidecar = json.dumps(fields).encode()
        if kind == "ambiguous":
            shutil.copyfile(self.picture, folder / f"{stem}.jpg")
        if kind == "half":
            (folder / f"{stem}.json").write_bytes(sidecar)
            self._halves.append((time.monotonic() + HALF_SECONDS, stem))
        else:
            self._put(folder, stem, sidecar)
            if folder == self.desk:
                self._at_desk.append((stem, sidecar))
            elif kind != "ambiguous" and folder == self.site.inbox:
                self._recent.append((stem, sidecar))
        return stem

    def _put(self, folder: Path, stem: str, sidecar: bytes) -> None:
        shutil.copyfile(self.picture, folder / f"{stem}.png")
        (folder / f"{stem}.json").write_bytes(sidecar)

    def _push(self, name: str) -> None:
        """Put one more pair into a folder, take old ones out that have become jobs, and have rsync push it all."""
        if not self._ended(name):
            return
        folder = self.folders[name]
        pairs = sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
        for old in pairs[: max(len(pairs) - PUSHED + 1, 0)]:
            if old.stem in self.ledger.events:
                old.unlink()
                old.with_suffix(".json").unlink()
        if len(pairs) <= 2 * PUSHED:
            self._put_new("new" if self.site.queue_length() <= MAX_WAITING else "refused", folder)
        self.pushes += 1
        target = self.site.inbox / (name if name == "mirror" else "")
        flags = ["--delete"] if name == "mirror" else []
        self._start(name, ["rsync", "-a", *flags, f"{folder}/", f"{target}/"])

    def chores(self) -> None:
        """What a user does now and then: look at the queue, clear it up, run one job again."""
        words = [sys.executable, "-m", "framepack_daemon"]
        self._start("status", [*words, "status", "--json"])
        self._start("prune", [*words, "prune", "--keep", str(KEPT), "--videos", "--forget"])
        if self.ledger.finished:
            job = self.ledger.finished.pop()
            with suppress(FramepackError):
                if "waits to run again" in moves.retry(self.site.queue, job):
                    self.ledger.again[job.rpartition("-")[0]] += 1

    def attend(self) -> None:
        """Complete the halves whose time has come, and cancel what is to be cancelled."""
        while self._halves and time.monotonic() >= self._halves[0][0]:
            shutil.copyfile(self.picture, self.site.inbox / f"{self._halves.popleft()[1]}.png")
        for job in [*self.site.queue.names(State.PENDING), *self.site.queue.names(State.PROCESSING)]:
            stem = job.rpartition("-")[0]
            if stem in self._doomed:
                self._doomed.discard(stem)
                with suppress(FramepackError):
                    moves.cancel(self.site.queue, job)

    def _start(self, name: str, command: list[str]) -> None:
        if self._ended(name):
            output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            self._running[name] = subprocess.Popen(command, env=self.site.environment, **output)

    def _ended(self, name: str) -> bool:
        """Whether the last command of that name is over; one that failed is a problem."""
        process = self._running.get(name)
        if process is None:
            return True
        if process.poll() is None:
            return False
        del self._running[name]
        said = process.stderr.read() if process.stderr else ""
        if process.returncode:
            self.problems.append(f"{name} ended with {process.returncode}: {said.strip()[-300:]}")
        return True

    def finish(self) -> None:
        """Let the commands end and complete what is half."""
        self._halves = deque((0.0, stem) for _, stem in self._halves)
        self.attend()
        for name in list(self._running):
            self._running[name].wait()
            self._ended(name)
