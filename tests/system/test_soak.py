"""Two minutes of the soak: five drops a second, sync tools on; nothing is lost and nothing grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from meter import FIGURES
from soak import leaks
from tools import require

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.timeout(900)
def test_two_minutes_of_drops_and_sync_tools_lose_nothing_and_leave_nothing_open(tmp_path):
    require("rsync", "syncthing")
    words = ["--minutes", "2", "--syncthing", "--folder", str(tmp_path), "--plot", str(tmp_path / "soak.png")]
    done = subprocess.run([sys.executable, str(SOAK), *words], capture_output=True, text=True, check=False)
    summary = json.loads((tmp_path / "soak.json").read_text())
    assert summary["faults"] == [], done.stdout + done.stderr
    assert summary["drops"] >= 550
    assert summary["jobs"]["done"] >= 10
    assert summary["videos_at_the_desk"] >= 10
    assert done.returncode == 0


@pytest.mark.parametrize("who", ["daemon", "worker"])
@pytest.mark.parametrize(("figure", "a_second"), [("rss", 0.3), ("files", 0.05), ("threads", 0.05), ("children", 0.05)])
def test_a_leak_is_seen(who, figure, a_second):
    leaking = f"{who}_{figure}"
    rest = {f"{whose}_{name}": 100.0 for whose in ("daemon", "worker") for name in FIGURES}
    flat = [{"seconds": float(second), **rest} for second in range(120)]
    assert leaks(flat, rest, rest) == []
    growing = [row | {leaking: 100 + int(a_second * row["seconds"])} for row in flat]
    after = rest | {leaking: growing[-1][leaking]}
    assert [fault for fault in leaks(growing, rest, after) if not fault.startswith(leaking)] == []
    assert leaks(growing, rest, after)
