"""The numbers for Prometheus: what they count, how they leave, and that dashboard, alerts and page know them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs
from tools import require

from framepack_daemon.errors import EXIT_CONFIGURATION, ConfigurationError
from framepack_daemon.exports import TextFile, served
from framepack_daemon.job import State, now
from framepack_daemon.metrics import Metrics

if TYPE_CHECKING:
    from spool_bench import Bench

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "packaging/grafana-dashboard.json"
RULES = ROOT / "packaging/prometheus-rules.yml"
RENDERED = {
    "event": "rendered",
    "video": {"frames": 145},
    "timings": {"encode": 1.0, "sample": 40.0, "decode": 5.0},
    "memory": {"plan": "low", "peak_gpu_bytes": 6_000_000_000, "peak_host_bytes": 9_000_000_000},
}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(Path("/srv/queue"), ["cuda:0", "cuda:1"], "tiny")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"framepack_{name}", labels | {"queue": "/srv/queue"})


def numbers(metrics: Metrics) -> dict[str, tuple[str, set[str]]]:
    """Kind and labels of each number, by the name under which it is asked for."""
    suffix = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffix.get(family.type, ""): (
            "gauge" if family.type == "info" else family.type,
            {label for sample in family.samples for label in sample.labels} - {"queue", "le"},
        )
        for family in metrics.registry.collect()
    }


def test_jobs_are_counted_by_outcome(metrics: Metrics) -> None:
    for event in ("job_submitted", "job_refused", "job_failed", "job_cancelled"):
        metrics.hear({"event": event, "level": "info", "job": "beach"})
    metrics.hear({"event": "job_done", "level": "info", "job": "beach", "publish_seconds": 0.5})
    metrics.hear({"event": "job_claimed", "level": "info", "job": "beach", "waited_seconds": 30.0})
    assert value(metrics, "jobs_submitted_total") == 1
    for outcome in ("completed", "failed", "cancelled", "refused"):
        assert value(metrics, "jobs_ended_total", outcome=outcome) == 1
    assert value(metrics, "work_seconds_total", work="publish") == 0.5
    assert value(metrics, "job_wait_seconds_bucket", le="60.0") == 1
    assert value(metrics, "job_wait_seconds_bucket", le="10.0") == 0
    assert value(metrics, "events_total", event="job_done", level="info") == 1


def test_what_workers_say_is_counted(metrics: Metrics) -> None:
    for message in ({"event": "step", "seconds": 2.5}, {"event": "section"}, RENDERED):
        metrics.follow(message, "cuda:1")
    assert value(metrics, "step_seconds_sum", device="cuda:1") == 2.5
    assert value(metrics, "step_seconds_count", device="cuda:0") == 0
    assert value(metrics, "sections_total") == 1
    assert value(metrics, "frames_total") == 145
    assert value(metrics, "work_seconds_total", work="sample") == 40
    assert value(metrics, "job_peak_memory_bytes", device="cuda:1", kind="gpu") == 6e9
    assert value(metrics, "last_activity_timestamp_seconds")


def test_failures_are_counted(metrics: Metrics) -> None:
    metrics.hear({"event": "worker_started", "level": "info", "device": "cuda:0"})
    metrics.hear({"event": "worker_died", "level": "warning", "device": "cuda:0"})
    metrics.hear({"event": "job_attempt_failed", "level": "error", "code": "lora"})
    metrics.hear({"event": "circuit_open", "level": "error", "retry_seconds": 60.0})
    assert value(metrics, "worker_starts_total", device="cuda:0") == 1
    assert value(metrics, "worker_deaths_total", device="cuda:0") == 1
    assert value(metrics, "attempts_failed_total", code="lora") == 1
    assert value(metrics, "circuit_openings_total") == 1


def test_a_look_tells_how_things_stand(metrics: Metrics, bench: Bench) -> None:
    for stem in ("waits", "done"):
        bench.drop(stem, prompt=stem)
    for job in [job for added in bench.take() for job in added.jobs]:
        if job.startswith("done"):
            bench.queue.move(job, State.PENDING, State.DONE)
    bench.keeper.tidy(frozenset())
    bench.queue.pause_file.touch()
    metrics.hear({"event": "circuit_open", "level": "error", "retry_seconds": 60.0})
    assert metrics.look(bench.keeper, [], ["scratch", "something new"])
    assert not metrics.look(bench.keeper, [], []), "a look at a long queue is not made at every turn"
    assert [value(metrics, "jobs", state=state) for state in State] == [1, 0, 1, 0]
    assert 0 < value(metrics, "oldest_pending_seconds") < 300
    assert (value(metrics, "paused"), value(metrics, "circuit_open")) == (1, 1)
    assert value(metrics, "trouble", what="scratch") == value(metrics, "trouble", what="something new") == 1
    assert value(metrics, "trouble", what="queue") == 0
    metrics._look_at = 0.0
    metrics.follow({"event": "section"}, "cuda:0")  # something works again
    bench.queue.pause_file.unlink()
    metrics.look(bench.keeper, [], [])
    assert (value(metrics, "paused"), value(metrics, "circuit_open")) == (0, 0)
    assert value(metrics, "trouble", what="scratch") == 0


@pytest.mark.parametrize("queued_at", ["yesterday", "2026-01-01", now(3_600_000_000)], ids=["word", "day", "later"])
def test_a_time_that_someone_has_edited_does_no_harm(metrics: Metrics, bench: Bench, queued_at: str) -> None:
    bench.keeper.line.put_at((0, queued_at, "beach-1f3a9c02d4e5"))
    metrics.look(bench.keeper, [], [])
    assert value(metrics, "jobs", state="pending") == 1, "one that is in the line and not entered yet counts too"
    age = value(metrics, "oldest_pending_seconds")
    assert age is not None
    assert not age > 0


def test_promtool_finds_no_fault_with_the_text(metrics: Metrics) -> None:
    require("promtool")
    metrics.follow(RENDERED, "cuda:0")
    command = ["promtool", "check", "metrics"]
    checked = subprocess.run(command, input=generate_latest(metrics.registry), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_promtool_finds_no_fault_with_the_alerts() -> None:
    require("promtool")
    subprocess.run(["promtool", "check", "rules", "--lint-fatal", str(RULES)], check=True, capture_output=True)


def expressions() -> Iterator[str]:
    """Everything that the dashboard and the alerts ask for."""

    def within(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            yield from (text for key, text in part.items() if key in ("expr", "query") and isinstance(text, str))
        for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from within(each)

    yield from within(json.loads(DASHBOARD.read_text()))
    yield RULES.read_text()


def test_dashboard_and_alerts_ask_for_numbers_that_are_there(metrics: Metrics) -> None:
    asked = {name for text in expressions() for name in re.findall(r"\bframepack_\w+", text)}
    assert len(asked) > 15
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= numbers(metrics).keys()


def test_the_page_on_monitoring_has_every_number_and_no_other(metrics: Metrics) -> None:
    metrics.hear({"event": "job_removed", "level": "info"})
    page = (ROOT / "docs/monitoring.md").read_text()
    rows = re.findall(r"^\| `(framepack_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert told == {name: what for name, what in numbers(metrics).items() if "_process_" not in name}


def test_a_file_that_cannot_be_written_is_told_once_and_tried_again(metrics: Metrics, tmp_path: Path) -> None:
    file = TextFile(tmp_path / "away" / "framepack.prom", metrics.registry)
    with capture_logs() as said:
        file.write()
        file.write()
        file.remove()
        (tmp_path / "away").mkdir()
        file.write()
    assert [event["event"] for event in said] == ["metrics_not_written"]
    assert "framepack_build_info" in (tmp_path / "away" / "framepack.prom").read_text()
    file.remove()
    assert list((tmp_path / "away").iterdir()) == []


def get(path: Path) -> str:
    """What the socket answers to a plain HTTP GET."""
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(30)
        end.connect(str(path))
        end.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: end.recv(1 << 16), b"")).decode()


def test_the_socket_answers_and_goes_with_the_daemon(metrics: Metrics, short: Path) -> None:
    with served(short / "metrics", metrics.registry):
        head, _, body = get(short / "metrics").partition("\r\n\r\n")
    assert "200" in head.splitlines()[0]
    assert "text/plain" in head
    assert 'framepack_jobs{queue="/srv/queue",state="done"} 0.0' in body
    assert list(short.iterdir()) == []


def test_a_socket_that_a_crash_left_is_replaced(metrics: Metrics, short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(short / "metrics"))
    with served(short / "metrics", metrics.registry):
        assert "framepack_build_info" in get(short / "metrics")


@pytest.mark.parametrize("there", ["a daemon", "a file", "no folder"])
def test_a_socket_that_cannot_be_had_is_a_wrong_setting(metrics: Metrics, short: Path, there: str) -> None:
    path = short / "metrics"
    with socket.socket(socket.AF_UNIX) as other:
        if there == "a daemon":
            other.bind(str(path))
            other.listen()
        elif there == "a file":
            path.write_text("precious")
        else:
            path = short / "none" / "metrics"
        with pytest.raises(ConfigurationError, match="metrics_socket") as caught, served(path, metrics.registry):
            pass
    assert caught.value.exit_code == EXIT_CONFIGURATION
    if there == "a file":
        assert path.read_text() == "precious"
