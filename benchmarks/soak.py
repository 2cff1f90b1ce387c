"""A soak of the real daemon: five drops a second for as long as asked, and whether anything grows or is lost.

    python benchmarks/soak.py --minutes 60 [--syncthing] [--folder DIR] [--plot docs/soak.png]
    python benchmarks/soak.py --redraw docs/soak.csv [--plot docs/soak.png]

Needs rsync, psutil, with `--syncthing` Syncthing and, for the picture, matplotlib (`pip install psutil matplotlib`);
without matplotlib the samples are kept beside the picture as CSV, and `--redraw` makes it later. The drops are what
people and sync tools do: pairs to be rendered with the smallest real request, pairs that were dropped before, refused
ones, halves that are completed later, jobs that are cancelled or run again, a folder that rsync pushes again and again,
a mirror with `--delete`, a desk that Syncthing connects with inbox and outputs; and `status` and `prune` are run. Two
cores render about two such videos a second, so most drops are of the kinds that render nothing; a further pair to be
rendered becomes a refused one while many wait. Ctrl-C ends the drops early, and the summary still comes; the exit code
is 1 when something was lost or grew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import util
from pathlib import Path

import psutil
from meter import FIGURES, Meter, growth, load, plot, rise
from soak_desk import Desk
from soak_drops import Ledger, SoakSite, User

DROPS_PER_SECOND = 5
# One round of drops. Of 20 drops four are to be rendered: one a second.
ROUND = ("new", "repeat", "refused", "push", "cancel", "ambiguous", "half", "repeat", "ambiguous", "mirror", "cancel")
ROUND += ("refused", "repeat", "desk")
CHORE_SECONDS = 20.0  # between two runs of the commands, and between two jobs that are run again
DRAIN_SECONDS = 300.0
WARM_UP = ("new", "refused", "ambiguous", "push", "mirror", "desk", "half", "new", "cancel", "new")  # over and over
WARM_UPS = 6  # at most
SETTLED = 4.0  # MiB that a worker's memory may still have grown by when it counts as warm
# Bounds. Memory, in MiB: growth over the second half, which between a few renders of a worker is no more than a guess;
# for the daemon from rest to rest, for the worker from the lowest of the first quarter to the lowest of the last, since
# at rest it holds sometimes 25 MiB more. Python's table of names is made anew every few minutes (1.8 MiB), and the C
# library keeps some old ones: several of these are no leak. The others: how many more than at rest, at any moment.
GROWTH = {"daemon_rss": 6.0, "worker_rss": 64.0}
REST_GROWTH = {"daemon_rss": 16.0}
RISE = {"worker_rss": 24.0}
SPREAD = {"daemon_files": 16, "daemon_threads": 2, "daemon_children": 2}
SPREAD |= {"worker_files": 8, "worker_threads": 16, "worker_children": 0}


class Soak:
    """One run."""

    def __init__(self, site: SoakSite, pid: int, numbers: Path, desk: Desk | None) -> None:
        self.site = site
        self.ledger = Ledger(site.root / "daemon.log")
        self.desk = desk
        self.user = User(site, self.ledger, desk=desk.inbox if desk else None)
        numbers.unlink(missing_ok=True)
        self.meter = Meter(psutil.Process(pid), numbers)
        self.stopped = False

    def stop(self, *_: object) -> None:
        """End the drops; the second time, at once."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def run(self, seconds: float) -> dict[str, object]:
        """Warm up, drop, drain; the summary."""
        self._warm_up()
        before = self.meter.at_rest()
        started = time.monotonic()
        warm_up = self.user.drops
        self._drop_until(started + seconds)
        took = time.monotonic() - started
        dropped = self.user.drops - warm_up
        drained = self._drain()
        after = self.meter.at_rest()
        return self._summary(took, dropped, before, after, drained=drained)

    def _warm_up(self) -> None:
        """Have some of everything done, until the worker needs no more memory than it did."""
        most = 0.0
        for _ in range(WARM_UPS):
            for kind in WARM_UP:
                self.user.drop(kind)
            self.user.chores()
            self._drain(quiet=1.0)
            now = self.meter.at_rest()["worker_rss"]
            if now <= most + SETTLED:
                return
            most = max(most, now)

    def _drop_until(self, end: float) -> None:
        due = {"drop": time.monotonic(), "sample": 0.0, "chores": time.monotonic() + CHORE_SECONDS, "say": 0.0}
        place = 0
        while not self.stopped and time.monotonic() < end:
            now = time.monotonic()
            if now >= due["drop"]:
                due["drop"] += self.user.drop(ROUND[place % len(ROUND)]) / DROPS_PER_SECOND
                place += 1
            if now >= due["sample"]:
                due["sample"] = now + 1.0
                self.user.attend()
                self.ledger.follow()
                if self.desk:
                    self.desk.look()
                queue = {"waiting": self.site.queue_length(), "inbox": self.site.inbox_files()}
                self.meter.sample(**queue, ended=self.site.ended())
            if now >= due["chores"]:
                due["chores"] = now + CHORE_SECONDS
                self.user.chores()
            if now >= due["say"]:
                due["say"] = now + 60.0
                self._say(end - now)
            time.sleep(max(min(due.values()) - time.monotonic(), 0.01))

    def _say(self, left: float) -> None:
        row = self.meter.rows[-1]
        figures = [
            f"{who} " + "/".join(f"{row[f'{who}_{name}']:.0f}" for name in FIGURES) for who in ("daemon", "worker")
        ]
        events = {name: self.ledger.count(f"job_{name}") for name in ("done", "refused", "known", "cancelled")}
        print(
            f"{left / 60:.0f} min to go: {self.user.drops} drops, {self.user.pushes} pushes, {events}, "
            f"{row['waiting']:.0f} wait; MiB/files/threads/children: {', '.join(figures)}",
            flush=True,
        )

    def _drain(self, quiet: float = 3.0) -> bool:
        """Wait until nothing is left to do; whether that came about."""
        self.user.finish()
        end = time.monotonic() + DRAIN_SECONDS
        quiet_since = time.monotonic()
        while time.monotonic() < end:
            self.user.attend()
            self.ledger.follow()
            if self.user.on_the_way() or not self.site.is_quiet():
                quiet_since = time.monotonic()
            elif time.monotonic() > quiet_since + quiet:
                return True
            time.sleep(0.1)
        return False

    def _summary(
        self, took: float, dropped: int, before: dict[str, float], after: dict[str, float], *, drained: bool
    ) -> dict[str, object]:
        rows = self.meter.rows
        faults = [f"lost or doubled: {fault}" for fault in self.ledger.violations()]
        faults += [f"left over: {name}" for name in self.site.leftovers()]
        faults += self.user.problems
        faults += self.desk.faults() if self.desk else []
        if not drained:
            faults.append(f"not at rest after {DRAIN_SECONDS:.0f} s")
        if len(self.meter.workers) != 1:
            faults.append(f"workers: {self.meter.workers}")
        faults += leaks(rows, before, after)
        names = ("submitted", "done", "refused", "known", "cancelled", "retried")
        return {
            "minutes": round(took / 60, 2),
            "drops": dropped,
            "drops_per_second": round(dropped / took, 2),
            "pushes": self.user.pushes,
            "videos_at_the_desk": len(self.desk.videos) if self.desk else None,
            "jobs": {name: self.ledger.count(f"job_{name}") for name in names},
            "at_rest_before": {name: round(value, 2) for name, value in before.items()},
            "at_rest_after": {name: round(value, 2) for name, value in after.items()},
            "most": {name: max(row[name] for row in rows) for name in SPREAD},
            "growth_mebibytes_second_half": {name: round(growth(rows, name), 2) for name in GROWTH},
            "rise_mebibytes": {name: round(rise(rows, name), 2) for name in RISE},
            "faults": faults,
        }


