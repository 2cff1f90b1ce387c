"""Videos from strangers, of which the last frame counts: checked in a helper process, loaded upright.

`check` runs this module as a short-lived process with limits on memory and time and gives back what it found;
`last_frame` decodes in the calling process. Only what follows the last key frame is decoded, and one frame of it kept.
The content decides the format, never the name. Knows nothing of drops, jobs or models.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from framepack_daemon.errors import ClipError, ClipIncompleteError
from framepack_daemon.media import containers, helper
from framepack_daemon.media.image import MAX_ASPECT, MIN_SIDE

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL import Image

SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm"})  # in lower case
MAX_PIXELS = 4096 * 4096  # of a frame; decoders hold up to 17 frames at once
HELPER_MEMORY_BYTES = 3 << 30  # address space: libraries, 17 frames of that size with 10 bits, and the picture
HD_HEIGHT = 720  # pixels; from here on a video that does not say so has the colours of BT.709, below of BT.601

_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED of FFmpeg's pixfmt.h
_ERRORS = helper.Errors("video", ClipError, ClipIncompleteError, too_slow="cut its last second out and drop that")


@dataclass(frozen=True)
class ClipFacts:
    """What the last frame of a video was found to be."""

    width: int  # pixels, upright
    height: int  # pixels, upright


def check(path: Path, *, timeout_seconds: float = 60) -> ClipFacts:
    """The facts of the last frame of the video at `path`, found out by a helper process.

    Raises `ClipIncompleteError` when the file may still be on its way, `ClipError` when it can't be used, `OSError`
    when it can't be opened.
    """
    return ClipFacts(**helper.ask(__spec__.name, path, errors=_ERRORS, timeout_seconds=timeout_seconds))


def last_frame(path: Path) -> Image.Image:
    """The last frame of the video at `path`: mode RGB, upright, with square pixels.

    Raises as `check` does, which should have been asked first: this decodes in the calling process.
    """
    with helper.open_plain(path, _ERRORS) as file:
        try:
            return _examine(file)
        except ClipError as error:
            raise type(error)(f"{path.name}: {error.message}", hint=error.hint) from error


def warm() -> None:
    """Load what every helper needs."""
    import av  # noqa: F401, PLC0415 - who only asks `check` stays small


def main(arguments: list[str]) -> None:
    """The helper: reads a video from standard input, prints `ClipFacts` or an error as one line of JSON."""
    helper.answer(
        lambda: asdict(ClipFacts(*_examine(sys.stdin.buffer).size)),
        errors=_ERRORS,
        memory_bytes=HELPER_MEMORY_BYTES,
        cpu_seconds=int(arguments[0]),
    )


def _examine(file: BinaryIO) -> Image.Image:
    """The last frame of the video in `file`; the errors' messages lack the name of the file."""
    with _opened(file, containers.recognise(file)) as container:
        stream = cast("VideoStream | None", container.streams.best("video"))
        if stream is None:
            raise ClipError("has no pictures in it", hint="drop a video")
        _require_sensible(stream.width, stream.height)
        return _upright(_last(container, stream), stream.sample_aspect_ratio)


@contextlib.contextmanager
def _opened(file: BinaryIO, kind: str) -> Iterator[InputContainer]:
    import av  # noqa: PLC0415 - who only asks `check` stays small

    try:
        with av.open(file, "r", format=kind, metadata_errors="replace") as container:
            yield container
    except MemoryError:
        raise
    except av.FFmpegError as error:
        raise ClipIncompleteError(
            f"is damaged or incomplete ({error.strerror})", hint="wait until it is copied, or save it again"
        ) from error


def _last(container: InputContainer, stream: VideoStream) -> VideoFrame:
    """The frame that is shown last."""
    stream.codec_context.thread_count = 1
    _seek_to_last_key_frame(container, stream)
    last = None
    for last in container.decode(stream):  # noqa: B007 - the last one is wanted
        pass
    if last is None or last.is_corrupt:
        raise ClipIncompleteError(
            "has no last frame that can be decoded", hint="wait until it is copied, or save it again"
        )
    return last


def _seek_to_last_key_frame(container: InputContainer, stream: VideoStream) -> None:
    """Leave out what comes before, where the file says how long it is and can be searched; else it is all decoded."""
    import av  # noqa: PLC0415 - as above

    with contextlib.suppress(av.FFmpegError):
        if stream.duration is not None:
            container.seek((stream.start_time or 0) + stream.duration, stream=stream)
        elif container.duration is not None:
            container.seek((container.start_time or 0) + container.duration)


def _upright(frame: VideoFrame, pixel_ratio: Fraction | None) -> Image.Image:
    """The frame as it is to be seen: its colours in RGB, its pixels square, turned as the camera was held."""
    from av.video.reformatter import Colorspace, Interpolation  # noqa: PLC0415 - as above

    width = round(frame.width * (pixel_ratio or 1))
    _require_sensible(width, frame.height)
    by_size = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
    rgb = frame.reformat(
        width=width,
        format="rgb24",
        src_colorspace=by_size if frame.colorspace == _UNSPECIFIED else frame.colorspace,
        src_color_range=frame.color_range,
        interpolation=Interpolation.BICUBIC
        | Interpolation.ACCURATE_RND
        | Interpolation.FULL_CHR_H_INP
        | Interpolation.BITEXACT,
    )
    picture: Image.Image = rgb.to_image()  # type: ignore[no-untyped-call]
    return picture.rotate(frame.rotation, expand=True)


def _require_sensible(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ClipError(f"is only {width}x{height} pixels", hint=f"each side needs at least {MIN_SIDE} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ClipError(
            f"is a strip of {width}x{height} pixels", hint=f"crop it; one side may be {MAX_ASPECT} times the other"
        )
    if width * height > MAX_PIXELS:
        raise ClipError(
            f"is too large with {width}x{height} pixels", hint="scale it to at most 4096x4096 pixels and drop that"
        )
