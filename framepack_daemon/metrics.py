"""Numbers for Prometheus: what the daemon did since it started, and how things stand.

Counters hear the daemon's own events and its workers' messages; gauges are set by a look at what the daemon has in
memory, so that a long queue costs no listing. They live as long as this process. Does not know where they go.
"""

from __future__ import annotations

import math
import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, ProcessCollector

from framepack_daemon import __version__
from framepack_daemon.job import State, now
from framepack_daemon.printable import printable
from framepack_daemon.spool.keeper import Keeper
from framepack_daemon.workers.channel import Message
from framepack_daemon.workers.pool import Phase, Worker

LOOK_SECONDS = 5.0  # between two looks; one at 100,000 jobs takes some 10 ms
OUTCOMES = {"job_done": "completed", "job_failed": "failed", "job_cancelled": "cancelled", "job_refused": "refused"}
# What can fail for a folder's sake.
TROUBLES = ("intake", "permissions", "publishing", "queue", "scratch", "status files")
WORK = ("load", "encode", "sample", "decode", "write", "publish")  # kinds of work on a job
FAULTS = ("worker_died", "worker_error", "out_of_memory")  # the usual codes of an attempt that failed
STEP_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 2, 3, 5, 7, 10, 15, 20, 30, 60, 120)  # seconds; 1 to 20 on the usual GPUs
WAIT_BUCKETS = (1, 10, 60, 300, 900, 3600, 14_400, 43_200, 86_400, 604_800)  # seconds: to a week

# Without this, each counter and histogram has a second series that says when it began.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Registry(CollectorRegistry):
    """Numbers with one label more, which tells several daemons on a machine apart."""

    def __init__(self, **label: str) -> None:
        super().__init__()
        self._label = label

    def collect(self) -> Iterator[Metric]:
        """Every number as it is now."""
        for family in super().collect():
            family.samples = [sample._replace(labels=sample.labels | self._label) for sample in family.samples]
            yield family


