"""Many listeners at a gateway while jobs finish: each hears everything once; and the judge of that sees a fault."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_clients import Heard, faults

from framepack_daemon.web import server
from framepack_daemon.web.settings import WebSettings

LOAD = Path(__file__).parents[2] / "benchmarks" / "gateway.py"

pytestmark = pytest.mark.timeout(120)


def test_every_listener_hears_every_event_once(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    words = ["--listeners=50", "--jobs=10", "--pace=0.05", "--seconds=0.2", f"--folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, str(LOAD), *words, f"--numbers={numbers}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for found in (json.loads(numbers.read_text())[name] for name in ("gateway", "bare")):
        assert found["faults"] == []
        assert found["received"] == 50 * len(found["spread"])
        assert len(found["spread"]) >= 20, "of each job that it is done, and its video"
        assert found["busy"]["answers"] > 0


ROW = [Heard(0.0, 3, "snapshot", "{}"), Heard(0.1, 4, "job", "{}"), Heard(0.2, 5, "video", "{}")]


@pytest.mark.parametrize(
    ("other", "words"),
    [(ROW, None), (ROW[:2], "listener 1: event 5 did not come"), ([*ROW, ROW[2]], "listener 1: event 5 came 2 times"),
     ([ROW[0], ROW[2], ROW[1]], "out of order"), ([*ROW[:2], Heard(0.2, 5, "video", "[]")], "something else"),
     ([*ROW, ROW[0]], "2 snapshots"), ([], "0 snapshots"), (ROW[1:], "0 snapshots")],
)  # fmt: skip
def test_what_a_listener_misses_or_hears_twice_is_named(other: list[Heard], words: str | None) -> None:
    assert [words in fault for fault in faults([ROW, other], last=5)] == ([True] if words else [])


def test_an_answer_waits_for_no_confirmation_of_its_first_part() -> None:
    with server._listen(WebSettings(port=0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
