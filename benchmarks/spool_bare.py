"""The limit: exactly the renames, writes and syncs that each step of a job needs to survive a power loss, and no more.

In folders of its own on the same disk, which the daemon does not look at. Reads nothing, checks nothing, is no queue.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from spool_tree import Tree

RECORD = b"x" * 900  # about what run.json and job.json take

NEEDED = {
    "take": "make a folder, move both files into it, sync them, write and sync two records, sync the folder, "
    "rename it into pending/, sync pending/ and the inbox",
    "claim": "rename into processing/, sync both parents, replace one record: write, sync, rename, sync its folder",
    "finish": "replace one record; write and sync video, poster and status, rename them, sync outputs/ once; rename "
    "into done/, sync both parents",
}


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o664)
    os.write(descriptor, data)
    os.fsync(descriptor)
    os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class Bare:
    """The bare steps for so many jobs."""

    def __init__(self, tree: Tree, count: int) -> None:
        self._inbox = tree.loose / "inbox"
        self._building, self._pending, self._processing, self._done, self._outputs = (
            tree.loose / name for name in ("building", "pending", "processing", "done", "outputs")
        )
        shutil.rmtree(tree.loose)
        for folder in (self._inbox, self._building, self._pending, self._processing, self._done, self._outputs):
            folder.mkdir(parents=True)
        self._fresh = iter(range(count))
        self._jobs = iter(range(count))
        for number in range(count):
            place = self._pending / f"job{number}"
            place.mkdir()
            for path in (self._inbox / f"drop{number}", place / "drop"):
                path.with_suffix(".png").write_bytes(tree.picture.read_bytes())
                path.with_suffix(".json").write_bytes(RECORD[:150])

    def take(self) -> None:
        """What a drop needs."""
        name = f"drop{next(self._fresh)}"
        place = self._building / name
        place.mkdir()
        for suffix in (".png", ".json"):
            (self._inbox / f"{name}{suffix}").rename(place / f"{name}{suffix}")
            _sync(place / f"{name}{suffix}")
        for record in ("job.json", "run.json"):
            _write(place / record, RECORD)
        _sync(place)
        place.rename(self._pending / name)
        _sync(self._pending)
        _sync(self._inbox)

    def claim(self) -> str:
        """What a claim needs; the job."""
        job = f"job{next(self._jobs)}"
        (self._pending / job).rename(self._processing / job)
        _sync(self._pending)
        _sync(self._processing)
        self._record(self._processing / job, "run.json")
        return job

    def finish(self, job: str, video: bytes, poster: bytes) -> None:
        """What the end of a job needs."""
        self._record(self._processing / job, "outcome.json")
        for name, data in ((f"{job}.mp4", video), (f"{job}.jpg", poster), (f"{job}.json", RECORD + RECORD)):
            _write(self._outputs / f".{name}", data)
            (self._outputs / f".{name}").rename(self._outputs / name)
        _sync(self._outputs)
        (self._processing / job).rename(self._done / job)
        _sync(self._processing)
        _sync(self._done)

    def _record(self, folder: Path, name: str) -> None:
        _write(folder / f".{name}", RECORD)
        (folder / f".{name}").rename(folder / name)
        _sync(folder)
