"""What the gateway costs with 500 listeners while 50 jobs finish, beside a bare FastAPI endpoint in the same run.

    pip install psutil
    python benchmarks/gateway.py [--listeners 500] [--jobs 50] [--seconds 10] [--folder DIR] [--numbers FILE]

Starts `framepack-daemon serve` on folders of its own, asks for `GET /status/{job}` at a steady pace while nobody
listens, while so many listen to `/events` and nothing happens, and while the jobs finish. Every listener must get every
event once and in order, and be told of each video and of the end of each job: a fault is named, and ends with exit code
1. Then the same with a bare FastAPI, which sends the same events at the same moments. Prints a Markdown table;
`--numbers` keeps the figures as JSON.

Gateway, listeners, the one who asks and the jobs are processes of their own. The jobs go through the daemon's own loop
on real folders, with a stand-in for the worker: `--pace` says for how many seconds each is shown as running.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import meter
import psutil
from main_job import Site, wait
from spool_tree import Tree

from framepack_daemon.job import State

HERE = Path(__file__).parent
ASKED_A_SECOND = 50.0
STILL_SECONDS = 1.0  # without an event, after which all events of the jobs are told
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    listeners: int
    jobs: int
    pace: float  # seconds for which a job is shown as running
    seconds: float  # for which is asked while nothing happens


class Helper:
    """One of the clients."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, str(HERE / "gateway_clients.py"), *map(str, words)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{words[0]}: did not begin")

    def end(self, line: str = "") -> dict[str, Any]:
        """Tell it to end; what it found."""
        answer, _ = self._process.communicate(f"{line}\n")
        found: dict[str, Any] = json.loads(answer)
        return found