def leaks(rows: list[dict[str, float]], before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Which figures grew: over the samples, or from the rest before them to the rest after them."""
    faults = []
    for name, bound in GROWTH.items():
        if (grown := growth(rows, name)) > bound:
            faults.append(f"{name} grows by {grown:.1f} MiB")
    for name, bound in REST_GROWTH.items():
        if after[name] > before[name] + bound:
            faults.append(f"{name} at rest: {before[name]:.0f} MiB before, {after[name]:.0f} after")
    for name, bound in RISE.items():
        if (risen := rise(rows, name)) > bound:
            faults.append(f"{name} rises by {risen:.1f} MiB")
    for name, spread in SPREAD.items():
        if after[name] != before[name]:
            faults.append(f"{name} at rest: {before[name]:.0f} before, {after[name]:.0f} after")
        if (most := max(row[name] for row in rows)) > before[name] + spread:
            faults.append(f"{name}: up to {most:.0f}, {before[name]:.0f} at rest")
    return faults


def main() -> int:
    """Run the soak, or draw an earlier one; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--syncthing", action="store_true", help="connect a desk by it, and write some drops there")
    parser.add_argument("--folder", type=Path, help="where the folders of the run are made, on a real disk")
    parser.add_argument("--plot", type=Path, default=Path("docs/soak.png"), help="the samples go beside it")
    parser.add_argument("--redraw", type=Path, metavar="CSV")
    options = parser.parse_args()
    if options.redraw:
        rows = load(options.redraw)
        plot(rows, options.plot, _title(rows))
        return 0
    for program in ("rsync", *(["syncthing"] if options.syncthing else [])):
        if shutil.which(program) is None:
            parser.error(f"{program} is not installed")
    for folder in (options.plot.parent, *([options.folder] if options.folder else [])):
        folder.mkdir(parents=True, exist_ok=True)
    numbers = options.plot.with_suffix(".csv").absolute()
    with tempfile.TemporaryDirectory(prefix="framepack-soak-", dir=options.folder) as folder:
        summary = _soak(Path(folder), numbers, options.minutes * 60, syncthing=options.syncthing)
    text = json.dumps(summary, indent=2)
    print(text, flush=True)
    options.plot.with_suffix(".json").write_text(f"{text}\n")
    if util.find_spec("matplotlib") is None:
        print(f"no matplotlib: `pip install matplotlib`, then --redraw {numbers}")
    else:
        plot(load(numbers), options.plot, _title(load(numbers)))
    return 1 if summary["faults"] else 0


def _soak(root: Path, numbers: Path, seconds: float, *, syncthing: bool) -> dict[str, object]:
    subprocess.run([sys.executable, "-m", "framepack_daemon.engine.tiny", str(root / "models" / "tiny")], check=True)
    site = SoakSite(root / "site", root / "models")
    site.environment["OMP_WAIT_POLICY"] = "passive"  # a thread that waits takes no processor from the others
    with ExitStack() as running:
        pid = running.enter_context(site.daemon())
        desk = running.enter_context(Desk.of(site)) if syncthing else None
        soak = Soak(site, pid, numbers, desk)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, soak.stop)
        summary = soak.run(seconds)
    if summary["faults"]:
        shutil.copyfile(site.root / "daemon.log", numbers.with_suffix(".log"))
    return summary


def _title(rows: list[dict[str, float]]) -> str:
    minutes = rows[-1]["seconds"] / 60
    return f"{minutes:.0f} minutes at {DROPS_PER_SECOND} drops a second, rsync pushing and mirroring"


if __name__ == "__main__":
    raise SystemExit(main())
