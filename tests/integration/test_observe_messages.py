"""Messages by Apprise, to a server that this test runs: what is told, what is not, and that nothing waits for it."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from framepack_daemon import notify
from framepack_daemon.errors import EXIT_CONFIGURATION
from framepack_daemon.notify import WAITING, Notifier

if TYPE_CHECKING:
    from pathlib import Path

    from lab import Lab
    from spool_bench import Bench

# Apprise still reaches for a module that newer Pythons do not have.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
SECRET = "Xq7-only-for-the-receiver"


class Receiver(ThreadingHTTPServer):
    """A web server that keeps what is sent to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        """Its address as Apprise has it, with a secret."""
        return f"json://127.0.0.1:{self.server_port}/{SECRET}/"

    def titles(self) -> list[str]:
        """Of what has come."""
        return [message["title"] for message in self.got]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert SECRET in self.path
        self.server.got.append(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_ends_of_jobs_are_told_and_secrets_are_not(lab: Lab, receiver: Receiver) -> None:
    away = f"json://127.0.0.1:1/{SECRET}/"  # where nobody listens
    lab.start(notify_urls=f"{away} {receiver.url}", notify_on="done queue_empty", log_level="debug")
    lab.drop("quiet", notify=False, prompt="calm")
    quiet = lab.ended("quiet")
    lab.until(lambda: "The queue is empty" in receiver.titles(), "word of the empty queue")
    (lab.inbox / "bad.png").write_bytes(lab.picture.read_bytes())
    (lab.inbox / "bad.json").write_text('{"prompt": "waves", "seeed": 1}')
    lab.drop("beach")
    job = lab.ended("beach")
    lab.until(lambda: receiver.titles().count("The queue is empty") == 2, "word of the empty queue")
    assert f"{job} is done" in receiver.titles()
    done = next(message for message in receiver.got if message["title"] == f"{job} is done")
    assert done["type"] == "success"
    assert f"{job}.mp4" in done["message"]
    assert "1 done, 0 failed" in receiver.got[-1]["message"]
    assert not any(quiet in title or "refused" in title for title in receiver.titles())
    assert lab.stop() == 0
    log = (lab.root / "daemon.log").read_text()
    assert SECRET not in log
    assert {event["url_number"] for event in lab.events("notification_failed")} == {1}


def event(name: str, **fields: Any) -> dict[str, Any]:
    return {"event": name, "level": "info"} | fields


def test_each_kind_of_message(bench: Bench, receiver: Receiver) -> None:
    notifier = Notifier([receiver.url], ["failed", "circuit_open", "queue_empty"], bench.queue)
    notifier.start()
    notifier.hear(event("job_failed", job="beach-1", reason="its worker died \x1b[2J 3 times"))
    notifier.hear(event("job_refused", job="beach-2", reason="seeed: unknown field"))
    notifier.hear(event("job_done", job="beach-3", video="beach-3.mp4"))
    notifier.hear(event("circuit_open", jobs=5, retry_seconds=60.0))
    notifier.hear(event("queue_empty", done=3, failed=2))
    notifier.close()
    assert receiver.titles() == [
        "beach-1 failed",
        "beach-2 was refused",
        "Rendering is held up",
        "The queue is empty",
    ]
    assert [message["type"] for message in receiver.got] == ["failure", "failure", "warning", "info"]
    assert r"its worker died \x1b[2J 3 times" in receiver.got[0]["message"]


def test_a_job_may_ask_for_word_of_its_end(bench: Bench, receiver: Receiver) -> None:
    bench.drop("asks", notify=True)
    job = bench.take_one()
    notifier = Notifier([receiver.url], ["circuit_open"], bench.queue)
    notifier.start()
    notifier.hear(event("job_done", job=job, video=f"{job}.mp4"))
    notifier.close()
    assert receiver.titles() == [f"{job} is done"]


def test_a_service_that_never_answers_holds_nothing_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "CLOSE_SECONDS", 0.1)
    with socket.socket() as deaf, capture_logs() as said:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        notifier = Notifier([f"json://127.0.0.1:{deaf.getsockname()[1]}/?rto=30"], ["queue_empty"], bench.queue)
        notifier.start()
        for _ in range(WAITING + 10):
            notifier.hear(event("queue_empty", done=1, failed=0))
        notifier.close()
    assert sum(each["event"] == "notification_dropped" for each in said) >= 9


def test_without_apprise_the_daemon_says_how_to_get_it(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "apprise.py").write_text("raise ImportError('not installed')")
    lab.settings["notify_urls"] = f"json://host/{SECRET}"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        ended = lab.command("run")
    assert ended.returncode == EXIT_CONFIGURATION
    assert "pip install 'framepack-daemon[notify]'" in ended.stderr
    assert SECRET not in ended.stderr


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        (f"json://127.0.0.1/ nonsense://{SECRET}", "number 2 (nonsense:…)"),
        (SECRET, "notify_urls: what is given from FRAMEPACK_NOTIFY_URLS is not allowed"),
    ],
)
def test_an_address_that_is_none_is_a_wrong_setting_and_stays_secret(lab: Lab, urls: str, said: str) -> None:
    ended = lab.command("run", notify_urls=urls)
    assert ended.returncode == EXIT_CONFIGURATION
    assert said in ended.stderr
    assert SECRET not in ended.stderr + ended.stdout
