"""What a picture file is, by its first bytes, and whether it is all there, by how it ends.

`recognise` names the format or says why the file is none of ours; `require_end` walks the file's own structure to its
end: markers of a JPEG, chunks of a PNG or WebP, blocks of a GIF, boxes of an AVIF. Decoders are more lenient: they take
half a file, or one whose tail is still zeros. Works on bytes alone and does not decode; a hole inside is not seen here.
"""

from __future__ import annotations

import re
import struct

from framepack_daemon.errors import ImageError, ImageIncompleteError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow's names; it never tries another decoder
CONVERT = "convert it to JPEG or PNG and drop that"
HEAD_BYTES = 16  # what it takes to tell the format
# A file whose tail is still to be written ends in zeros. Not fewer than these: a lossy WebP of 640x640 pixels in one
# colour ends in 43 of them by itself.
ZERO_TAIL_BYTES = 512

_FILL, _EOI, _SOS = 0xFF, 0xD9, 0xDA  # what begins a marker; end of image, start of scan
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})  # those without a length: TEM and the restarts
# Inside a scan 0xFF is followed by 0 (a byte 0xFF), 0xD0-0xD7 (restart) or 0xFF (fill); anything else ends the scan.
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PNG_CHUNK = re.compile(rb"[A-Za-z]{4}")
_OURS = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"BM"), "BMP"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
)
_FOREIGN = (
    (re.compile(rb"%PDF"), "a PDF"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "an EPS"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(svg|\?xml|!DOCTYPE|html)", re.IGNORECASE), "an SVG or a web page"),
    (re.compile(rb"8BPS"), "a Photoshop file"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000"),
)


def recognise(data: bytes) -> str:
    """The format of the picture in `data`, one of `FORMATS`.

    Raises `ImageIncompleteError` when the first bytes are missing or still zeros, `ImageError` for other content.
    """
    head = data[:HEAD_BYTES]
    if len(head) < HEAD_BYTES or not any(head):
        raise ImageIncompleteError("has no content yet", hint="wait until it is copied, or copy it again")
    for pattern, kind in _OURS:
        if pattern.match(head):
            return kind
    if head[4:8] == b"ftyp":
        return _recognise_brand(data)
    for pattern, name in _FOREIGN:
        if pattern.match(data):
            raise ImageError(f"is {name}, whatever it is called", hint=CONVERT)
    raise ImageError(f"is not a picture that can be read here ({', '.join(FORMATS)})", hint=CONVERT)


def _recognise_brand(data: bytes) -> str:
    """AVIF and HEIC share their container; the brands at its front tell which it is."""
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    if re.search(rb"hei[cxms]|hev[cxms]|mif1|msf1", brands):
        raise ImageError("is a HEIC picture, which cannot be read here", hint=CONVERT)
    raise ImageError("is a video or another file of that family, not a picture", hint=CONVERT)


def require_end(data: bytes, kind: str) -> None:
    """Raises `ImageIncompleteError` unless the picture in `data`, of format `kind`, ends as it should.

    What cameras append behind the end is allowed. TIFF and BMP have no end of their own: there only the decoder tells.
    """
    if not any(data[-ZERO_TAIL_BYTES:]):
        raise ImageIncompleteError(
            f"ends in {ZERO_TAIL_BYTES} zero bytes, as if the rest were still to come",
            hint="wait until it is copied; if it is whole and black there, save it as PNG",
        )
    ends = {"JPEG": _jpeg_ends, "PNG": _png_ends, "GIF": _gif_ends, "WEBP": _webp_ends, "AVIF": _avif_ends}.get(kind)
    try:
        complete = ends is None or ends(data)
    except (IndexError, struct.error):  # a length or a block was read behind the end of the data
        complete = False
    if not complete:
        raise ImageIncompleteError("ends too early", hint="wait until it is copied, or copy it again")


def _jpeg_ends(data: bytes) -> bool:
    """Whether segments and scans lead to the end-of-image marker (ITU-T T.81, annex B)."""
    position = 2
    while True:
        if data[position] != _FILL:
            return False
        while data[position] == _FILL:  # fill bytes may stand before a marker
            position += 1
        marker = data[position]
        position += 1
        if marker == _EOI:
            return True
        if marker in _BARE_MARKERS:
            continue
        position += struct.unpack_from(">H", data, position)[0]
        if marker == _SOS:
            found = _END_OF_SCAN.search(data, position)
            if found is None:
                return False
            position = found.start()


def _png_ends(data: bytes) -> bool:
    """Whether chunk follows chunk up to IEND (PNG specification, section 5)."""
    position = 8
    while True:
        length, name = struct.unpack_from(">I4s", data, position)
        position += length + 12
        if not _PNG_CHUNK.fullmatch(name) or position > len(data):
            return False
        if name == b"IEND":
            return True


def _gif_ends(data: bytes) -> bool:
    """Whether block follows block up to the trailer (GIF89a specification, sections 15 to 27)."""
    position = 13 + _gif_colours(data[10])
    while True:
        match data[position]:
            case 0x3B:
                return True
            case 0x21:  # an extension: its label, then sub-blocks
                position += 2
            case 0x2C:  # an image: its own colours, the code size, then sub-blocks
                position += 10 + _gif_colours(data[position + 9]) + 1
            case _:
                return False
        while data[position]:
            position += data[position] + 1
        position += 1


def _gif_colours(flags: int) -> int:
    """Bytes of the colour table that `flags` announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp_ends(data: bytes) -> bool:
    """Whether there are as many bytes as the RIFF header says."""
    length: int = struct.unpack_from("<I", data, 4)[0]
    return length + 8 <= len(data)


def _avif_ends(data: bytes) -> bool:
    """Whether box follows box up to the end of the file (ISO/IEC 14496-12, section 4.2)."""
    position = 0
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if length == 1:  # the true length stands behind the name
            length = struct.unpack_from(">Q", data, position + 8)[0]
        if length == 0:  # this box goes on to the end of the file, unless it is a hole
            return any(name)
        position += length
    return position == len(data)
