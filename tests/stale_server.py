"""A file system that passes on what it is asked for, and answers ESTALE where it is ordered to.

`stale_server.py REAL AT ORDERS` shows REAL at AT until it is killed. Every call on a path below a name that stands in
the file ORDERS fails as on NFS when the server no longer knows a handle; so do files that were opened before the last
order, for good. Nothing is cached, so an order counts at once.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import mfusepy


class PassingOn(mfusepy.Operations):
    """Does to one folder what it is asked to do to the share."""

    use_ns = True

    def __init__(self, real: str, orders: Path) -> None:
        self._real, self._orders = real, orders
        self._files: dict[int, tuple[str, int]] = {}  # the path by which each was opened, and when orders last changed

    def _path(self, path: str | None, handle: int | None = None) -> Path:
        """What a path stands for, or a file that was opened; OSError where that is stale."""
        opened, ordered = self._files[handle] if handle else (path, self._ordered())
        path = path or opened
        if path.split("/")[1] in self._orders.read_text().split() or ordered != self._ordered():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return Path(self._real + path)

    def _ordered(self) -> int:
        return self._orders.stat().st_mtime_ns

    def _opened(self, path: str, handle: int) -> int:
        self._files[handle] = path, self._ordered()
        return handle

    def getattr(self, path, fh=None):
        there = self._path(path, fh)
        found = there.lstat() if path else os.fstat(fh)
        names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
        times = {f"st_{kind}time": getattr(found, f"st_{kind}time_ns") for kind in "amc"}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path, _):
        found = {entry.name: entry.lstat() for entry in self._path(path).iterdir()}
        return [(name, {"st_mode": status.st_mode, "st_ino": status.st_ino}, 0) for name, status in found.items()]

    def statfs(self, path):
        found = os.statvfs(self._path(path))
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

    def open(self, path, flags):
        return self._opened(path, os.open(self._path(path), flags))

    def create(self, path, mode, fi=0):
        return self._opened(path, os.open(self._path(path), fi | os.O_CREAT, mode))

    def read(self, path, size, offset, fh):
        self._path(path, fh)
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        self._path(path, fh)
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self._path(path, fh) if path else fh, length)

    def flush(self, path, fh):
        self._path(path, fh)

    def fsync(self, path, _, fh):
        self._path(path, fh)
        os.fsync(fh)

    def fsyncdir(self, path, *_):
        self._path(path)

    def release(self, _, fh):
        del self._files[fh]
        os.close(fh)

    def rename(self, old, new):
        self._path(old).rename(self._path(new))

    def unlink(self, path):
        self._path(path).unlink()

    def mkdir(self, path, mode):
        self._path(path).mkdir(mode)

    def rmdir(self, path):
        self._path(path).rmdir()

    def chmod(self, path, mode):
        self._path(path).chmod(mode)


def _serve(real: str, at: str, orders: str) -> None:
    uncached = dict.fromkeys(("entry_timeout", "attr_timeout", "negative_timeout", "ac_attr_timeout"), 0)
    options = uncached | {"use_ino": True, "hard_remove": True, "direct_io": True}
    mfusepy.FUSE(PassingOn(real, Path(orders)), at, foreground=True, nothreads=True, fsname="stale-share", **options)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
