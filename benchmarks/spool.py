"""What the folder queue costs with 100 to 100,000 jobs in it, beside the limit of the disk and beside other queues.

    pip install huey dirq persist-queue kombu matplotlib psutil
    python benchmarks/spool.py [--jobs 100 1000 10000 100000] [--folder DIR] [--table FILE] [--plot docs/spool.png]

Prints Markdown tables, and whether each goal is met; `--table` keeps them in a file, the figures go beside the plot as
JSON, and `--redraw JSON` makes tables and plot of an earlier run. `--folder` is where the folders of the run are made,
on a real disk. strace counts syncs and looks, root empties the cache before a restart; without them those figures are
left out. Set-up writes jobs without syncs; everything that is timed is real, but for the worker, which finishes at
once. It takes about 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import util
from pathlib import Path
from typing import Any

import psutil
import spool_report
from main_job import Site
from meter import BYTES_PER_MEBIBYTE
from spool_peers import PEERS
from spool_tree import Tree

HERE = Path(__file__).parent
COUNTED = 10  # jobs of which syncs are counted
SLOWER_AT = 1000  # jobs, with which the steps are measured on slower disks too
SLOWER = (2, 5, 10)  # milliseconds that each sync takes longer there
MANY = 10_000  # jobs, from which on slow things are done once and not three times
QUIET_SECONDS = 2.0  # in which a daemon that has come to rest uses no more than this share of a processor
QUIET_SHARE = 0.1
PATIENCE_SECONDS = 180.0  # for that
IDLE_SECONDS = 15.0  # over which the processor's time of an idle daemon is taken: a look at everything is in it
CALLS = ["fsync,fdatasync,openat,stat,lstat,fstat,newfstatat,statx"]
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def child(script: str, *words: object, trace: Path | None = None) -> dict[str, Any]:
    """Run a step in a process of its own, under strace where its calls are wanted; what it says."""
    command = [sys.executable, str(HERE / script), *map(str, words)]
    if trace:
        command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={','.join(CALLS)}", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def calls(trace: Path) -> dict[str, Counter[str]]:
    """How often each call was made between two marks, in the thread that made the marks."""
    parts: dict[str, Counter[str]] = {}
    inside: dict[str, list[str]] = {}  # of each thread
    for line in trace.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +(\w+)\(", line)
        if match is None:
            continue
        thread, name = match.groups()
        marked = re.search(r'"/mark-([\w-]+)"', line)
        if marked and marked[1] == "end":
            if inside.get(thread):
                inside[thread].pop()
        elif marked:
            inside.setdefault(thread, []).append(marked[1])
            parts.setdefault(marked[1], Counter())["times"] += 1
        elif inside.get(thread):
            kind = "syncs" if "sync" in name else "opens" if name == "openat" else "looks"
            parts[inside[thread][-1]][kind] += 1
    return parts


def counted_steps(folder: Path) -> dict[str, dict[str, float]]:
    """Syncs of each step, ours, the bare loop's, and the other queues'."""
    tree = Tree(folder / "counted")
    tree.make()
    tree.fill(3 * COUNTED)
    tree.check()
    found: dict[str, dict[str, float]] = {"ours": {}, "bare": {}}
    trace = folder / "trace"
    for step in ("take", "run"):
        child("spool_ours.py", step, tree.root, COUNTED, trace=trace)
        for part, counter in calls(trace).items():
            who, _, name = part.rpartition("-")
            if name in spool_report.STEPS:
                # One job more is claimed at the end, and is ended as the daemon stops.
                found[who or "ours"][name] = round(counter["syncs"] / (COUNTED + (step == "run" and not who)), 1)
    for number, name in enumerate(PEERS):
        place = folder / f"counted-peer{number}"
        place.mkdir()
        child("spool_peers.py", name, place, COUNTED, COUNTED, trace=trace)
        parts = calls(trace)
        found[name] = {part: round(parts[part]["syncs"] / parts[part]["times"], 1) for part in ("take", "claim")}
    return found


def restarts(tree: Tree, count: int) -> list[float]:
    """Seconds to the first claim after a start, each with a cold cache where we may empty it."""
    found = []
    for _ in range(1 if count >= MANY else 3):
        command = [sys.executable, str(HERE / "spool_ours.py"), "restart", str(tree.root), "1"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout
            process.stdout.readline()
            if os.geteuid() == 0:
                os.sync()
                DROP_CACHES.write_text("3")
            answer, _ = process.communicate("go\n")
        found.append(json.loads(answer)["first_claim"])
    return found


def real_daemon(site: Site, *, commands: bool) -> dict[str, float]:
    """Memory of the real daemon, its processor time while nothing happens, and the cost of `status`."""
    with site.daemon() as pid:
        process = psutil.Process(pid)
        started = time.monotonic()
        while share_of(process, QUIET_SECONDS) > QUIET_SHARE and time.monotonic() < started + PATIENCE_SECONDS:
            pass
        found = {"settled": time.monotonic() - started}
        found["idle_percent"] = 100 * share_of(process, IDLE_SECONDS)
        found["memory"] = process.memory_info().rss / BYTES_PER_MEBIBYTE
        if commands:
            found |= _status(site)
    return found


def share_of(process: psutil.Process, seconds: float) -> float:
    """The share of one processor that a process uses in the next seconds."""
    before, started = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, took = process.cpu_times(), time.monotonic() - started
    return (after.user + after.system - before.user - before.system) / took


def _status(site: Site) -> dict[str, float]:
    times, processor = [], []
    for _ in range(3):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        site.command("status")
        times.append(time.monotonic() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"status": statistics.median(times), "status_cpu": statistics.median(processor)}


def one_size(folder: Path, models: Path, count: int, samples: int) -> dict[str, Any]:
    """Everything with so many jobs."""
    found: dict[str, Any] = {"jobs": count}
    site = Site(folder / "site", models)
    tree = Tree(site.root)
    tree.make()
    tree.fill(count)
    say(f"{count:,} jobs written")
    found |= child("spool_ours.py", "take", tree.root, samples)
    found |= child("spool_ours.py", "run", tree.root, min(samples, count // 2))
    if count == SLOWER_AT:
        found["slower"] = [
            {"milliseconds": more}
            | child("spool_ours.py", "take", tree.root, samples, more)
            | child("spool_ours.py", "run", tree.root, samples, more)
            for more in SLOWER
        ]
    found["first_claim"] = statistics.median(restarts(tree, count))
    say("steps and restart measured")
    site.queue.pause_file.touch()
    found |= real_daemon(site, commands=True)
    tree.leave_halves(count)
    found |= child("spool_ours.py", "scan", tree.root, 1)
    if shutil.which("strace"):
        trace = folder / "trace"
        child("spool_ours.py", "scan", tree.root, 1, trace=trace)
        parts = calls(trace)
        for name in ("scan", "calm", "watchdog"):
            found[f"{name}_looks"] = parts[name]["looks"] / 5 / count
            found[f"{name}_opens"] = parts[name]["opens"] / 5 / count
    tree.end_all()
    found["lone"] = real_daemon(site, commands=False)
    shutil.rmtree(tree.root)
    say("daemon and scan measured")
    found["peers"] = {}
    for name in PEERS:
        place = folder / "peer"
        place.mkdir()
        found["peers"][name] = child("spool_peers.py", name, place, count, samples)
        shutil.rmtree(place)
    say("peers measured")
    return found


def say(text: str) -> None:
    """Show that it goes on."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def measure(folder: Path, sizes: list[int], samples: int, numbers: Path) -> dict[str, Any]:
    """The whole run; what is measured so far is kept in a file."""
    models = folder / "models"
    subprocess.run([sys.executable, "-m", "framepack_daemon.engine.tiny", str(models / "tiny")], check=True)
    empty = real_daemon(Site(folder / "empty", models), commands=True)
    found: dict[str, Any] = {"empty": empty, "syncs": {}, "sizes": []}
    if shutil.which("strace"):
        found["syncs"] = counted_steps(folder)
    for count in sizes:
        place = folder / str(count)
        place.mkdir()
        found["sizes"].append(one_size(place, models, count, samples))
        found["sizes"].sort(key=lambda size: size["jobs"])
        numbers.write_text(json.dumps(found, indent=2) + "\n")
    return found


def main() -> None:
    """Measure, or read an earlier run; print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--samples", type=int, default=100, help="jobs of which a step's time is the mean")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--plot", type=Path, default=Path("docs/spool.png"))
    parser.add_argument("--redraw", type=Path, metavar="JSON")
    options = parser.parse_args()
    if options.redraw:
        found = json.loads(options.redraw.read_text())
    else:
        missing = [name for name in ("huey", "dirq", "persistqueue", "kombu") if util.find_spec(name) is None]
        if missing:
            parser.error(f"{', '.join(missing)}: not installed: pip install huey dirq persist-queue kombu matplotlib")
        os.environ["OMP_WAIT_POLICY"] = "passive"
        with tempfile.TemporaryDirectory(prefix="framepack-spool-", dir=options.folder) as folder:
            found = measure(Path(folder), options.jobs, options.samples, options.plot.with_suffix(".json"))
    text = spool_report.tables(found)
    print(text)
    if options.table:
        options.table.write_text(text + "\n")
    if util.find_spec("matplotlib") is None:
        say("no matplotlib: no plot; install it and use --redraw")
    else:
        spool_report.plot(found, options.plot)


if __name__ == "__main__":
    main()
