"""What others put into a drop folder with programs of their own, and whether each of it became one job.

A `Stock` makes pairs, every file with bytes that no other has, and remembers what it ever offered; a writer's program
brings the stock's folder to the inbox. `delivered` waits until the inbox is empty, then compares the queue with the
stock: each pair is one job, of exactly those bytes. Knows no writer.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from crash import THOROUGH
from lab import PATIENCE_SECONDS, Lab
from PIL import Image

from framepack_daemon.job import Role, State
from framepack_daemon.spool import names

PAIRS = 200 if THOROUGH else 10  # of each writer
FEW = 200 if THOROUGH else 4  # of a writer that has several ways
LARGE = 8 if THOROUGH else 2  # of them, with a picture of 20 MB
LONG = pytest.mark.timeout(1800 if THOROUGH else 300)  # seconds that one test may take
LARGE_SIDE = 2600  # pixels: 2600 * 2600 * 3 bytes, not compressed, are 20 MB
LOOK_SECONDS = 0.3  # between two looks at what costs much
SETTLE_SECONDS = 1.0  # longer than any of these programs takes between the two files of a small pair
CHEAP = {"prompt": "waves", "width": 64, "height": 64, "frames": 5, "num_inference_steps": 1}
_TEXT_AT = 33  # in a PNG: behind its signature and its first chunk

Content = tuple[str, str]  # SHA-256 of a picture and of its sidecar


class Stock:
    """A folder of pairs that a writer is to bring, and every content that it ever held."""

    def __init__(self, folder: Path, prefix: str, pairs: int = PAIRS, large: int = LARGE, side: int = 64) -> None:
        self.folder = folder
        self.offered: dict[str, list[Content]] = {}  # by stem, the newest last
        self._edition = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.stems = [f"{prefix}{number:03}" for number in range(pairs)]
        step = max(pairs // max(large, 1), 1)
        self.large = set(self.stems[::step][:large])
        self._small, self._noise = _png(side), _png(LARGE_SIDE) if large else b""
        self.renew(self.stems)

    def renew(self, stems: Iterable[str]) -> list[str]:
        """Give these pairs other contents, at once as an editor does; their stems."""
        self._edition += 1
        stems = list(stems)
        for stem in stems:
            picture = _marked(self._noise if stem in self.large else self._small, f"{stem} {self._edition}")
            sidecar = json.dumps(CHEAP | {"seed": self._edition, "negative_prompt": stem}).encode()
            for name, data in ((f"{stem}.png", picture), (f"{stem}.json", sidecar)):
                hidden = self.folder / f".{name}"
                hidden.write_bytes(data)
                hidden.replace(self.folder / name)
            content = sha256(picture).hexdigest(), sha256(sidecar).hexdigest()
            self.offered.setdefault(stem, []).append(content)
        return stems

    def files(self, stems: Iterable[str] | None = None) -> list[Path]:
        """The files of these pairs, of all unless they are given."""
        return [self.folder / f"{stem}.{end}" for stem in stems or self.stems for end in ("json", "png")]

    def as_sent(self) -> dict[str, str]:
        """SHA-256 of every file in the folder by its name."""
        return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(self.folder.iterdir())}


@contextmanager
def at_work(lab: Lab, **settings: object) -> Iterator[Lab]:
    """A daemon that renders one job after the other, on one of the processor's cores; the first has ended."""
    lab.start(**{"threads": 1, "settle_seconds": SETTLE_SECONDS} | settings)
    try:
        lab.drop("first")
        lab.ended("first")
        yield lab
    finally:
        assert lab.process is not None
        if lab.process.poll() is None:
            lab.process.kill()
            lab.process.wait()


