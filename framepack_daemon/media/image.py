"""Pictures from strangers: checked in a helper process, loaded upright and in true colour.

`check` runs this module as a short-lived process with limits on memory and time and gives back what it found; the
calling process only ever opens the file. `load` decodes into RGB, at most `LONG_SIDE` pixels long for huge pictures.
The content decides the format, never the name. Of animations and multi-page files the first picture counts.
Knows nothing of drops, jobs or models, and needs Pillow alone.
"""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageCms

from framepack_daemon.errors import ImageError, ImageIncompleteError
from framepack_daemon.media import formats, helper

# Lower-case suffixes of files that are meant as pictures. HEIC is among them to be refused with a reason.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
LONG_SIDE = 4096  # pixels; a JPEG is decoded at the smallest fraction that is not below, others are reduced to it
MAX_PIXELS = 64_000_000  # decoded at once, 4 bytes each; a JPEG may have 64 times as many, as it is decoded at 1/8
MAX_BYTES = 256 << 20  # of a picture file
MIN_SIDE = 16  # pixels
MAX_ASPECT = 10  # long side over short side; models are trained on shapes up to 2.3
HELPER_MEMORY_BYTES = 2 << 30  # address space: file, decoded picture and two copies of it while converting

# Pillow's own limit counts the pixels in the file. Ours counts those to be decoded, and is checked before decoding.
Image.MAX_IMAGE_PIXELS = None

_ERRORS = helper.Errors("picture", ImageError, ImageIncompleteError, too_slow="save it again, smaller")
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on a damaged file.
_DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class ImageFacts:
    """What a picture was found to be, decoded to its last pixel."""

    format: str  # one of formats.FORMATS
    width: int  # pixels, upright
    height: int  # pixels, upright


def check(path: Path, *, timeout_seconds: float = 60, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """The facts of the picture at `path`, found out by a helper process.

    Raises `ImageIncompleteError` when the file may still be on its way, `ImageError` when it can't be used (a link or a
    pipe is never followed or waited for), `OSError` when it can't be opened.
    """
    facts = helper.ask(__spec__.name, path, max_pixels, errors=_ERRORS, timeout_seconds=timeout_seconds)
    return ImageFacts(**facts)


def warm() -> None:
    """Load what every helper needs."""
    Image.init()


def main(arguments: list[str]) -> None:
    """The helper: reads a picture from standard input, prints `ImageFacts` or an error as one line of JSON."""
    max_pixels, cpu_seconds = (int(argument) for argument in arguments)
    helper.answer(
        lambda: asdict(_examine(sys.stdin.buffer, max_pixels)[1]),
        errors=_ERRORS,
        memory_bytes=HELPER_MEMORY_BYTES,
        cpu_seconds=cpu_seconds,
    )


def load(path: Path) -> Image.Image:
    """The picture at `path`: mode RGB, sRGB, upright, transparency on white, huge ones reduced.

    16-bit pictures are scaled, 32-bit and floating-point greys stretched from their darkest to their brightest.
    Raises as `check` does, which should have been asked first: this decodes in the calling process.
    """
    with helper.open_plain(path, _ERRORS) as file:
        try:
            return decode(file)
        except ImageError as error:
            raise type(error)(f"{path.name}: {error.message}", hint=error.hint) from error


def decode(file: BinaryIO) -> Image.Image:
    """The picture in `file`, as `load` gives it; the errors' messages lack the name of the file."""
    return _examine(file, MAX_PIXELS)[0]


def _examine(file: BinaryIO, max_pixels: int) -> tuple[Image.Image, ImageFacts]:
    """The picture in `file` as RGB and its facts; the errors' messages lack the name of the file."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError(f"is larger than {MAX_BYTES >> 20} MiB", hint="save it again, smaller or as JPEG")
    kind = formats.recognise(data)
    formats.require_end(data, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is of no use here
            with Image.open(io.BytesIO(data), formats=[kind]) as picture:
                width, height = picture.size
                picture.draft(None, (LONG_SIDE, LONG_SIDE))  # without effect unless it is a JPEG
                _require_sensible(width, height, picture.width * picture.height, max_pixels)
                upright = _upright(picture)
                if upright.size != picture.size:  # it was turned by a quarter
                    width, height = height, width
                return _to_rgb(upright), ImageFacts(kind, width, height)
    except _DECODER_ERRORS as error:
        if isinstance(error, OSError) and error.errno:  # the file system's word, not the decoder's
            raise
        raise ImageIncompleteError(
            f"is damaged or incomplete ({error})", hint="wait until it is copied, or save it again"
        ) from error


def _require_sensible(width: int, height: int, pixels: int, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"is only {width}x{height} pixels", hint=f"each side needs at least {MIN_SIDE} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"is a strip of {width}x{height} pixels", hint=f"crop it; one side may be {MAX_ASPECT} times the other"
        )
    if pixels > max_pixels:
        raise ImageError(
            f"is too large with {width}x{height} pixels", hint=f"save it with at most {max_pixels / 1e6:g} megapixels"
        )


def _upright(picture: Image.Image) -> Image.Image:
    """`picture` decoded, and turned as its EXIF data says."""
    picture.load()
    try:
        # Asked only now: of a TIFF the decoder has already done it and says so.
        orientation = picture.getexif().get(_ORIENTATION)
    except _DECODER_ERRORS:
        orientation = None  # damaged EXIF data; the picture itself is fine
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """`picture`, of any mode, in sRGB on white."""
    profile = picture.info.get("icc_profile")
    picture = _to_eight_bits(picture)
    if picture.mode in {"P", "PA"} or picture.has_transparency_data:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    if max(picture.size) > LONG_SIDE:
        picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    if picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    picture = _to_srgb(picture, profile)
    # A copy in any case: what was opened is closed by the caller.
    return picture.convert("RGB")


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """`picture` with 8 bits per channel; `convert` alone would clip at 255."""
    if picture.mode.startswith("I;16"):
        return picture.point(lambda value: value * (1 / 257)).convert("L")
    if picture.mode in {"I", "F"}:
        darkest, brightest = (float(value) for value in picture.getextrema())  # type: ignore[arg-type]
        scale = 255 / ((brightest - darkest) or 1)
        return picture.point(lambda value: value * scale - darkest * scale).convert("L")
    return picture.convert("L") if picture.mode == "1" else picture


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """`picture` as its colour profile means it; a damaged profile, or one for other colours, is passed over."""
    if not profile:
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture
    return converted or picture
