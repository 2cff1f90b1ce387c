"""Writing, moving and reading so that nothing is torn or replaced, on a real folder."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from pathlib import Path

import pytest

from framepack_daemon import atomic

OTHER_FILE_SYSTEM = Path("/dev/shm")


class Old:
    """A C library on a file system that does not know the flag, such as NFS."""

    @staticmethod
    def renameat2(*_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1


def names(folder: Path) -> list[str]:
    """What lies in the folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"one", b"two"):
        atomic.write_bytes(path, data)
        assert path.read_bytes() == data
    assert names(tmp_path) == ["a.json"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    (path / "within").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        atomic.write_bytes(path, b"new")
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, os.fsdecode(b"caf\xe9.png"), "\U0001f3d6" * 60])
def test_a_hidden_name_can_be_that_of_a_file(tmp_path: Path, name: str) -> None:
    hidden = tmp_path / atomic.hidden_name(name)
    hidden.touch()
    assert hidden.name.startswith(".")
    assert hidden.name != atomic.hidden_name(name)


def test_json_survives_names_that_are_no_utf8(tmp_path: Path) -> None:
    value = {"name": os.fsdecode(b"caf\xe9"), "text": "é"}
    atomic.write_json(tmp_path / "a", value)
    assert atomic.read_json(tmp_path / "a") == value
    (tmp_path / "a").read_bytes().decode("utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}\0'])
def test_what_is_no_json_object_reads_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert atomic.read_json(tmp_path / "a") is None


def test_what_is_no_plain_file_reads_as_none_at_once(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "loop", "folder", "pipe", "absent", "real/within"):
        assert atomic.read_json(tmp_path / name) is None
    assert atomic.read_json(tmp_path / "real") == {}


@pytest.mark.parametrize("library", ["this", "old"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_move_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, library: str) -> None:
    if library == "old":
        monkeypatch.setattr(atomic, "_libc", Old)
    source, target = tmp_path / "a", tmp_path / "b"
    for path in (source, target):
        path.write_text(path.name) if kind == "file" else path.mkdir()
    with pytest.raises(FileExistsError):
        atomic.move(source, target)
    assert source.exists()
    assert target.exists()
    target.unlink() if kind == "file" else target.rmdir()
    atomic.move(source, target)
    assert names(tmp_path) == ["b"]


def test_a_move_onto_a_dangling_link_does_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        atomic.move(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").is_symlink()


def test_what_is_gone_cannot_be_moved_though_the_target_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic.move(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").touch()
    with pytest.raises((FileNotFoundError, FileExistsError)):
        atomic.move(tmp_path / "a", tmp_path / "b")


def test_a_move_to_another_file_system_says_so_and_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match="cross-device") as caught:
        atomic.move(tmp_path / "a", OTHER_FILE_SYSTEM / f"framepack-test-{os.getpid()}")
    assert caught.value.errno == errno.EXDEV
    assert (tmp_path / "a").exists()


def test_a_rename_that_was_done_but_reported_an_error_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("x")

    def lying(old: Path, new: Path) -> None:
        old.rename(new)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic, "_rename_without_replacing", lying)
    atomic.move(source, target)
    assert target.read_text() == "x"


def test_a_rename_that_was_repeated_over_the_network_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("x")
    rename = Path.rename

    def repeated(old: Path, new: Path) -> Path:
        rename(old, new)
        return rename(old, new)

    monkeypatch.setattr(atomic, "_libc", Old)
    monkeypatch.setattr(Path, "rename", repeated)
    atomic.move(source, target)
    assert target.read_text() == "x"


def test_an_error_of_a_rename_that_was_not_done_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()

    def broken(old: Path, new: Path) -> None:  # noqa: ARG001  the signature of what it stands for
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic, "_rename_without_replacing", broken)
    with pytest.raises(OSError, match="Input/output"):
        atomic.move(tmp_path / "a", tmp_path / "b")


def test_a_copy_is_of_a_file_and_to_a_new_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    atomic.copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"content"
    with pytest.raises(FileExistsError):
        atomic.copy(tmp_path / "a", tmp_path / "b")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        atomic.copy(tmp_path / "link", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_digest_tells_roles_and_borders_of_files_apart(tmp_path: Path) -> None:
    (tmp_path / "ab").write_bytes(b"ab")
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")

    def total(*parts: tuple[str, str]) -> str:
        whole = hashlib.sha256()
        for name, role in parts:
            atomic.digest(tmp_path / name, whole, role)
        return whole.hexdigest()

    totals = [
        total(("ab", "image")),
        total(("a", "image"), ("b", "image")),
        total(("a", "image"), ("b", "sidecar")),
        total(("a", "sidecar"), ("b", "image")),
    ]
    assert len(set(totals)) == 4
    assert atomic.digest(tmp_path / "ab") == (2, hashlib.sha256(b"ab").hexdigest())


def test_a_folder_in_work_is_locked_for_others_and_free_afterwards(tmp_path: Path) -> None:
    with atomic.locked(tmp_path):
        assert atomic.is_locked(tmp_path)
    assert not atomic.is_locked(tmp_path)


def test_folders_are_the_group_s_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        atomic.make_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o2775