def delivered(lab: Lab, *stocks: Stock, cancelled: Iterable[str] = ()) -> None:
    """Wait until everything was taken, and see that each pair is one job: whole, unmixed and of the bytes sent.

    A pair that was overwritten may be a job in its earlier contents too, once each.
    """
    for stock in stocks:
        taken(lab, stock)
    dwindles(lab, lambda: len(waiting_in(lab.inbox)), "files in the inbox")
    lab.until(lambda: not list(lab.queue.building.iterdir()), "an empty workshop")
    with standing_still(lab):
        for stock in stocks:
            found = recorded(lab, stock)
            assert [content for content, count in found.items() if count > 1] == []
            assert found.keys() <= {content for contents in stock.offered.values() for content in contents}
            assert all_as_recorded(lab, jobs_of(lab, stock))
            assert all((lab.outputs / f"{job}.status.json").exists() for job in jobs_of(lab, stock))
        assert [job for state in State for job in lab.queue.names(state) if "restored" in job] == []
        assert lab.jobs(State.FAILED) == sorted(cancelled)
        assert lab.events("job_refused") == []
        assert lab.events("intake_failed") == []
        assert waiting_in(lab.inbox) == []


def taken(lab: Lab, stock: Stock) -> None:
    """Wait until there is a job of each pair as it is now."""
    newest = {contents[-1] for contents in stock.offered.values()}
    dwindles(lab, lambda: len(stock.stems) - len(jobs_of(lab, stock)), "pairs without a job")
    dwindles(lab, lambda: len(newest - recorded(lab, stock).keys()), "pairs whose newest contents are no job")


def dwindles(lab: Lab, count: Callable[[], int], what: str) -> None:
    """Wait until nothing is left of something; patience begins anew whenever it has become less."""

    def less() -> list[int]:
        time.sleep(LOOK_SECONDS)
        now = count()
        return [now] if now <= 0 or now < left else []

    left = count()
    while left > 0:
        (left,) = lab.until(less, f"fewer than {left} {what}")


def jobs_of(lab: Lab, stock: Stock) -> list[str]:
    """Ids of the jobs of a stock's pairs, in whatever state, each once: one that moves on meanwhile is met twice."""
    stems = set(stock.stems)
    found = (job for state in State for job in lab.queue.names(state))
    return list(dict.fromkeys(job for job in found if job.rpartition("-")[0] in stems))


def recorded(lab: Lab, stock: Stock) -> Counter[Content]:
    """How many jobs of a stock's pairs there are of each content, by their records."""
    found: Counter[Content] = Counter()
    for job in jobs_of(lab, stock):
        runs = (lab.queue.run(state, job) for state in State)
        run = next((run for run in runs if run is not None), None)
        if run is not None:  # else it has just moved on
            picture, sidecar = run.file(Role.IMAGE), run.file(Role.SIDECAR)
            found[picture.sha256 if picture else "", sidecar.sha256 if sidecar else ""] += 1
    return found


def all_as_recorded(lab: Lab, jobs: Iterable[str]) -> bool:
    """Whether the files of these jobs hold the bytes that their records say."""
    wanted = set(jobs)
    return all(
        sha256((lab.queue.path(state, job) / item.name).read_bytes()).hexdigest() == item.sha256
        for state in State
        for job in wanted & set(lab.queue.names(state))
        for item in lab.queue.run(state, job).files
    )


def waiting_in(inbox: Path) -> list[str]:
    """What lies in the drop folder that could be part of a drop."""
    return sorted(path.name for path in inbox.iterdir() if names.read(path.name) is not None)


@contextmanager
def standing_still(lab: Lab) -> Iterator[None]:
    """Have no job change its state meanwhile: what runs ends first. Jobs are started again afterwards."""
    lab.queue.pause_file.touch()
    try:
        lab.until(lambda: not lab.queue.names(State.PROCESSING), "what runs to end")
        yield
    finally:
        lab.queue.pause_file.unlink()


def call(*words: object, good: Container[int] = (0,), **options: object) -> str:
    """Run a program to its end, which is one of the good ones; what it printed."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )
    assert done.returncode in good, (
        f"{words[0]} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
    return done.stdout


def _png(side: int) -> bytes:
    """A square of noise, not compressed where it is large."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def _marked(png: bytes, text: str) -> bytes:
    """The same picture with a comment, and so another file."""
    data = b"tEXtComment\0" + text.encode("latin-1")
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return png[:_TEXT_AT] + chunk + png[_TEXT_AT:]
