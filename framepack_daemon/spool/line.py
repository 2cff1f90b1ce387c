"""The line of pending jobs: who is next, by priority and then by how long each has waited.

A heap of what the jobs' records said: to find the next one costs the same among ten as among a hundred thousand. It is
a hint: whoever takes a job reads its record again. Knows nothing of states or workers.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from framepack_daemon import atomic
from framepack_daemon.job import RUN_FILE, Run

MAX_LOOKS = 1000  # at jobs that do not suit, in one search; each may read a file
SLACK = 1000  # entries of jobs that left, above which the heap is made anew

Place = tuple[int, str, str]  # sorts as the jobs run: priority (negative), since when it waits, id
_BATCH = 500  # records read by one thread at a time
_READERS = 4  # threads: what is not in memory yet is read from the disk side by side; more of them only jostle


class Line:
    """The pending jobs of one queue in their order."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        self._heap: list[Place] = []  # every place, and some that are no longer true
        self._parked: dict[str, float] = {}  # jobs that are passed over until then (monotonic)
        self._release_at = math.inf

    def __contains__(self, job: str) -> bool:
        return job in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def oldest(self) -> str | None:
        """Since when the job has waited that has waited longest."""
        return min((queued_at for _, queued_at, _ in self._places.values()), default=None)

    def everyone(self) -> list[Place]:
        """The places of all jobs, in no order."""
        return list(self._places.values())

    def put(self, run: Run) -> bool:
        """Give the job the place that its record says; whether that is a new one."""
        return self.put_at((-run.priority, run.queued_at, run.job))

    def put_at(self, place: Place) -> bool:
        """Give the job that place; whether it is a new one."""
        job = place[-1]
        if self._places.get(job) == place:
            return False
        self._places[job] = place
        self._parked.pop(job, None)
        heapq.heappush(self._heap, place)
        if len(self._heap) > 2 * len(self._places) + SLACK:
            self._heap = sorted(self._places[job] for job in self._places.keys() - self._parked.keys())
        return True

    def discard(self, job: str) -> None:
        """Take the job out, if it is there."""
        self._places.pop(job, None)
        self._parked.pop(job, None)

    def park(self, job: str, until: float) -> None:
        """Pass the job over until that time (monotonic)."""
        self._parked[job] = until
        self._release_at = min(self._release_at, until)

    def first(self, suits: Callable[[str], bool] = lambda _: True) -> str | None:
        """The first job that suits; it stays in the line. None also when `MAX_LOOKS` did not suit."""
        self._release()
        passed: list[Place] = []
        try:
            while self._heap and len(passed) < MAX_LOOKS:
                place = heapq.heappop(self._heap)
                job = place[-1]
                if self._places.get(job) != place or job in self._parked or passed[-1:] == [place]:
                    continue
                passed.append(place)
                if suits(job) and self._places.get(job) == place:
                    return job
            return None
        finally:
            for place in passed:
                heapq.heappush(self._heap, place)

    def _release(self) -> None:
        """Bring back who was parked for long enough."""
        now = time.monotonic()
        if now < self._release_at:
            return
        for job in [job for job, until in self._parked.items() if now >= until]:
            del self._parked[job]
            if job in self._places:
                heapq.heappush(self._heap, self._places[job])
        self._release_at = min(self._parked.values(), default=math.inf)


def places(folder: Path, jobs: list[str]) -> Iterator[Place]:
    """The places of those jobs in `folder` whose records can be read, in no order; made for a hundred thousand."""
    batches = [jobs[start : start + _BATCH] for start in range(0, len(jobs), _BATCH)]
    with ThreadPoolExecutor(_READERS) as readers:
        for found in readers.map(lambda batch: [_place(folder, job) for job in batch], batches):
            yield from (place for place in found if place is not None)


def _place(folder: Path, job: str) -> Place | None:
    try:
        record = atomic.read_json(folder / job / RUN_FILE) or {}
    except PermissionError:
        return None
    priority, attempts, queued_at = (record.get(name) for name in ("priority", "attempts", "queued_at"))
    if isinstance(priority, int) and isinstance(attempts, int) and isinstance(queued_at, str):
        return (-priority, queued_at, job) if record.get("job") == job else None
    return None
