"""Writing, syncing and renaming, so that after a crash each thing is there whole or not at all.

A file is written under a hidden name beside its place, synced, renamed, and its folder synced. A move never replaces
what stands at the target, and syncs both parents. Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER_MODE = 0o2775  # setgid: what a share's users put in belongs to the folder's group
FILE_MODE = 0o664
_RENAME_NOREPLACE = 1  # linux/fs.h
_AT_FDCWD = -100  # fcntl.h
_ACL_VERSION, _ACL_USER, _ACL_GROUP, _ACL_OTHER = 2, 0x01, 0x04, 0x20  # linux/posix_acl_xattr.h, linux/posix_acl.h
_ACL_NOBODY = 0xFFFFFFFF  # an entry for no user or group by number
_CHUNK_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, sync_parent: bool = True) -> None:
    """Make `folder` and its missing parents, writable by the group, which new files inherit.

    Without `sync_parent`, it is durable with the first sync of the folder itself: file systems write in order.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        # Not every service may set the bit, nor every file system keep it; inside a shared folder it comes by itself.
        with contextlib.suppress(PermissionError):
            if stat.S_IMODE(folder.stat().st_mode) != FOLDER_MODE:
                folder.chmod(FOLDER_MODE)
        if sync_parent:
            sync_folder(folder.parent)


def let_group_write(folder: Path) -> None:
    """Have the group write what others make in `folder` from now on, whatever their umask; where it is not ours, or its
    file system keeps no access control lists, it stays as it is.
    """
    others = stat.S_IMODE(folder.stat().st_mode) & stat.S_IRWXO
    rights = ((_ACL_USER, stat.S_IRWXO), (_ACL_GROUP, stat.S_IRWXO), (_ACL_OTHER, others))
    entries = (struct.pack("<HHI", tag, right, _ACL_NOBODY) for tag, right in rights)
    with contextlib.suppress(OSError):
        os.setxattr(folder, "system.posix_acl_default", struct.pack("<I", _ACL_VERSION) + b"".join(entries))


def hidden_name(name: str) -> str:
    """A fresh hidden name for something that will be called `name`, at most 255 bytes long."""
    return f".{os.fsencode(name)[:200].decode(errors='ignore')}.{secrets.token_hex(4)}.tmp"


def write_bytes(path: Path, data: bytes, *, durable: bool = True, sync_parent: bool = True) -> None:
    """Replace `path` by a file holding `data`; readers see the old or the new one, whole.

    With `durable`, a power loss does not undo it either; without `sync_parent` only when the caller syncs the folder.
    """
    temporary = path.with_name(hidden_name(path.name))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable and sync_parent:
        sync_folder(path.parent)


def write_json(path: Path, value: dict[str, Any], *, durable: bool = True, sync_parent: bool = True) -> None:
    """`write_bytes` of `value` as JSON."""
    write_bytes(path, encode_json(value), durable=durable, sync_parent=sync_parent)


def encode_json(value: dict[str, Any]) -> bytes:
    """`value` as indented JSON in UTF-8; where a file name is not UTF-8, everything beyond ASCII is escaped."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, indent=2).encode() + b"\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None when there is none that can be read, or something that is no plain file."""
    try:
        with _open_plain(path) as stream:
            value = json.loads(stream.read())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            return None
        raise
    return value if isinstance(value, dict) else None


def move(source: Path, target: Path, *, sync_parents: bool = True) -> None:
    """Rename a file or folder to a name that must be free, and sync both parents, unless the caller does.

    Raises FileExistsError when the target is taken (even by an empty folder, which a plain rename would replace),
    FileNotFoundError when the source is gone, OSError (EXDEV) across file systems. An error that was reported although
    the rename was done, as network file systems do, is no error.
    """
    try:
        _rename_without_replacing(source, target)
    except OSError as error:
        done = (
            error.errno not in (errno.EEXIST, errno.EXDEV) and not os.path.lexists(source) and os.path.lexists(target)
        )
        if not done or error.errno == errno.ENOENT:
            raise
    if sync_parents:
        sync_move(source.parent, target.parent)


def sync_move(source: Path, target: Path) -> None:
    """Make what was moved from one folder to another survive a power loss: first that it is there."""
    sync_folder(target)
    if source != target:
        with contextlib.suppress(FileNotFoundError):
            sync_folder(source)


def _rename_without_replacing(source: Path, target: Path) -> None:
    result = _libc.renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_RENAME_NOREPLACE)
    )
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(source), None, str(target))
    # This file system (NFS, some FUSE) cannot do it in one call: look, and rename at once.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source), None, str(target))
    before = source.lstat()
    try:
        source.rename(target)
    except FileNotFoundError:
        # NFS says so when it repeats a rename whose first answer was lost.
        if not os.path.lexists(target) or not os.path.samestat(before, target.lstat()):
            raise


def copy(source: Path, target: Path, *, durable: bool = True) -> None:
    """Copy a plain file's content to `target`, which must be new, and sync it when `durable`."""
    with _open_plain(source) as reading, target.open("xb") as writing:
        shutil.copyfileobj(reading, writing, _CHUNK_BYTES)
        if durable:
            writing.flush()
            os.fsync(writing.fileno())


def remove_tree(folder: Path) -> None:
    """Remove a folder and what is in it, bearing with others that remove from it too."""
    shutil.rmtree(folder, ignore_errors=True)


def digest(path: Path, total: hashlib._Hash | None = None, role: str = "") -> tuple[int, str]:
    """(size in bytes, SHA-256 in hex) of a plain file.

    (role, length, bytes) of it are also added to `total`, when that is given.
    """
    own = hashlib.sha256()
    with _open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if total is not None:
            total.update(f"{role}\0{size}\0".encode())
        while chunk := stream.read(_CHUNK_BYTES):
            own.update(chunk)
            if total is not None:
                total.update(chunk)
    return size, own.hexdigest()


def _open_plain(path: Path) -> Any:
    """`path` opened for reading, without following a link or waiting for a pipe's writer."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` while it is being worked on, so that `is_locked` says so in other processes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether someone holds the lock of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
