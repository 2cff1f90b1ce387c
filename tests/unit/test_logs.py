from __future__ import annotations

import io
import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from logging_journald import JournaldTransport

from framepack_daemon import journal, logs
from framepack_daemon.printable import printable


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger(logs.OURS)
    before = root.handlers[:], root.level, ours.level
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def explode(message: str) -> None:
    raise ValueError(message)


def test_json_lines_carry_event_level_time_and_fields() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    structlog.get_logger("framepack_daemon.spool").bind(job="beach-1").info("job_claimed", waited_seconds=1.5)
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "job_claimed", "level": "info", "job": "beach-1", "waited_seconds": 1.5}


def test_auto_is_json_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    logs.configure("auto", "info", stream)
    structlog.get_logger("framepack_daemon.x").info("started")
    assert json.loads(stream.getvalue())["event"] == "started"


def test_hostile_values_are_escaped_on_the_console() -> None:
    stream = io.StringIO()
    logs.configure("console", "info", stream)
    log = structlog.get_logger("framepack_daemon.x")
    log.info("drop_refused\x1b[2J", file="a\x1b[2Jb\u202e\n", files=["c\r"], more={"d\x07": ("e\udcff",)})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert not any(char in text for char in "\x1b\u202e\r\x07\udcff")
    assert r"a\x1b[2Jb\u202e\n" in text


def test_hostile_values_are_escaped_in_json() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    structlog.get_logger("framepack_daemon.x").info("drop_refused", file="a\x1b\u202e\n\udcff")
    text = stream.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    assert json.loads(text)["file"] == "a\x1b\u202e\n\udcff"


def test_a_traceback_keeps_its_lines_but_not_its_escapes() -> None:
    stream = io.StringIO()
    logs.configure("console", "info", stream)
    try:
        explode("bad \u202e name")
    except ValueError:
        structlog.get_logger("framepack_daemon.x").exception("failed")
    text = stream.getvalue()
    assert "Traceback" in text
    assert text.count("\n") > 2
    assert "\u202e" not in text


def test_other_libraries_speak_through_the_same_handler_from_warnings_on() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    logging.getLogger("somelibrary").info("chatter")
    logging.getLogger("somelibrary").warning("trouble with %s", "x")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["logger"]) for line in lines] == [("trouble with x", "somelibrary")]


def test_levels_and_a_second_configuration() -> None:
    first, second = io.StringIO(), io.StringIO()
    log = structlog.get_logger("framepack_daemon.x")
    logs.configure("json", "info", first)
    log.debug("hidden")
    logs.configure("json", "debug", second)
    log.debug("shown")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["event"] == "shown"


def test_who_listens_hears_our_events_also_below_the_level_of_the_log() -> None:
    stream, heard = io.StringIO(), []
    logs.configure("json", "error", stream)
    log = structlog.get_logger("framepack_daemon.x")
    with logs.listening(heard.append):
        log.debug("detail")
        log.info("job_done", job="beach-1")
        logging.getLogger("somelibrary").error("trouble")
    log.info("job_done", job="beach-2")
    assert [(event["event"], event["job"]) for event in heard] == [("job_done", "beach-1")]
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["trouble"]


def test_libraries_that_write_addresses_with_secrets_are_not_heard() -> None:
    stream = io.StringIO()
    logs.configure("json", "debug", stream)
    logging.getLogger("apprise").error("Unparseable URL secret://token")
    logging.getLogger("urllib3.connectionpool").warning("Retrying /bot-token/send")
    assert stream.getvalue() == ""


