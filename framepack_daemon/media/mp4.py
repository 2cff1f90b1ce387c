"""MP4 files as such: opened, decoded frame by frame, and made to appear whole.

FFmpeg's complaints become `VideoError`; what the file system says (no space, no permission, no such file) stays an
`OSError`, so that the caller can wait for it to clear. Knows neither what a video should be nor how it is encoded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray

from framepack_daemon.atomic import sync_file, sync_folder
from framepack_daemon.errors import VideoError

# The same frames give the same pixels on every CPU: exact arithmetic instead of the fastest.
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.BITEXACT


@contextlib.contextmanager
def opened(path: Path) -> Iterator[VideoStream]:
    """The only stream of the MP4 at `path`, open for reading."""
    with errors_told(f"{path.name} cannot be read"), av.open(url(path), "r", format="mp4") as container:
        if len(container.streams) != 1 or not container.streams.video:
            raise VideoError(f"{path.name} does not hold exactly one video", hint="write it anew")
        yield container.streams.video[0]


def decoded(stream: VideoStream, path: Path) -> Iterator[VideoFrame]:
    """Every frame of the stream of `path`, in order; `VideoError` at one that is damaged."""
    stream.thread_type = "AUTO"
    container: Any = stream.container
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise VideoError(f"a frame of {path.name} is damaged", hint="write it anew")
        yield frame


def to_rgb(frame: VideoFrame, width: int | None = None, height: int | None = None) -> NDArray[np.uint8]:
    """The pixels of a decoded frame of ours, (H, W, 3) uint8 RGB, in the size that is given or its own."""
    picture = frame.reformat(
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        interpolation=_EXACT,
    )
    return np.asarray(picture.to_ndarray(), np.uint8)


def from_rgb(pixels: NDArray[np.uint8], pixel_format: str) -> VideoFrame:
    """A frame for the encoder from (H, W, 3) uint8 RGB: BT.709 in limited range."""
    return VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format=pixel_format,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=_EXACT,
    )


def url(path: Path) -> str:
    """`path` so that FFmpeg takes it for a file, whatever its name begins with."""
    return f"file:{path}"


@contextlib.contextmanager
def errors_told(what: str) -> Iterator[None]:
    """Turns FFmpeg's errors into `VideoError`, and leaves those of the operating system as they are."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise VideoError(f"{what}: {error.strerror}", hint="write it anew") from error


@contextlib.contextmanager
def appears(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A hidden name beside `path` to write to; after the block it takes the name `path`, synced when `durable`."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        if durable:
            sync_file(part)
        part.replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
