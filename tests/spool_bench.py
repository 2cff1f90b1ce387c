"""Folders for tests of the spool: an inbox and a queue without a daemon, and what a scan makes of them."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from framepack_daemon.job import State
from framepack_daemon.spool import recovery
from framepack_daemon.spool.add import Added, Door
from framepack_daemon.spool.inbox import Inbox, Timing
from framepack_daemon.spool.keeper import Keeper
from framepack_daemon.spool.previews import Previews
from framepack_daemon.spool.publish import Publisher
from framepack_daemon.spool.queue import Queue
from framepack_daemon.spool.status import StatusWriter

SIDECAR = {"prompt": "waves", "width": 64, "height": 64, "frames": 5, "seed": 7}
AT_ONCE = Timing(settle=0.0, incomplete=0.0, partner=0.0, judge=float("inf"))


class Bench:
    """An inbox, a queue and outputs, driven by hand."""

    def __init__(self, root: Path, picture: Path, timing: Timing = AT_ONCE, queue: Path | None = None) -> None:
        self.root, self.picture = root, picture
        self.inbox, self.outputs, self.work = root / "inbox", root / "outputs", root / "work"
        for folder in (self.inbox, self.outputs, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.queue = Queue(queue or root / "queue")
        self.queue.make()
        self.writer = StatusWriter(self.queue, self.outputs)
        self.door = Door(self.queue, self.writer, "tiny")
        self.scanner = Inbox(self.inbox, self.queue, timing)
        self.previews = Previews(self.queue, self.outputs, self.work)
        self.keeper = Keeper(
            self.queue, self.door, self.writer, self.previews, self.outputs, self.work, settle_seconds=0.0
        )
        self.publisher = Publisher(self.queue, self.outputs, self.work, self.writer, self.previews)

    def recover(self, seconds: float = math.inf) -> None:
        """What a daemon does at its start."""
        recovery.recover(self.keeper, self.scanner.folders(), seconds)

    def put(self, name: str, content: bytes | dict[str, Any] | Path | None = None) -> Path:
        """A file in the inbox: a picture, a JSON object, or bytes."""
        target = self.inbox / name
        target.parent.mkdir(exist_ok=True)
        if content is None or isinstance(content, Path):
            shutil.copyfile(content or self.picture, target)
        else:
            target.write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
        return target

    def drop(self, stem: str = "beach", **fields: Any) -> None:
        """A pair in the inbox."""
        self.put(f"{stem}.png")
        self.put(f"{stem}.json", SIDECAR | fields)

    def take(self) -> list[Added]:
        """Scan once and enter what is ready."""
        return [self.door.add(drop) for drop in self.scanner.scan().drops]

    def take_one(self) -> str:
        """Scan once; the one new job."""
        (added,) = self.take()
        (job,) = added.jobs
        return job

    def take_after(self, seconds: float) -> list[Added]:
        """Scan until something is ready, at most so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            added = self.take()
            if added:
                return added
            time.sleep(0.01)
        return []

    def left(self) -> list[str]:
        """Names of what still lies in the inbox."""
        return sorted(str(path.relative_to(self.inbox)) for path in self.inbox.rglob("*") if path.is_file())

    def jobs(self, state: State) -> list[str]:
        """Ids in a state, sorted."""
        return sorted(self.queue.names(state))

    def status(self, job: str) -> dict[str, Any]:
        """The job's status file."""
        return json.loads((self.outputs / f"{job}.status.json").read_text())

    def files(self, state: State, job: str) -> set[str]:
        """Names in a job's directory."""
        return {path.name for path in self.queue.path(state, job).iterdir()}