class Metrics:
    """The numbers of one daemon."""

    def __init__(self, queue: Path, devices: Sequence[str], model: str) -> None:
        self.registry = registry = Registry(queue=printable(queue))
        self._phases: dict[str, tuple[Phase, float]] = {}  # of each device, since the last look (monotonic)
        self._look_at = 0.0  # monotonic
        self._circuit_until = 0.0  # monotonic

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"framepack_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"framepack_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"framepack_{name}", text, labels, buckets=buckets, registry=registry)

        Info(
            "framepack_build", "The version that runs, and the model for jobs that name none.", registry=registry
        ).info({"version": __version__, "model": model})
        ProcessCollector(namespace="framepack", registry=registry)  # of the daemon itself, without its workers
        self._jobs = gauge("jobs", "Jobs by the state they are in.", "state")
        self._oldest = gauge("oldest_pending_seconds", "How long the job that waits longest has waited.")
        self._paused = gauge("paused", "1 while the queue is paused.")
        self._circuit = gauge("circuit_open", "1 while no job is started because the last ones all failed.")
        self._troubles = gauge("trouble", "1 while something fails for its folder's sake.", "what")
        self._updated = gauge("updated_timestamp_seconds", "When the daemon last looked at itself.")
        self._active = gauge("last_activity_timestamp_seconds", "When a worker or a job last made headway.")
        self._peak = gauge(
            "job_peak_memory_bytes", "Most memory that the last rendered job took, on GPU or host.", "device", "kind"
        )
        self._submitted = counter("jobs_submitted", "Jobs that were taken into the queue.")
        self._ended = counter("jobs_ended", "Jobs that ended, by outcome.", "outcome")
        self._failures = counter("attempts_failed", "Attempts at a job that failed, by what went wrong.", "code")
        self._openings = counter("circuit_openings", "How often the last jobs all failed, so that starts were held up.")
        self._events = counter("events", "Events of the log from info on.", "event", "level")
        self._sections = counter("sections", "Sections that were rendered.")
        self._frames = counter("frames", "Frames of rendered videos.")
        self._work = counter("work_seconds", "Time that rendered jobs took, by kind of work.", "work")
        self._worker = counter("worker_seconds", "Time of each worker, by what it did.", "device", "phase")
        self._starts = counter("worker_starts", "Starts of a worker's process.", "device")
        self._deaths = counter("worker_deaths", "Workers that died or were killed.", "device")
        self._steps = histogram("step_seconds", "Time of a sampling step.", STEP_BUCKETS, "device")
        self._waits = histogram("job_wait_seconds", "Time that a job waited for its start.", WAIT_BUCKETS)
        self._begin(devices)

    def _begin(self, devices: Sequence[str]) -> None:
        """Have every series there from the start: a rate is known only of what was 0 once."""
        for device in devices:
            self._starts.labels(device)
            self._deaths.labels(device)
            self._steps.labels(device)
            for phase in Phase:
                self._worker.labels(device, phase.name.lower())
            for kind in ("gpu", "host"):
                self._peak.labels(device, kind)
        for family, labels in (
            (self._ended, OUTCOMES.values()),
            (self._failures, FAULTS),
            (self._work, WORK),
            (self._troubles, TROUBLES),
            (self._jobs, State),
        ):
            for label in labels:
                family.labels(str(label))

    def hear(self, event: Mapping[str, Any]) -> None:
        """Count one of the daemon's events."""
        name = event["event"]
        self._events.labels(name, event.get("level", "")).inc()
        if name in OUTCOMES:
            self._ended.labels(OUTCOMES[name]).inc()
            self._active.set_to_current_time()
        match name:
            case "job_submitted":
                self._submitted.inc()
            case "job_claimed":
                self._waits.observe(max(event["waited_seconds"], 0.0))
            case "job_done":
                self._work.labels("publish").inc(event["publish_seconds"])
            case "job_attempt_failed":
                self._failures.labels(event["code"]).inc()
            case "model_loaded":
                self._work.labels("load").inc(event["seconds"])
            case "worker_started":
                self._starts.labels(event["device"]).inc()
            case "worker_died":
                self._deaths.labels(event["device"]).inc()
            case "circuit_open":
                self._openings.inc()
                self._circuit_until = time.monotonic() + event["retry_seconds"]

    def follow(self, message: Message, device: str) -> None:
        """Count what a worker says."""
        match message["event"]:
            case "step":
                self._steps.labels(device).observe(message["seconds"])
            case "section":
                self._sections.inc()
                self._circuit_until = 0.0
            case "rendered":
                self._frames.inc(message["video"]["frames"])
                for work, seconds in message["timings"].items():
                    self._work.labels(work).inc(seconds)
                for kind in ("gpu", "host"):
                    self._peak.labels(device, kind).set(message["memory"][f"peak_{kind}_bytes"])
        self._active.set_to_current_time()

    def look(self, keeper: Keeper, workers: Iterable[Worker], troubles: Iterable[str]) -> bool:
        """Bring the gauges up to date, every few seconds; whether they were."""
        self._clock(workers)
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_SECONDS
        states = Tally(keeper.seen.values())
        states[State.PENDING] = len(keeper.line)
        for state in State:
            self._jobs.labels(state).set(states[state])
        self._oldest.set(_age(keeper.line.oldest))
        self._paused.set(keeper.queue.paused)
        self._circuit.set(time.monotonic() < self._circuit_until)
        known = set(troubles)
        for what in known | set(TROUBLES):
            self._troubles.labels(what).set(what in known)
        self._updated.set_to_current_time()
        return True

    def _clock(self, workers: Iterable[Worker]) -> None:
        """Add the time since the last turn to what each worker did in it."""
        moment = time.monotonic()
        for worker in workers:
            phase, since = self._phases.get(worker.device, (worker.phase, moment))
            self._worker.labels(worker.device, phase.name.lower()).inc(moment - since)
            self._phases[worker.device] = (worker.phase, moment)


def _age(queued_at: str | None) -> float:
    """Seconds since a time as the records have it; 0 for none."""
    if queued_at is None:
        return 0.0
    try:
        age = datetime.fromisoformat(now()) - datetime.fromisoformat(queued_at)
    except (ValueError, TypeError):  # someone has edited the record
        return math.nan
    return max(age.total_seconds(), 0.0)
