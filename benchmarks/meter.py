"""Figures of a running daemon and its worker, second by second: sampled, kept as CSV, fitted and plotted.

Knows processes and lines, not what the daemon does.
"""

from __future__ import annotations

import csv
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

BYTES_PER_MEBIBYTE = 1 << 20
BLOCK = 10  # samples; among them is one between two jobs, which shows what is held for good
FIGURES = ("rss", "files", "threads", "children")
TITLES = {"rss": "memory (RSS), MiB", "files": "open files", "threads": "threads", "children": "child processes"}


def measure(process: psutil.Process) -> dict[str, float]:
    """What one process holds at this moment; empty when it is gone."""
    with suppress(psutil.NoSuchProcess), process.oneshot():
        return {
            "rss": process.memory_info().rss / BYTES_PER_MEBIBYTE,
            "files": process.num_fds(),
            "threads": process.num_threads(),
            "children": len(process.children()),
        }
    return {}


def worker_of(daemon: psutil.Process) -> psutil.Process | None:
    """The child that renders, among those that live for a moment only."""
    for child in daemon.children():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "framepack_daemon.workers.child" in child.cmdline():
                return child
    return None


@dataclass
class Meter:
    """Samples one daemon into a CSV file, of which each line is written at once."""

    daemon: psutil.Process
    file: Path
    rows: list[dict[str, float]] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)  # process ids, in their order
    _started: float = field(default_factory=time.monotonic)

    def sample(self, **more: float) -> None:
        """Take one sample; `more` goes into the same line."""
        row = {"seconds": round(time.monotonic() - self._started, 2), **self.look(), **more}
        with self.file.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            if not self.rows:
                writer.writeheader()
            writer.writerow({name: round(value, 2) for name, value in row.items()})
        self.rows.append(row)

    def look(self) -> dict[str, float]:
        """The figures of daemon and worker, zeros for one that is not there."""
        worker = worker_of(self.daemon)
        if worker is not None and worker.pid not in self.workers:
            self.workers.append(worker.pid)
        row = dict.fromkeys((f"{who}_{figure}" for who in ("daemon", "worker") for figure in FIGURES), 0.0)
        row |= {f"daemon_{name}": value for name, value in measure(self.daemon).items()}
        return row | {f"worker_{name}": value for name, value in (measure(worker) if worker else {}).items()}

    def at_rest(self, samples: int = 5) -> dict[str, float]:
        """The smallest of a few looks at processes that have nothing to do."""
        looks = []
        for _ in range(samples):
            looks.append(self.look())
            time.sleep(0.2)
        return {name: min(look[name] for look in looks) for name in looks[0]}


def growth(rows: list[dict[str, float]], name: str) -> float:
    """By how much a figure grows over the second half of the rows: a straight line through the lowest of every ten."""
    half = rows[len(rows) // 2 :]
    parts = [half[start : start + BLOCK] for start in range(0, len(half), BLOCK)]
    if len(parts) <= 1:
        return 0.0
    times = [part[0]["seconds"] for part in parts]
    slope = statistics.linear_regression(times, [min(row[name] for row in part) for part in parts]).slope
    return slope * (half[-1]["seconds"] - half[0]["seconds"])


def rise(rows: list[dict[str, float]], name: str) -> float:
    """How much higher the lowest figure of the last quarter of the rows is than that of the first."""
    part = max(len(rows) // 4, 1)
    return min(row[name] for row in rows[-part:]) - min(row[name] for row in rows[:part])


def load(file: Path) -> list[dict[str, float]]:
    """The samples of an earlier run."""
    with file.open(newline="") as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


def plot(rows: list[dict[str, float]], file: Path, title: str) -> None:
    """Draw every figure over time."""
    import matplotlib as mpl  # noqa: PLC0415  needed for the picture alone

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    minutes = [row["seconds"] / 60 for row in rows]
    figure, axes = plt.subplots(len(FIGURES) + 1, 1, figsize=(9, 11), sharex=True, layout="constrained")
    for axis, name in zip(axes, FIGURES, strict=False):
        _draw(axis, minutes, rows, {"daemon": f"daemon_{name}", "worker": f"worker_{name}"}, TITLES[name])
    _draw(axes[-1], minutes, rows, {"jobs that wait": "waiting", "files in the inbox": "inbox"}, "queue")
    axes[-1].set_xlabel("minutes")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw(axis: Any, minutes: list[float], rows: list[dict[str, float]], lines: dict[str, str], label: str) -> None:
    for number, (legend, name) in enumerate(lines.items()):
        axis.plot(minutes, [row[name] for row in rows], label=legend, linewidth=0.9, color=("C0", "C1")[number])
    axis.set_ylabel(label)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(loc="center right", fontsize="small")
