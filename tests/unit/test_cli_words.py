from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from framepack_daemon.cli import table, wording
from framepack_daemon.cli.jobs import seconds
from framepack_daemon.cli.submit import assignment, compose
from framepack_daemon.errors import FramepackError, RequestError

HOSTILE = "a\x1b[2Jb\u202e[red]"
PICTURE = Path("beach.jpg")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("seconds=3", ("seconds", 3)),
        ("seconds = 2.5", ("seconds", 2.5)),
        ("prompt=waves = foam", ("prompt", "waves = foam")),
        ('prompt="3"', ("prompt", "3")),
        ("use_teacache=false", ("use_teacache", False)),
        ("prompt=", ("prompt", "")),
    ],
)
def test_a_value_is_json_where_it_is_json(text: str, field: tuple[str, Any]) -> None:
    assert assignment(text) == field


@pytest.mark.parametrize("text", ["seconds", "=3", ""])
def test_a_field_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="no field=value"):
        assignment(text)


def test_a_seed_is_drawn_each_time_unless_given() -> None:
    drawn = {compose({"prompt": "x"}, None, PICTURE, None)["seed"] for _ in range(3)}
    assert len(drawn) == 3
    assert min(drawn) >= 0
    assert compose({"prompt": "x", "seed": -1}, None, PICTURE, None)["seed"] >= 0
    assert compose({"prompt": "x", "seed": 7}, None, PICTURE, None)["seed"] == 7


def test_flags_lie_over_the_sidecar_file(tmp_path: Path) -> None:
    sidecar = tmp_path / "s.json"
    sidecar.write_text('{"prompt": "file", "video_length": 4, "seed": 1, "crf": 20}')
    found = compose({"prompt": "flag", "frames": 9}, sidecar, PICTURE, None)
    assert found == {"prompt": "flag", "frames": 9, "seed": 1, "crf": 20}


def test_an_end_frame_is_named_after_the_picture() -> None:
    found = compose({"prompt": "x"}, None, PICTURE, Path("/else/where/night.PNG"))
    assert found["last_image"] == "beach.last.PNG"
    with pytest.raises(RequestError, match="end frame"):
        compose({"prompt": "x", "last_image": "beach.last.jpg"}, None, PICTURE, None)


@pytest.mark.parametrize(
    ("age", "wanted"), [("90s", 90), ("45m", 2700), ("12h", 43200), ("1.5d", 129600), ("2W", 1209600)]
)
def test_ages(age: str, wanted: float) -> None:
    assert seconds(age) == wanted


@pytest.mark.parametrize("age", ["7", "d", "-1d", "1y", ""])
def test_what_is_no_age_says_what_is(age: str) -> None:
    with pytest.raises(FramepackError) as caught:
        seconds(age)
    assert "7d" in caught.value.hint


def test_numbers_as_people_say_them() -> None:
    ages = [wording.duration(each) for each in (0.4, 75, 200, 7500, 3e5)]
    assert ages == ["0 s", "75 s", "3 min", "2 h 5 min", "3 days"]
    assert [wording.size(each) for each in (812, 2048, 1.5 * 2**30, 2**41)] == [
        "812 B",
        "2 KiB",
        "1.5 GiB",
        "2 TiB",
    ]


def test_progress_in_words() -> None:
    now = {"section": 2, "sections": 3, "step": 5, "steps": 25, "fraction": 0.4, "eta_seconds": 75.2}
    assert wording.progress({"progress": now}) == "section 2/3, step 5/25, 75 s left"
    assert wording.progress({"progress": now | {"eta_seconds": None}}) == "section 2/3, step 5/25"
    assert wording.progress({"progress": None, "message": "waits for its turn"}) == "waits for its turn"
    assert wording.fraction({"progress": now}) == 0.4
    assert wording.fraction({}) == 0.0


def overview(**changes: Any) -> dict[str, Any]:
    return {
        "daemon": {"running": True},
        "paused": False,
        "troubles": [],
        "folders": {"inbox": "/in", "outputs": "/out", "queue": "/queue"},
        "counts": {"pending": 0, "processing": 0, "done": 0, "failed": 0},
        "processing": [],
        "pending": [],
        "done": [],
        "failed": [],
        "halves": [],
    } | changes


def shown(thing: Any, width: int = 80) -> str:
    console = Console(width=width, markup=False, emoji=False, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


def test_an_empty_queue_says_what_to_do() -> None:
    assert "Drop a picture and a sidecar into /in" in shown(table.queue(overview()))


def test_the_whole_queue_in_80_columns() -> None:
    progress = {"section": 1, "sections": 2, "step": 3, "steps": 4, "fraction": 0.375, "eta_seconds": 9.0}
    video = {"file": "c.mp4", "width": 64, "height": 96, "seconds": 1.5, "bytes": 2048}
    text = shown(
        table.queue(
            overview(
                paused=True,
                counts={"pending": 1234, "processing": 1, "done": 1, "failed": 1},
                processing=[{"job": "a" * 90 + "-1f3a9c02d4e5", "state": "processing", "progress": progress}],
                pending=[{"job": "b-1f3a9c02d4e5", "state": "pending", "message": "waits"}],
                done=[{"job": "c", "state": "done", "video": video, "finished_at": "2026-01-01T00:00:00Z"}],
                failed=[{"job": "d", "state": "failed", "error": {"message": "is blank", "hint": "say what"}}],
                halves=[{"name": "e.jpg", "waits_for": "e.json or e.txt"}],
            )
        )
    )
    assert max(map(len, text.splitlines())) <= 80
    for part in ("paused", "1,234 pending", "and 1,233 more", "38%", "step 3/4", "64x96, 1.50 s, 2 KiB", "ago"):
        assert part in text, part
    assert "is blank (say what)" in text
    assert "waits for e.json or e.txt" in text


def test_hostile_names_reach_no_terminal() -> None:
    row = {"job": HOSTILE, "state": "failed", "message": HOSTILE, "error": {"message": HOSTILE, "hint": HOSTILE}}
    text = shown(table.queue(overview(failed=[row], halves=[{"name": HOSTILE, "waits_for": HOSTILE}])), 200)
    text += shown(table.job(row | {"source": {"image": HOSTILE}, "request": {"prompt": HOSTILE}}), 200)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"a\x1b[2Jb\u202e[red]" in text


def test_one_job_in_full_shows_every_field_that_says_something() -> None:
    status = {
        "job": "beach-1",
        "state": "failed",
        "outcome": "cancelled",
        "message": "cancelled",
        "video": None,
        "request": {"prompt": "waves", "seconds": 5.0},
        "error": {"code": "x", "message": "broke", "hint": "mend it"},
    }
    text = shown(table.job(status))
    for part in ("failed (cancelled)", "request.prompt", "waves", "request.seconds", "5.0", "broke", "mend it"):
        assert part in text, part
    assert "video" not in text
