"""Other queues on the same disk: huey's FileHuey, dirq, persist-queue, kombu's file system, and one JSON file.

    python benchmarks/spool_peers.py NAME FOLDER WAITING COUNT

Fills a queue with so many that wait, then times so many puts, and takes with whatever acknowledges them. Each is used
as its documentation shows. A message is what a drop of the benchmark is: a sidecar and a small picture.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

from spool_ours import mark
from spool_tree import SIDECAR, Tree

BUDGET_SECONDS = 3.0  # of one kind of call


class Peer(Protocol):
    """What is measured."""

    def put(self, message: str) -> None:
        """Enter one message, as durably as this queue does it."""

    def take(self) -> None:
        """Take one out for good."""


class Huey:
    """huey with files; a task that is taken is gone."""

    def __init__(self, folder: Path) -> None:
        from huey.storage import FileStorage  # noqa: PLC0415  only where it is measured

        self._storage = FileStorage("jobs", str(folder))

    def put(self, message: str) -> None:
        """Enqueue."""
        self._storage.enqueue(message.encode())

    def take(self) -> None:
        """Dequeue, which removes."""
        assert self._storage.dequeue()


class Dirq:
    """dirq; an element is locked, read and removed."""

    def __init__(self, folder: Path) -> None:
        from dirq.QueueSimple import QueueSimple  # noqa: PLC0415

        self._queue = QueueSimple(str(folder))
        self._name = ""

    def put(self, message: str) -> None:
        """Add."""
        self._queue.add(message)

    def take(self) -> None:
        """Lock, get, remove."""
        self._name = self._queue.next() if self._name else self._queue.first()
        assert self._queue.lock(self._name)
        assert self._queue.get(self._name)
        self._queue.remove(self._name)


class PersistFile:
    """persist-queue in files; what is taken is written down by task_done."""

    def __init__(self, folder: Path) -> None:
        import persistqueue  # noqa: PLC0415

        self._queue = persistqueue.Queue(str(folder / "queue"), tempdir=str(folder))

    def put(self, message: str) -> None:
        """Put."""
        self._queue.put(message)

    def take(self) -> None:
        """Get and task_done."""
        assert self._queue.get(block=False)
        self._queue.task_done()


class PersistSqlite:
    """persist-queue in SQLite, with acknowledgement."""

    def __init__(self, folder: Path) -> None:
        import persistqueue  # noqa: PLC0415

        self._queue = persistqueue.SQLiteAckQueue(str(folder / "queue"))

    @contextmanager
    def filling(self) -> Any:
        """Fill without syncs."""
        self._queue._putter.execute("PRAGMA synchronous=OFF")  # noqa: SLF001  set-up is not what is measured
        yield
        self._queue._putter.execute("PRAGMA synchronous=FULL")  # noqa: SLF001  SQLite's own default

    def put(self, message: str) -> None:
        """Put."""
        self._queue.put(message)

    def take(self) -> None:
        """Get and ack."""
        self._queue.ack(self._queue.get(block=False))


class Kombu:
    """kombu's file system transport; acknowledging is in memory only."""

    def __init__(self, folder: Path) -> None:
        from kombu import Connection  # noqa: PLC0415

        for name in ("data", "control"):
            (folder / name).mkdir()
        places = {"data_folder_in": str(folder / "data"), "data_folder_out": str(folder / "data")}
        places["control_folder"] = str(folder / "control")
        self._connection = Connection("filesystem://", transport_options=places)
        self._queue = self._connection.SimpleQueue("jobs")

    def put(self, message: str) -> None:
        """Put."""
        self._queue.put(message)

    def take(self) -> None:
        """Get and ack."""
        self._queue.get(block=True, timeout=30).ack()


class JsonFile:
    """A queue kept as one JSON file that is rewritten at each change, kept in memory in between."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._path = folder / "queue.json"
        self._folder = folder
        self._durable = durable
        self.jobs: list[dict[str, Any]] = []

    @contextmanager
    def filling(self) -> Any:
        """Write once for all."""
        with mock.patch.object(self, "_save"):
            yield
        self._save()

    def put(self, message: str) -> None:
        """Append and rewrite."""
        self.jobs.append({"state": "pending", "message": message})
        self._save()

    def take(self) -> None:
        """Mark the first that waits as running and rewrite; remove it and rewrite."""
        job = next(job for job in self.jobs if job["state"] == "pending")
        job["state"] = "processing"
        self._save()
        self.jobs.remove(job)
        self._save()

    def _save(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w") as stream:
            stream.write(json.dumps(self.jobs))
            if self._durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(self._path)
        if self._durable:
            descriptor = os.open(self._folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


PEERS: dict[str, Callable[[Path], Peer]] = {
    "huey FileHuey": Huey,
    "dirq": Dirq,
    "persist-queue, file": PersistFile,
    "persist-queue, SQLite": PersistSqlite,
    "kombu, file system": Kombu,
    "one JSON file": lambda folder: JsonFile(folder, durable=False),
    "one JSON file, fsync": lambda folder: JsonFile(folder, durable=True),
}


def seconds_each(name: str, action: Callable[[], None], count: int) -> float:
    """Seconds of one call: the mean of so many, or of fewer when they take long."""
    done, started = 0, time.perf_counter()
    while done < count and time.perf_counter() - started < BUDGET_SECONDS:
        mark(name)
        action()
        mark("end")
        done += 1
    return (time.perf_counter() - started) / done


def main() -> None:
    """Measure one peer."""
    name, text, waiting, count = sys.argv[1:]
    folder = Path(text)
    tree = Tree(folder / "tree")
    tree.make()
    picture = base64.b64encode(tree.picture.read_bytes()).decode()
    shutil.rmtree(tree.root)
    message = json.dumps(SIDECAR | {"picture": picture})
    peer = PEERS[name](folder)
    with mock.patch.object(os, "fsync"), getattr(peer, "filling", mock.MagicMock())():
        for _ in range(int(waiting)):
            peer.put(message)
    peer.put(message)
    peer.take()  # what a first call has to read is the business of a restart
    put = seconds_each("take", lambda: peer.put(message), int(count))
    taken = seconds_each("claim", peer.take, int(count))
    print(json.dumps({"take": put, "job": taken}))


if __name__ == "__main__":
    main()