@contextmanager
def serving(command: list[str], environment: dict[str, str], log: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A server while the block runs, and the address that it prints."""
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stream, text=True) as process,
    ):
        try:
            assert process.stdout
            yield psutil.Process(process.pid), process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)


def measure(server: psutil.Process, url: str, plan: Plan, jobs: list[str], work: Callable[[], str]) -> dict[str, Any]:
    """All figures of one server; `work` makes the events, and gives the id of the last."""
    paths = [f"/status/{job}" for job in jobs]

    def asked() -> dict[str, Any]:
        helper = Helper("ask", url, ASKED_A_SECOND, *paths)
        time.sleep(plan.seconds)
        return helper.end()

    found: dict[str, Any] = {"alone": asked(), "memory_alone": memory(server)}
    crowd = Helper("listen", url, plan.listeners)
    found |= {"listened": asked(), "memory_listened": memory(server)}
    before, began = processor(server), time.monotonic()
    asking = Helper("ask", url, ASKED_A_SECOND, *paths)
    highest = 0.0
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while not working.done():
            highest = max(highest, memory(server))
            time.sleep(SAMPLE_SECONDS)
    found["busy"] = asking.end()
    found |= {"took": time.monotonic() - began, "processor": processor(server) - before, "memory_busy": highest}
    return found | crowd.end(working.result())


def memory(server: psutil.Process) -> float:
    """MiB that the server holds."""
    return meter.measure(server)["rss"]


def processor(server: psutil.Process) -> float:
    """Seconds of a processor that the server has used."""
    times = server.cpu_times()
    return times.user + times.system


def asked_once(url: str, method: str, path: str) -> Any:
    """What the server answers, JSON."""
    client = HTTPConnection(urlsplit(url).netloc)
    client.request(method, path)
    return json.load(client.getresponse())


def newest(url: str) -> str:
    """The id of the newest event, as a listener that comes now is told."""
    client = HTTPConnection(urlsplit(url).netloc)
    client.request("GET", "/events")
    lines = client.getresponse()
    while not (line := lines.readline()).startswith(b"id: "):
        if not line:
            raise RuntimeError("the stream ended")
    client.close()
    return line.decode().removeprefix("id: ").strip()


def finish(folder: Path, url: str, plan: Plan) -> str:
    """Have the jobs finish; the id of the last event, once no further comes."""
    words = [sys.executable, str(HERE / "gateway_jobs.py"), str(folder), str(plan.jobs), str(plan.pace)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    wait(lambda: asked_once(url, "GET", "/queue?limit=1")["counts"]["done"] == plan.jobs)
    last = ""
    while last != (now := newest(url)):
        last = now
        time.sleep(STILL_SECONDS)
    return last


def untold(events: list[tuple[float, str, str]], done: list[str]) -> list[str]:
    """What the events do not say of jobs that are done: each video once, and at last that the job is completed."""
    videos: Counter[str] = Counter()
    words: dict[str, str] = {}
    for _, kind, text in events:
        said = json.loads(text)
        if kind == "video":
            videos[said["name"]] += 1
        elif kind == "job":
            words[said["job_id"]] = said["status"]
    found = [f"the video of {job} was told {videos[f'{job}.mp4']} times" for job in done if videos[f"{job}.mp4"] != 1]
    return found + [f"{job}: the last word is {words.get(job)}" for job in done if words.get(job) != "completed"]


def run(folder: Path, plan: Plan) -> dict[str, Any]:
    """Measure both servers; their figures, and the faults of the gateway's events."""
    site = Site(folder / "site", folder / "models")
    tree = Tree(site.root)
    tree.make()
    tree.fill(plan.jobs)
    jobs = sorted(tree.queue.names(State.PENDING))
    command = [sys.executable, "-m", "framepack_daemon", "serve", "--port", "0"]
    with serving(command, site.environment, folder / "gateway.log") as (server, url):
        found = measure(server, url, plan, jobs, lambda: finish(site.root, url, plan))
        status = asked_once(url, "GET", f"/status/{jobs[0]}")
    found["faults"] += untold(found["events"], jobs)
    events = [(at - found["events"][0][0], kind, text) for at, kind, text in found["events"]]
    file = folder / "events.json"
    file.write_text(json.dumps({"status": status, "events": events}))
    command = [sys.executable, str(HERE / "gateway_bare.py"), str(file)]
    with serving(command, dict(os.environ), folder / "bare.log") as (server, url):
        bare = measure(server, url, plan, jobs, lambda: asked_once(url, "POST", "/go"))
    found["told"], found["bytes"] = len(events), sum(len(text) for _, _, text in events)
    del found["events"], bare["events"]
    return {**asdict(plan), "gateway": found, "bare": bare}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    both = found["gateway"], found["bare"]
    crowd = f"{found['listeners']:,} listeners"
    busy = f"while {found['jobs']} jobs finish"

    def answers(name: str, key: str) -> list[str]:
        return [f"{1000 * each[key]['median']:.1f} / {1000 * each[key]['p99']:.0f} ms" for each in both] + [name]

    def figures(name: str, key: str, form: str) -> list[str]:
        return [form.format(each[key]) for each in both] + [name]

    rows = [
        answers("`GET /status/{job}`, nobody listens: median / p99", "alone"),
        answers(f"the same, {crowd}, nothing happens", "listened"),
        answers(f"the same, {crowd}, {busy}", "busy"),
        figures(f"processor time of the server meanwhile ({both[0]['took']:.0f} s)", "processor", "{:.1f} s"),
        figures("memory, nobody listens", "memory_alone", "{:.0f} MiB"),
        figures(f"memory, {crowd}", "memory_listened", "{:.0f} MiB"),
        figures(f"the highest {busy}", "memory_busy", "{:.0f} MiB"),
        figures(f"until {crowd} have their first event", "connected", "{:.1f} s"),
    ]
    spreads = [sorted(each["spread"]) for each in both]
    middle = [f"{1000 * each[len(each) // 2]:.0f} / {1000 * each[-1]:.0f} ms" for each in spreads]
    rows.append([*middle, "from the first listener that has an event to the last: median / highest"])
    rows.append([f"{each['received']:,}" for each in both] + [f"events that came ({both[0]['told']} at each listener)"])
    lines = [f"| {name} | {ours} | {bare} |" for ours, bare, name in rows]
    return "\n".join(["| what | gateway | bare FastAPI |", "| --- | --- | --- |", *lines])


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listeners", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--pace", type=float, default=0.2, help="seconds for which a job is shown as running")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which is asked while nothing happens")
    parser.add_argument("--folder", type=Path, help="where the folders of the run are made")
    parser.add_argument("--numbers", type=Path, help="keep the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="framepack-gateway-", dir=options.folder) as folder:
        found = run(Path(folder), Plan(options.listeners, options.jobs, options.pace, options.seconds))
    if options.numbers:
        options.numbers.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    failed = [f"{name}: {fault}" for name in ("gateway", "bare") for fault in found[name]["faults"]]
    for fault in failed:
        print(fault, file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
