"""Real file systems for tests, that fill up, turn read-only, break and go away; all of them are taken away in the end.

A disk is an image in a loop device, so that it can be unmounted while a daemon works on it and be mounted again with
what is on it. Needs root.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

_EXT4_IOC_SHUTDOWN = 0x8004587D  # linux/ext4.h: _IOR('X', 125, __u32)
_SHUTDOWN_WITHOUT_LOG = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH
_FILLER = ".filler"  # hidden: in a drop folder it is left alone
_CHUNK_BYTES = 1 << 16
_QUOTA = "2M"
SUBVOLUME = "limited"
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-m", "0", "-N", "4096"),
    "btrfs": ("mkfs.btrfs", "-q"),
}
_SIZE_MIB = {"ext4": 12, "btrfs": 120}  # the smallest that btrfs takes is 109


def _do(*words: str | Path) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout.strip()


class Disk:
    """A file system of its own at one folder."""

    def __init__(self, kind: str, at: Path, image: Path) -> None:
        """Make and mount it; a btrfs has a quota, and `at` is the part of it that the quota limits."""
        self.at = at
        at.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as stream:
            stream.truncate(_SIZE_MIB[kind] << 20)
        _do(*_MAKE[kind], image)
        self._options = ["-o", f"subvol={SUBVOLUME}"] if kind == "btrfs" else []
        self._image = image
        self.device = _do("losetup", "--find", "--show", image)
        if kind == "btrfs":
            _do("mount", self.device, at)
            _do("btrfs", "quota", "enable", at)
            _do("btrfs", "subvolume", "create", at / SUBVOLUME)
            _do("btrfs", "qgroup", "limit", _QUOTA, at / SUBVOLUME)
            _do("umount", at)
        self._mount()

    def _mount(self) -> None:
        _do("mount", *self._options, self.device, self.at)

    def remove(self) -> None:
        """Unmount it, however many times it is mounted, and let go of the device."""
        while subprocess.run(["umount", "--lazy", str(self.at)], check=False, capture_output=True).returncode == 0:
            pass
        _do("losetup", "--detach", self.device)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """No byte can be written: the disk is full, or the quota used up."""
        filler = self.at / _FILLER
        try:
            for chunk in (_CHUNK_BYTES, 4096, 1):
                with contextlib.suppress(OSError), filler.open("ab", buffering=0) as stream:
                    while stream.write(os.urandom(chunk)):
                        os.fsync(stream.fileno())
            yield
        finally:
            filler.unlink()
            _do("sync", "-f", self.at)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be changed by a path; a read-only mount lies over it, for files are open in the other one."""
        _do("mount", "--bind", self.at, self.at)
        _do("mount", "-o", "remount,bind,ro", self.at)
        try:
            yield
        finally:
            _do("umount", "--lazy", self.at)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The empty folder shows over which it was mounted."""
        _do("umount", "--lazy", self.at)
        try:
            yield
        finally:
            self._mount()

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """Every write gives an input/output error; then the disk comes back as another device, as a share does.

        What the kernel has read before is still read.
        """
        descriptor = os.open(self.at, os.O_RDONLY)
        _do("sync", "-f", self.at)
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _SHUTDOWN_WITHOUT_LOG))
        os.close(descriptor)
        try:
            yield
        finally:
            _do("umount", "--lazy", self.at)
            _do("losetup", "--detach", self.device)  # gone when the last file on it is closed
            self.device = _do("losetup", "--find", "--show", self._image)
            self._mount()


@contextlib.contextmanager
def disks(kind: str, store: Path, *folders: Path) -> Iterator[dict[str, Disk]]:
    """A disk at each folder, by the folder's name."""
    made: dict[str, Disk] = {}
    try:
        for folder in folders:
            made[folder.name] = Disk(kind, folder, store / f"{folder.name}.img")
        yield made
    finally:
        for disk in made.values():
            disk.remove()


@contextlib.contextmanager
def bound(folder: Path, at: Path) -> Iterator[None]:
    """`folder` also at `at`: one device, and yet no rename reaches from one to the other."""
    at.mkdir()
    _do("mount", "--bind", folder, at)
    try:
        yield
    finally:
        _do("umount", "--lazy", at)
