"""The alerts, tried on series of numbers by Prometheus' own tool; the cases are in `alerts.yml`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tools import require

CASES = Path(__file__).with_name("alerts.yml")
RULES = Path(__file__).resolve().parents[2] / "packaging/prometheus-rules.yml"


def test_each_alert_fires_when_it_should_and_is_silent_else() -> None:
    require("promtool")
    done = subprocess.run(["promtool", "test", "rules", CASES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_left_out() -> None:
    alerts = re.findall(r"^ +- alert: (\w+)$", RULES.read_text(), flags=re.MULTILINE)
    assert set(alerts) == set(re.findall(r'alertname="(\w+)"', CASES.read_text()))
