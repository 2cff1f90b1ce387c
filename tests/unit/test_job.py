"""Ids and stems of jobs."""

from __future__ import annotations

import pytest

from framepack_daemon.job import JOB_ID, Run, job_id, safe_stem, stored_name


@pytest.mark.parametrize(
    ("stem", "safe"),
    [
        ("beach", "beach"),
        ("my beach", "my-beach"),
        ("e\u0301te", "éte"),
        ("海辺", "海辺"),
        ("a/b\\c:d*e?f", "a-b-c-d-e-f"),
        ("../../etc", "etc"),
        ("-rf", "rf"),
        ("new\nline\x1b[31m", "new-line-31m"),
        ("\u202egnp", "gnp"),
        ("🏖", "job"),
        ("\U0001f3d6\ufe0f", "job"),
        ("\U0001f3d6\ufe0f beach", "beach"),
        ("हिन्दी", "हिन्दी"),
        ("con", "con"),
        (".", "job"),
        ("...", "job"),
        ("\udcff\udcfe", "job"),
        ("", "job"),
        ("x" * 300, "x" * 100),
        ("é" * 100, "é" * 50),
        ("beach.v2", "beach.v2"),
    ],
)
def test_a_stem_is_what_paths_and_urls_can_carry(stem: str, safe: str) -> None:
    assert safe_stem(stem) == safe
    assert JOB_ID.fullmatch(job_id(stem, "0123456789abcdef" * 4))


def test_files_called_like_our_records_are_stored_under_another_name() -> None:
    assert stored_name("job.json") == "dropped-job.json"
    assert stored_name("Run.JSON") == "dropped-Run.JSON"
    assert stored_name("beach.json") == "beach.json"


def test_a_record_survives_being_written_and_read() -> None:
    run = Run("beach-0123456789ab", (), "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z", videos=("ab",))
    assert Run.from_dict(run.as_dict()) == run


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"role": "nonsense"}]},
        {"files": [{"role": "image", "name": "../x", "original": "x", "bytes": 1, "sha256": ""}]},
        {"files": [{"role": "image", "name": 5, "original": "x", "bytes": 1, "sha256": ""}]},
        {"files": None},
        {"more": 1},
        {"job": 1},
        {"job": "../x"},
        {"job": ""},
        {"priority": "high"},
        {"priority": None},
        {"attempts": 1.5},
        {"queued_at": 5},
        {"videos": None},
    ],
)
def test_what_is_no_record_is_not_taken_for_one(change: dict[str, object]) -> None:
    time = "2026-01-01T00:00:00.000000Z"
    whole = Run("beach-0123456789ab", (), time, time).as_dict()
    assert Run.from_dict(whole)
    with pytest.raises((KeyError, TypeError, ValueError)):
        Run.from_dict(whole | change)
    with pytest.raises((KeyError, TypeError, ValueError)):
        Run.from_dict({})
