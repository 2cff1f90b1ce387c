"""What the name of a dropped file says; the names of other writers stand in `foreign_names`."""

from __future__ import annotations

import unicodedata

import pytest
from foreign_names import CONFLICTS, FILES, FOLDERS, PRESETS

from framepack_daemon.spool import names
from framepack_daemon.spool.names import Kind


@pytest.mark.parametrize("name", [*(name for _, name in FILES), *PRESETS])
def test_foreign_and_own_names_are_never_a_drop(name: str) -> None:
    assert names.read(name) is None


@pytest.mark.parametrize("name", [name for _, name in CONFLICTS])
def test_a_conflict_copy_is_seen_as_one(name: str) -> None:
    read = names.read(name)
    assert read is not None
    assert read.conflict


@pytest.mark.parametrize("name", [name for _, name in FOLDERS])
def test_foreign_folders_are_never_presets(name: str) -> None:
    assert not names.may_hold_drops(name)


@pytest.mark.parametrize(
    ("name", "stem", "kind"),
    [
        ("beach.jpg", "beach", Kind.IMAGE),
        ("beach.PNG", "beach", Kind.IMAGE),
        ("Beach.jpg", "Beach", Kind.IMAGE),
        ("my beach (2).webp", "my beach (2)", Kind.IMAGE),
        ("beach.v2.json", "beach.v2", Kind.SIDECAR),
        ("beach.JSON", "beach", Kind.SIDECAR),
        ("beach.txt", "beach", Kind.PROMPT),
        ("beach.json.txt", "beach", Kind.SIDECAR),
        ("beach.JSON.TXT", "beach", Kind.SIDECAR),
        ("json.txt", "json", Kind.PROMPT),
        ("beach.last.jpg", "beach", Kind.END_FRAME),
        ("beach.LAST.PNG", "beach", Kind.END_FRAME),
        ("last.jpg", "last", Kind.IMAGE),
        ("海辺.jpg", "海辺", Kind.IMAGE),
        ("🏖.jpg", "🏖", Kind.IMAGE),
        ("-rf.jpg", "-rf", Kind.IMAGE),
        (unicodedata.normalize("NFD", "été.jpg"), unicodedata.normalize("NFC", "été"), Kind.IMAGE),
        ("slow zoom-1f3a9c02d4e5.jpg", "slow zoom-1f3a9c02d4e5", Kind.IMAGE),
        ("beach.mp4", "beach", Kind.VIDEO),
        ("beach.MOV", "beach", Kind.VIDEO),
        ("beach.last.mkv", "beach.last", Kind.VIDEO),
        ("beach-1f3a9c02d4e5.2.webm", "beach-1f3a9c02d4e5.2", Kind.VIDEO),
    ],
)
def test_a_name_says_stem_and_kind(name: str, stem: str, kind: Kind) -> None:
    read = names.read(name)
    assert read is not None
    assert (read.stem, read.kind, read.conflict) == (stem, kind, False)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("more.mp4", "more.mp4", True),
        ("more.MP4", "more.mp4", True),
        (unicodedata.normalize("NFD", "été.mp4"), unicodedata.normalize("NFC", "été.mp4"), True),
        ("More.mp4", "more.mp4", False),
        ("more.mov", "more.mp4", False),
        ("more", "more.mp4", False),
    ],
)
def test_names_of_one_file_are_told_as_stems_and_extensions_are(one: str, other: str, *, same: bool) -> None:
    assert names.is_same(one, other) is same


@pytest.mark.parametrize(("name", "video"), [("more.MKV", True), ("beach-1f3a9c02d4e5", False), ("mp4", False)])
def test_a_video_is_told_from_the_id_of_a_job(name: str, *, video: bool) -> None:
    assert names.is_video(name) is video
