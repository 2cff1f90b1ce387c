"""The dashboard and the alerts before a real Prometheus, which reads a daemon's file through a real node_exporter."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tools import require

if TYPE_CHECKING:
    from lab import Lab

PACKAGING = Path(__file__).parents[2] / "packaging"
DASHBOARD = json.loads((PACKAGING / "grafana-dashboard.json").read_text())
# What Grafana puts in the place of its variables.
VARIABLES = {"$__rate_interval": "1m", "$__range": "5m", "$instance": ".*", "$queue": ".*"}
CONFIGURATION = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs: [{{job_name: node, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""


class Prometheus(NamedTuple):
    """A server that has scraped this machine's numbers since before there were any."""

    url: str
    folder: Path  # of the files that node_exporter passes on

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; None while the server is not up."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        except (urllib.error.URLError, ConnectionError):
            return None

    def values(self, expression: str) -> list[float]:
        """What an expression gives now, without what is no number."""
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        data = self.ask("query", query=expression) or {"result": []}
        values = [float(series["value"][1]) for series in data["result"]]
        return [value for value in values if not math.isnan(value)]


def _free_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


@contextlib.contextmanager
def _running(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    require("prometheus", "prometheus-node-exporter")
    folder, numbers, own = tmp_path / "textfiles", _free_port(), _free_port()
    folder.mkdir()
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(rules=PACKAGING / "prometheus-rules.yml", port=numbers))
    exporter = (
        *("prometheus-node-exporter", "--collector.disable-defaults", "--collector.textfile"),
        *(f"--collector.textfile.directory={folder}", f"--web.listen-address=127.0.0.1:{numbers}"),
    )
    server = (
        *("prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'data'}"),
        f"--web.listen-address=127.0.0.1:{own}",
    )
    with _running(*exporter), _running(*server):
        yield Prometheus(f"http://127.0.0.1:{own}", folder)


def test_every_query_of_the_dashboard_has_an_answer(lab: Lab, prometheus: Prometheus) -> None:
    lab.start(metrics_file=prometheus.folder / "framepack.prom")
    lab.until(lambda: prometheus.values("framepack_build_info"), "Prometheus to know the daemon")
    lab.drop("beach")
    lab.drop("dunes", prompt="sand")
    (lab.inbox / "bad.png").write_bytes(lab.picture.read_bytes())
    (lab.inbox / "bad.json").write_text('{"prompt": "waves", "seeed": 1}')
    done = 'framepack_jobs_ended_total{outcome="completed"}'
    lab.until(lambda: prometheus.values(done) == [2.0], "Prometheus to know of both jobs")
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            lab.until(lambda query=target["expr"]: prometheus.values(query), f"{panel['title']}: {target['expr']}")
    assert prometheus.values("node_textfile_scrape_error") == [0.0]
    assert prometheus.values('framepack_jobs_ended_total{outcome="refused"}') == [1.0]
    assert prometheus.values('sum(framepack_jobs{state="done"})') == [2.0]
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {(rule["health"], rule["state"], rule.get("lastError", "")) for rule in rules} == {("ok", "inactive", "")}
    assert lab.stop() == 0
    assert list(prometheus.folder.iterdir()) == [], "a daemon that is no more has no numbers"
