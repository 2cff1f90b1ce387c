from __future__ import annotations

from pathlib import Path

import pytest

from framepack_daemon.spool import mounts

ROOT = "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that is read for what is mounted."""
    path = tmp_path / "mountinfo"
    monkeypatch.setattr(mounts, "_MOUNTS", path)
    return path


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("30 22 0:40 / /mnt/nas rw - nfs4 nas:/videos rw", True),
        ("30 22 254:0 /disk /mnt/nas rw - ext4 /dev/vda rw", True),  # another folder of the same disk
        ("30 22 254:0 /mnt/nas /mnt/nas rw - ext4 /dev/vda rw", False),  # itself
        ("30 99 254:0 /mnt/nas /mnt/nas rw - ext4 /dev/vda rw", True),  # nobody knows on what
    ],
)
def test_a_folder_mounted_onto_itself_is_no_mount_point(table: Path, line: str, is_one: bool) -> None:
    table.write_text(f"{ROOT}\n{line}\n")
    assert mounts.mount_point(Path("/mnt/nas/inbox")) == Path("/mnt/nas" if is_one else "/")


def test_a_share_beneath_a_folder_mounted_onto_itself_counts(table: Path) -> None:
    share, itself = "0:40 / /mnt/my\\040nas rw - nfs4 nas:/ rw", "0:40 / /mnt/my\\040nas ro - nfs4 nas:/ rw"
    table.write_text(f"{ROOT}\n30 22 {share}\n31 30 {itself}\n32 31 0:40 /in /mnt/my\\040nas/in rw - nfs4 nas:/ rw\n")
    assert mounts.mount_point(Path("/mnt/my nas/in")) == Path("/mnt/my nas")


def test_a_disk_of_subvolumes_is_told_apart_by_what_it_shows(table: Path) -> None:
    top, itself = "22 1 0:30 /@ / rw - btrfs /dev/vda rw", "30 22 0:30 /@/srv /srv rw - btrfs /dev/vda rw"
    table.write_text(f"{top}\n{itself}\n31 22 0:30 /@home /home rw - btrfs /dev/vda rw\n")
    assert mounts.mount_point(Path("/srv/inbox")) == Path("/")
    assert mounts.mount_point(Path("/home/inbox")) == Path("/home")