class Journal:
    """A journal's socket, and what came through it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(10)

    def entry(self) -> dict[str, str]:
        """The fields of the next entry, by systemd's native protocol."""
        data, descriptors, *_ = socket.recv_fds(self.socket, 1 << 20, 1)
        if descriptors:
            with os.fdopen(descriptors[0], "rb") as file:
                file.seek(0)
                data = file.read()
        fields = {}
        while data:
            line, _, data = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                size = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + size], data[8 + size + 1 :]
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture
def journald(monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    with tempfile.TemporaryDirectory() as folder:  # short: the name of a socket has at most 107 bytes
        path = Path(folder) / "socket"
        monkeypatch.setattr(JournaldTransport, "SOCKET_PATH", path)
        there = Journal(path)
        yield there
        there.socket.close()


def test_the_journal_gets_an_event_as_fields(journald: Journal) -> None:
    logs.configure("journal", "info", io.StringIO())
    log = structlog.get_logger("framepack_daemon.spool").bind(job="beach-1f3a9c02d4e5")
    log.warning("job_attempt_failed", reason="two\nlines", priority=5, files=["ä", 1], file="a\udcff")
    assert journald.entry() == {
        "MESSAGE": r"job_attempt_failed job=beach-1f3a9c02d4e5 reason=two\nlines priority=5 "
        r'files=["ä", 1] file=a\udcff',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "framepack-daemon",
        "SYSLOG_PID": str(os.getpid()),
        "EVENT": "job_attempt_failed",
        "JOB": "beach-1f3a9c02d4e5",
        "REASON": "two\nlines",
        "FRAMEPACK_PRIORITY": "5",
        "FILES": '["ä", 1]',
        "FILE": r"a\udcff",
    }


def test_the_journal_gets_tracebacks_and_the_words_of_other_libraries(journald: Journal) -> None:
    logs.configure("journal", "info", io.StringIO())
    try:
        explode("bad \x1b name")
    except ValueError:
        structlog.get_logger("framepack_daemon.x").exception("failed")
        logging.getLogger("somelibrary").critical("trouble with %s", "x", exc_info=True)
    ours, theirs = journald.entry(), journald.entry()
    assert (ours["EVENT"], ours["PRIORITY"]) == ("failed", "3")
    assert ours["EXCEPTION"].endswith("ValueError: bad \x1b name")
    assert ours["MESSAGE"].endswith(r"ValueError: bad \x1b name")
    assert (theirs["EVENT"], theirs["LOGGER"], theirs["PRIORITY"]) == ("trouble with x", "somelibrary", "2")
    assert "ValueError" in theirs["MESSAGE"]


def test_the_journal_gets_what_no_datagram_holds(journald: Journal) -> None:
    logs.configure("journal", "info", io.StringIO())
    structlog.get_logger("framepack_daemon.x").info("large", text="x" * 1_000_000)
    assert len(journald.entry()["TEXT"]) == 1_000_000


def test_without_a_journal_events_go_to_standard_error(journald: Journal) -> None:
    stream = io.StringIO()
    logs.configure("journal", "info", stream)
    log = structlog.get_logger("framepack_daemon.x")
    journald.socket.close()
    log.info("alone", job="beach-1")
    JournaldTransport.SOCKET_PATH.unlink()
    log.info("gone", job="beach-1")
    assert [(line["event"], line["job"]) for line in map(json.loads, stream.getvalue().splitlines())] == [
        ("alone", "beach-1"),
        ("gone", "beach-1"),
    ]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("job", "JOB"),
        ("retry_seconds", "RETRY_SECONDS"),
        ("größe", "GR_SSE"),
        ("_systemd_unit", "SYSTEMD_UNIT"),
        ("2nd", "ND"),
        ("message", "FRAMEPACK_MESSAGE"),
        ("ä", "FRAMEPACK_"),
        ("x" * 80, "X" * 64),
    ],
)
def test_names_of_fields_are_such_as_the_journal_takes(key: str, name: str) -> None:
    assert journal.field_name(key) == name


def test_auto_is_the_journal_where_systemd_connected_the_stream(
    journald: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = structlog.get_logger("framepack_daemon.x")
    with (tmp_path / "stream").open("w+") as stream:
        there: Any = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
        logs.configure("auto", "info", stream)
        log.info("started")
        assert journald.entry()["EVENT"] == "started"
        monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:1")
        logs.configure("auto", "info", stream)
        log.info("elsewhere")
        stream.seek(0)
        assert json.loads(stream.read())["event"] == "elsewhere"


@pytest.mark.parametrize("text", ["beach", "ビーチ", "été", "👩\u200d💻", "שלום"])
def test_letters_of_every_script_stay(text: str) -> None:
    assert printable(text) == text


def test_what_is_kept_is_kept() -> None:
    assert printable("a\nb\x00", keep="\n") == "a\nb\\x00"
