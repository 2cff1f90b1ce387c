"""What the gallery costs per transition, with up to 10,000 jobs that ended and as many that wait.

    python benchmarks/gallery.py [--jobs 100 1000 10000] [--folder DIR]

Prints a Markdown table. The gallery is the daemon's own, on real status files; the thread's work is done in line, so
that it can be timed. `the loop` is what the daemon's loop and its intake wait for, `the thread` is one front page,
written once a second at most. Every hundredth transition also moves a hundred jobs to the page of their month. `at
start` is what the thread does in the background until every page is right; most of it is pauses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from framepack_daemon import gallery, gallery_page
from framepack_daemon.gallery import Gallery
from framepack_daemon.job import now
from framepack_daemon.spool import status
from framepack_daemon.spool.line import Line
from framepack_daemon.spool.troubles import Troubles

TRANSITIONS = 200
MONTH_SECONDS = 30 * 86400.0
PROMPT = "The surf rolls in, and she turns round and walks away along the beach until she is out of sight."
MILLI = 1000.0


class Measured:
    """A gallery whose thread is ours."""

    def __init__(self, outputs: Path, jobs: int) -> None:
        """Write the files of jobs that ended over the last six months."""
        self.outputs = outputs
        self.line = Line()
        for number in range(jobs):
            self.line.put_at((0, f"2026-01-01T00:00:00.{number:06}Z", f"waiting{number:06}-0123456789ab"))
        begin = time.time() - 6 * MONTH_SECONDS
        for number in range(jobs):
            self.write(f"job{number:06}-0123456789ab", begin + number * 6 * MONTH_SECONDS / jobs)
        self.gallery = Gallery(outputs)
        self._views: list[Any] = []
        # The thread is never started: what it would be given is kept.
        self.gallery._call = self._views.append  # type: ignore[method-assign]  # noqa: SLF001
        self.gallery._thread = object()  # type: ignore[assignment]  # noqa: SLF001

    def write(self, job: str, when: float) -> dict[str, Any]:
        """The files of a job that is done; what its status says."""
        finished = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(when))
        video = {"file": f"{job}.mp4", "width": 640, "height": 480, "seconds": 4.8}
        request = {"prompt": PROMPT, "seed": 7}
        body = {"job": job, "state": "done", "request": request, "finished_at": finished, "video": video}
        (self.outputs / f"{job}{status.SUFFIX}").write_text(json.dumps(body, indent=2))
        (self.outputs / f"{job}.mp4").touch()
        return body

    def look(self) -> None:
        """What the loop does."""
        self.gallery.look(self.line, [], Troubles())

    def serve(self) -> None:
        """What the thread does then."""
        self.gallery._write(self._views.pop())  # noqa: SLF001

    @property
    def is_behind(self) -> bool:
        """Whether a page is not right yet."""
        return self.gallery._older_is_due or bool(self.gallery._unknown)  # noqa: SLF001


def measure(folder: Path, jobs: int) -> dict[str, str]:
    """The figures for so many jobs."""
    outputs = folder / str(jobs)
    outputs.mkdir()
    measured = Measured(outputs, jobs)
    tracemalloc.start()
    for path in outputs.glob(f"*{status.SUFFIX}"):
        measured.gallery.hear(path.name.removesuffix(status.SUFFIX), json.loads(path.read_bytes()))
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    started, processor = time.perf_counter(), time.thread_time()
    measured.look()
    measured.serve()
    while measured.is_behind:
        measured.gallery._is_due = True  # noqa: SLF001
        measured.look()
        measured.serve()
    start, start_processor = time.perf_counter() - started, time.thread_time() - processor
    loop, thread, used = [], [], []
    for number in range(TRANSITIONS):
        job = f"new{number:06}-0123456789ab"
        body = measured.write(job, time.time() + number)
        started = time.perf_counter()
        measured.gallery.hear(job, body)
        measured.look()
        loop.append(time.perf_counter() - started)
        started, processor = time.perf_counter(), time.thread_time()
        measured.serve()
        thread.append(time.perf_counter() - started)
        used.append(time.thread_time() - processor)
    pages = sorted(outputs.glob("index-*.html"))
    return {
        "jobs ended, and waiting": f"{jobs:,}",
        "the loop, median": f"{statistics.median(loop) * MILLI:.2f} ms",
        "the thread, median": f"{statistics.median(thread) * MILLI:.1f} ms",
        "the thread, mean": f"{statistics.fmean(thread) * MILLI:.1f} ms",
        "processor, mean": f"{statistics.fmean(used) * MILLI:.1f} ms",
        "front page": f"{(outputs / gallery_page.FRONT).stat().st_size / 1024:.0f} kB",
        "pages of months": f"{len(pages)}",
        "memory": f"{memory / 1024:,.0f} kB",
        "at start": f"{start:.1f} s, processor {start_processor:.1f} s",
    }


def main() -> None:
    """Measure each number of jobs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--folder", type=Path, help="where the files are made, on the disk to be measured")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        rows = [measure(Path(folder), jobs) for jobs in asked.jobs]
    print(f"{now()[:10]}, at least {gallery.NEWEST} jobs on the front page\n")
    for name in rows[0]:
        print("| " + " | ".join([name, *(row[name] for row in rows)]) + " |")
        if name == next(iter(rows[0])):
            print("|" + " --- |" * (len(rows) + 1))


if __name__ == "__main__":
    main()
