"""What the name of a dropped file says, one line for each writer's names."""

from __future__ import annotations

import unicodedata

import pytest

from framepack_daemon.spool import names
from framepack_daemon.spool.names import Kind

FOREIGN = """
.hidden.json
.syncthing.beach.jpg.tmp
~syncthing~beach.jpg.tmp
.stfolder
.stignore
.stversions
.beach.jpg.Ab3dEf
.~tmp~
.rsync-partial
beach.jpg.1a2b3c4d.partial
.beach.jpg.~1a2b
._sync_1234.db
._sync_1234.db-wal
.sync_1234.db
.csync_journal.db
.owncloudsync.log.1
beach.jpg.ocTransferId1234.part
.unison.beach.jpg.1234.unison.tmp
.bak.0.beach.jpg
.in.beach.jpg
.in.beach.jpg.
beach.jpg.lftp-pget-status
beach.jpg.filepart
beach.jpg.!sync
beach.bts
beach.jpg.bts
beach.jpg.conflict1
beach.json.conflict2
.in.beach.json.
.~lock.beach.txt#
~syncthing~beach.json.tmp
.goutputstream-ABCDEF
beach.jpg.swp
beach-1F3A9C02D4E5.STATUS.JSON
.sync
.SyncPart
.SyncTemp
.dropbox
.dropbox.cache
.tmp.drivedownload
.tmp.driveupload
.@__thumb
.DS_Store
._beach.jpg
.Trashes
.Spotlight-V100
.fseventsd
.TemporaryItems
Icon\r
Thumbs.db
thumbs.DB
desktop.ini
~$beach.json
~beach.tmp
.~lock.beach.json#
beach.jpg.part
beach.jpg.crdownload
beach.jpg.download
.beach.json.swp
.beach.json.swo
beach.json~
beach.jpg~
.#beach.json
4913
.nfs000000000123
.fuse_hidden0001
README.md
beach
.json
.jpg
beach-1f3a9c02d4e5.status.json
beach-1f3a9c02d4e5.poster.jpg
beach-1f3a9c02d4e5.preview.mp4
beach-1f3a9c02d4e5.partial.mp4
beach-1f3a9c02d4e5.step.jpg
beach-1f3a9c02d4e5.webp
beach-1f3a9c02d4e5.gif
beach.mp4.part
defaults.json
Defaults.JSON
""".strip("\n").split("\n")

CONFLICTS = """
beach.sync-conflict-20261124-081500-ABCDEFG.jpg
beach.sync-conflict-20261124-081500-ABCDEFG.json
beach (conflicted copy 2026-11-24 081500).jpg
beach_conflict-20261124-081500.jpg
beach (Anna's conflicted copy 2026-11-24).json
beach.conflict1.json
""".strip().split("\n")

FOLDERS_LEFT_ALONE = """
@eaDir
@SynoEAStream
@SynoResource
#recycle
#snapshot
@tmp
.@__thumb
@Recycle
@Recently-Snapshot
__MACOSX
$RECYCLE.BIN
System Volume Information
lost+found
.Trash-1000
.stversions
.sync
pending
Processing
done
FAILED
""".strip().split("\n")


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_and_own_names_are_never_a_drop(name: str) -> None:
    assert names.read(name) is None


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_conflict_copy_is_seen_as_one(name: str) -> None:
    read = names.read(name)
    assert read is not None
    assert read.conflict


@pytest.mark.parametrize("name", FOLDERS_LEFT_ALONE)
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
