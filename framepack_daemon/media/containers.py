"""What a video file is, by its first bytes, and whether it is all there, by the structure of its container.

`recognise` names the container, or says why the file is none of ours or not whole: boxes of an MP4 or MOV lead to the
end of the file and one of them is the index, the segment of a Matroska or WebM is as long as it says. Decoders are more
lenient. Reads a few bytes of each box and does not decode; a hole inside is not seen here.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from framepack_daemon.errors import ClipError, ClipIncompleteError

HEAD_BYTES = 64  # what it takes to tell the container, and how long a Matroska file is
ZERO_TAIL_BYTES = 512  # a file whose tail is still to be written ends in zeros

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_PADDING = (b"free", b"skip")  # boxes that may be full of zeros
_BOX_HEAD = struct.Struct(">I4s")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # the elements that a Matroska file is made of
_WAIT = "wait until it is copied, or copy it again"


def recognise(file: BinaryIO) -> str:
    """FFmpeg's name of the container in `file`.

    Raises `ClipIncompleteError` when a part is missing or still zeros, `ClipError` for other content.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if size < HEAD_BYTES or not any(head):
        raise ClipIncompleteError("has no content yet", hint=_WAIT)
    if head.startswith(_EBML):
        kind, whole = "matroska", _matroska_ends(head, size) and _has_tail(file, size)
    elif head[4:8] in _FIRST_BOXES:
        kind, whole = "mp4", _mp4_ends(file, size)
    else:
        raise ClipError(
            "is not a video that can be read here (MP4, MOV, MKV, WebM)", hint="convert it to MP4 and drop that"
        )
    if not whole:
        raise ClipIncompleteError("ends too early", hint=_WAIT)
    file.seek(0)
    return kind


def _mp4_ends(file: BinaryIO, size: int) -> bool:
    """Whether box follows box up to the end of the file, one of them the index (ISO/IEC 14496-12, section 4.2)."""
    position, indexed, name = 0, False, b""
    while position < size:
        file.seek(position)
        head = file.read(16)
        if len(head) < _BOX_HEAD.size:
            return False
        length, name = _BOX_HEAD.unpack_from(head)
        if length == 1 and len(head) == 16:  # noqa: PLR2004 - the true length stands behind the name
            length = int.from_bytes(head[8:], "big")
        elif length == 0:  # this box goes on to the end of the file, unless it is a hole
            length = size - position if any(name) else 0
        if length < _BOX_HEAD.size:
            return False
        indexed = indexed or name == b"moov"
        position += length
    return indexed and position == size and (name in _PADDING or _has_tail(file, size))


def _matroska_ends(head: bytes, size: int) -> bool:
    """Whether the segment is there to its end, where it says how long it is: a live recording does not (RFC 9559)."""
    try:
        _, length, start = _element(head, 0)
        name, length, start = _element(head, start + (length or 0))
    except IndexError:
        return True  # an unusual head, which the decoder may know
    return name != _SEGMENT or length is None or start + length <= size


def _element(data: bytes, position: int) -> tuple[bytes, int | None, int]:
    """(id, length or None where it is unknown, place of the content) of an element (RFC 8794, sections 4 to 6)."""
    width = _width(data[position])
    name, position = data[position : position + width], position + width
    width = _width(data[position])
    ones = (1 << 7 * width) - 1
    length = int.from_bytes(data[position : position + width], "big") & ones
    return name, None if length == ones else length, position + width


def _width(first: int) -> int:
    """Bytes of a number of variable length, by its first byte."""
    return 9 - first.bit_length()


def _has_tail(file: BinaryIO, size: int) -> bool:
    file.seek(max(size - ZERO_TAIL_BYTES, 0))
    return any(file.read())
