from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from framepack_daemon import logs
from framepack_daemon.printable import printable


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger(logs.OURS)
    before = root.handlers[:], root.level, ours.level
    yield
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


@pytest.mark.parametrize("text", ["beach", "ビーチ", "été", "👩\u200d💻", "שלום"])
def test_letters_of_every_script_stay(text: str) -> None:
    assert printable(text) == text


def test_what_is_kept_is_kept() -> None:
    assert printable("a\nb\x00", keep="\n") == "a\nb\\x00"
