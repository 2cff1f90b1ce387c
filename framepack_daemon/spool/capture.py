"""Taking files out of a drop folder so that each is there or here at every moment, and putting them back.

A file is taken by one rename, which no writer can tear; then it is looked at, and if it is not what was judged before,
everything goes back. Where the drop folder is on another file system, the rename goes to a hidden folder beside the
drop, and what was taken there is copied. Knows nothing of jobs; `add.py` makes one of what was captured.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from framepack_daemon import atomic
from framepack_daemon.errors import DropError

HIDDEN_FOLDER = ".framepack-daemon"  # in each drop folder: the lock, and files on their way to another file system
ORIGIN_FILE = ".origin.json"  # in a folder of captured files: where they came from


class DropChangedError(DropError):
    """A file of the drop changed or went away while it was being taken; nothing was taken."""

    code = "drop_changed"
    retryable = True


@dataclass(frozen=True)
class Signature:
    """What of a file changes when someone writes it or puts another in its place."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int

    @property
    def content(self) -> tuple[int, int, int]:
        """The part that a rename leaves as it is."""
        return self.inode, self.bytes, self.modified_ns


@dataclass(frozen=True)
class Source:
    """A file to be taken: where it is, what it is to be called, and what it was when it was judged."""

    path: Path
    name: str
    signature: Signature


def signature(path: Path) -> Signature | None:
    """The signature of a plain file; None when there is none (a link, a pipe, nothing)."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return Signature(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def capture(sources: Iterable[Source], folder: Path, place: Path) -> None:
    """Take every source out of `folder` into `place`.

    The caller syncs both folders when it has put into `place` what else belongs there: a file system makes a rename
    durable in one folder and the other at once. Raises `DropChangedError`, or OSError (EXDEV where a rename cannot
    reach `place`), after putting everything back.
    """
    sources = list(sources)
    names = {source.name: source.path.name for source in sources}
    try:
        atomic.write_json(place / ORIGIN_FILE, {"folder": str(folder), "names": names})
        for source in sources:
            atomic.move(source.path, place / source.name, sync_parents=False)
        for source in sources:
            _expect(place / source.name, source)
            _own(place / source.name)
    except FileNotFoundError as error:
        give_back(place)
        raise DropChangedError(f"{error.filename}: went away while it was being taken") from error
    except (OSError, DropChangedError):
        give_back(place)
        raise


def capture_beside(sources: Iterable[Source], folder: Path, build: Path) -> Path:
    """Take every source into a hidden folder beside the drop, and copy it into `build`; that hidden folder.

    For a `build` that a rename cannot reach. The caller gives the hidden folder to `discard` when the job stands, or to
    `release`; after an error everything was put back. A mirroring tool may delete the hidden folder at any moment, and
    brings again what it deleted.
    """
    sources = list(sources)
    beside = folder / HIDDEN_FOLDER / secrets.token_hex(8)
    try:
        atomic.make_folder(beside)
        capture(sources, folder, beside)
        atomic.sync_move(folder, beside)
        for source in sources:
            atomic.copy(beside / source.name, build / source.name)
    except FileNotFoundError as error:
        release(beside)
        raise DropChangedError(f"{error.filename}: went away while it was being taken") from error
    except (OSError, DropChangedError):
        release(beside)
        raise
    return beside


def _expect(path: Path, source: Source) -> None:
    found = signature(path)
    if found is None or found.content != source.signature.content:
        raise DropChangedError(f"{source.path.name}: changed while it was being taken")


def _own(path: Path) -> None:
    """Make the file ours alone: durable, and a copy where another name of it lets others write it."""
    if path.stat().st_nlink > 1:
        twin = path.with_name(atomic.hidden_name(path.name))
        atomic.copy(path, twin)
        twin.replace(path)
    else:
        # Unreadable files are refused later, with their reason; what counts here is that they are not lost.
        with contextlib.suppress(PermissionError):
            atomic.sync_file(path)


def give_back(place: Path) -> list[Path]:
    """Put captured files back where they came from; the paths they have now.

    One that was brought again meanwhile, with the same content, is not needed any more. Where a newer file has a name
    already, the whole set goes back under another stem, so that nothing is replaced.
    """
    origin = atomic.read_json(place / ORIGIN_FILE)
    if origin is None:
        return []
    folder, names = Path(origin["folder"]), origin["names"]
    held = {stored: name for stored, name in names.items() if os.path.lexists(place / stored)}
    atomic.make_folder(folder)  # a preset's folder may have been removed meanwhile
    for stored in [stored for stored, name in held.items() if _is_same(place / stored, folder / name)]:
        (place / stored).unlink()
        del held[stored]
    back: list[Path] = []
    for number in range(10_000):
        targets = {stored: folder / _numbered(name, number) for stored, name in held.items()}
        if not any(os.path.lexists(target) for target in targets.values()):
            if number:
                # Written down first, so that a crash in between does not tear the set apart.
                renamed = {stored: target.name for stored, target in targets.items()}
                atomic.write_json(place / ORIGIN_FILE, origin | {"names": renamed})
            try:
                for stored, target in targets.items():
                    atomic.move(place / stored, target)
                    back.append(target)
            except FileExistsError:  # it came again at this very moment
                return back + give_back(place)
            break
    return back


def _is_same(one: Path, other: Path) -> bool:
    """Whether both hold the same bytes, and the other on disk too; what cannot be read is not the same."""
    mine, yours = signature(one), signature(other)
    if mine is None or yours is None or mine.bytes != yours.bytes:
        return False
    try:
        atomic.sync_file(other)
        return atomic.digest(one) == atomic.digest(other)
    except OSError:
        return False


def release(place: Path) -> None:
    """Put captured files back and remove their folder; it stays when something could not be put back."""
    give_back(place)
    names = (atomic.read_json(place / ORIGIN_FILE) or {}).get("names", {})
    if any(os.path.lexists(place / stored) for stored in names):
        return
    with contextlib.suppress(FileNotFoundError):
        # Where they came from goes last: as long as it is known, a crash leads here again.
        for path in place.iterdir():
            if path.name != ORIGIN_FILE:
                path.unlink()
    atomic.remove_tree(place)


def release_all(folder: Path) -> None:
    """Put back what was left half taken beside the drops of a folder."""
    for place in sorted((folder / HIDDEN_FOLDER).glob("*/")):
        release(place)


def discard(place: Path) -> None:
    """Remove captured files that have become a job; what a crash leaves of them is not given back."""
    (place / ORIGIN_FILE).unlink(missing_ok=True)
    atomic.remove_tree(place)


@contextlib.contextmanager
def forgotten_origin(place: Path) -> Iterator[None]:
    """Forget where the files of `place` came from when the block has moved it, wherever it is then."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ORIGIN_FILE, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def _numbered(name: str, number: int) -> str:
    if number == 0:
        return name
    stem, dot, rest = name.partition(".")
    return f"{stem} (restored {number}){dot}{rest}"
