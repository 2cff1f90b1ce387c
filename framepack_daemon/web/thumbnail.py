"""Small pictures for lists and cards, made by a helper process: what is in the folders may come from strangers.

Run as the helper it reads a picture from standard input and prints a JPEG in base64. Those asked for last are kept in
memory, by the identity of their file.
"""

from __future__ import annotations

import base64
import functools
import io
import sys
from pathlib import Path

from framepack_daemon.errors import ImageError, ImageIncompleteError
from framepack_daemon.media import helper, image

SIDE = 320  # pixels of the longer side
QUALITY = 80  # of the JPEG
KEPT = 512  # some 10 kB each
TIMEOUT_SECONDS = 20.0

_ERRORS = helper.Errors("picture", ImageError, ImageIncompleteError, too_slow="save it again, smaller")


def make(path: Path) -> bytes:
    """A JPEG of the picture at `path`; `ImageError` when there can be none, OSError when it cannot be opened."""
    found = path.lstat()
    return _make(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(KEPT)
def _make(path: Path, _identity: tuple[int, ...]) -> bytes:
    said = helper.ask(__spec__.name, path, errors=_ERRORS, timeout_seconds=TIMEOUT_SECONDS)
    return base64.b64decode(said["jpeg"])


def warm() -> None:
    """Load what every helper needs."""
    image.warm()


def main(arguments: list[str]) -> None:
    """The helper."""

    def shrink() -> dict[str, str]:
        picture = image.decode(sys.stdin.buffer)
        picture.thumbnail((SIDE, SIDE))
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=QUALITY)
        return {"jpeg": base64.b64encode(jpeg.getvalue()).decode()}

    (cpu_seconds,) = map(int, arguments)
    helper.answer(shrink, errors=_ERRORS, memory_bytes=image.HELPER_MEMORY_BYTES, cpu_seconds=cpu_seconds)
