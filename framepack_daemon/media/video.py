"""MP4 files: segments written frame by frame, joined without encoding again, checked by decoding.

`SegmentWriter` turns uint8 frames into one closed group of H.264 pictures without B-frames, so that `join` can copy
packets behind each other and number them anew, 512 ticks of 1/15360 s per frame. `verify` decodes every frame.
Files appear under their name whole and synced, or not at all. FFmpeg's complaints become `VideoError`; what the file
system says (no space, no permission, no such file) stays an `OSError`, so that the caller can wait for it to clear.
Knows nothing of jobs, folders or models.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from framepack_daemon.atomic import sync_file, sync_folder
from framepack_daemon.errors import VideoError

FPS = 30  # frames per second
TIMESCALE = 15360  # ticks per second of track and movie
TICKS = TIMESCALE // FPS  # 512 ticks per frame
ENCODER_THREADS = 4  # pinned, for what x264 writes depends on it
GOP_FRAMES = 30  # a player can seek to every second
POSTER_QUALITY = 90
# The keys that FFmpeg's MP4 writer keeps; all others it drops without a word.
METADATA_KEYS = frozenset({"title", "artist", "comment", "description", "copyright", "date"})

# The same frames give the same bytes on every CPU: exact arithmetic instead of the fastest.
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.BITEXACT
_MUXER = {"movie_timescale": str(TIMESCALE), "video_track_timescale": str(TIMESCALE)}


@dataclass(frozen=True)
class VideoFacts:
    """What a video was found to be, every frame of it decoded."""

    width: int  # pixels
    height: int  # pixels
    frames: int
    fps: int
    seconds: float
    bytes: int
    sha256: str
    codec: str
    pixel_format: str


class SegmentWriter:
    """Writes frames to an MP4 that appears under `path` when the `with` block ends without an error.

    Width and height are even numbers of pixels, `crf` is x264's quality (0 lossless, 51 worst).
    """

    def __init__(self, path: Path, width: int, height: int, crf: int = 16) -> None:
        if width <= 0 or height <= 0 or width % 2 or height % 2:
            raise VideoError(
                f"a video cannot be {width}x{height} pixels",
                hint="width and height must be even; give multiples of 16",
            )
        self.frames = 0
        self._size = (height, width)
        self._crf = crf
        self._closing = contextlib.ExitStack()
        self._path = path

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            part = stack.enter_context(_appears(self._path))
            stack.enter_context(_ffmpeg(f"{self._path.name} could not be written"))
            container = stack.enter_context(av.open(_url(part), "w", format="mp4", options=_MUXER))
            self._container: OutputContainer = container
            self._stream = self._open_stream(container)
            self._closing = stack.pop_all()
        return self

    def _open_stream(self, container: OutputContainer) -> VideoStream:
        # Without mbtree: its AVX-512 code gives other bits now and then for the same frames (seen with PyAV 18), and a
        # resumed job has to end in the same file.
        options = {"crf": str(self._crf), "preset": "medium", "x264-params": "open-gop=0:mbtree=0"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = self._size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        context = stream.codec_context
        context.gop_size = GOP_FRAMES
        context.max_b_frames = 0
        context.thread_type = "FRAME"
        context.thread_count = ENCODER_THREADS
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        return stream

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Appends `frames`, (T, H, W, 3) uint8 RGB."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*self._size, 3):  # noqa: PLR2004
            raise VideoError(
                f"frames of shape {frames.shape} and type {frames.dtype} do not fit",
                hint=f"they must be uint8 of shape (T, {self._size[0]}, {self._size[1]}, 3)",
            )
        with _ffmpeg(f"{self._path.name} could not be written"):
            for pixels in frames:
                picture = VideoFrame.from_ndarray(pixels, format="rgb24")
                picture = picture.reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                    interpolation=_EXACT,
                )
                picture.pts = self.frames
                picture.time_base = Fraction(1, FPS)
                self._container.mux(self._stream.encode(picture))
                self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._closing:  # closes the container first, then publishes the file or, after an error, removes it
            if error is not None:
                raise error
            if not self.frames:
                raise VideoError(f"{self._path.name} was given no frames", hint="write at least one frame")
            self._container.mux(self._stream.encode(None))


def join(segments: Sequence[Path], target: Path, metadata: Mapping[str, str]) -> None:
    """Copies the packets of `segments`, in order, into the one video `target`, `metadata` at its front.

    `metadata` takes the keys in `METADATA_KEYS`. Raises `VideoError` for segments that do not fit together.
    """
    if not segments:
        raise VideoError(f"{target.name} has no segments to join", hint="render at least one section")
    if unknown := metadata.keys() - METADATA_KEYS:
        raise VideoError(
            f"an MP4 does not keep the metadata {', '.join(sorted(unknown))}",
            hint=f"it keeps {', '.join(sorted(METADATA_KEYS))}",
        )
    with _appears(target) as part, _ffmpeg(f"{target.name} could not be joined"):
        options = _MUXER | {"movflags": "+faststart"}
        with av.open(_url(part), "w", format="mp4", options=options) as output, contextlib.ExitStack() as stack:
            # A file name that is not UTF-8 may be part of a title.
            output.metadata.update({key: value.encode(errors="replace").decode() for key, value in metadata.items()})
            _join_into(output, segments, stack)


def _join_into(output: OutputContainer, segments: Sequence[Path], stack: contextlib.ExitStack) -> None:
    template = stack.enter_context(_opened(segments[0]))
    stream = output.add_stream_from_template(template)
    stream.time_base = Fraction(1, TIMESCALE)
    frames = _copy_packets(template, output, stream, 0)
    for path in segments[1:]:
        with _opened(path) as source:
            if source.codec_context.extradata != template.codec_context.extradata:
                raise VideoError(
                    f"{path.name} was encoded otherwise than {segments[0].name}",
                    hint="segments of one video need one size and one crf; render them anew",
                )
            frames = _copy_packets(source, output, stream, frames)


def _copy_packets(source: VideoStream, output: OutputContainer, stream: VideoStream, frames: int) -> int:
    """Copies one segment behind `frames` frames; gives back how many there are now."""
    container: Any = source.container
    start = frames
    for packet in container.demux(source):
        if packet.dts is None:  # the empty packet that ends the stream
            continue
        if packet.pts != packet.dts or packet.pts != (frames - start) * TICKS or packet.is_corrupt:
            raise VideoError(f"{container.name} has its frames out of step", hint="render that segment anew")
        packet.pts = packet.dts = frames * TICKS
        packet.duration = TICKS
        packet.time_base = Fraction(1, TIMESCALE)
        packet.stream = stream
        output.mux(packet)
        frames += 1
    return frames


def verify(path: Path, *, frames: int, width: int, height: int) -> VideoFacts:
    """The facts of the video at `path`, every frame decoded; `VideoError` unless they are as expected.

    Expected is what `join` makes: H.264, yuv420p, 30 fps, the first frame at 0, one frame every 512 ticks.
    """
    facts = probe(path)
    found = f"{facts.width}x{facts.height}, {facts.frames} frames, {facts.fps} fps, {facts.codec} {facts.pixel_format}"
    wanted = f"{width}x{height}, {frames} frames, {FPS} fps, h264 yuv420p"
    if found != wanted:
        raise VideoError(f"{path.name} is {found}; it should be {wanted}", hint="write it anew")
    return facts


def probe(path: Path) -> VideoFacts:
    """The facts of the video at `path`, every frame decoded; `VideoError` where one is damaged or out of step."""
    frames = 0
    with _opened(path) as stream:
        for frame in _decoded(stream, path):
            if frame.pts != frames * TICKS or frame.time_base != Fraction(1, TIMESCALE):
                raise VideoError(f"frame {frames} of {path.name} stands at the wrong time", hint="write it anew")
            frames += 1
        context = stream.codec_context
        rate = stream.average_rate or Fraction(0)
        if rate.denominator != 1 or stream.duration != frames * TICKS:
            raise VideoError(f"{path.name} does not last as long as its {frames} frames", hint="write it anew")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
        return VideoFacts(
            width=context.width,
            height=context.height,
            frames=frames,
            fps=int(rate),
            seconds=frames / FPS,
            bytes=size,
            sha256=digest,
            codec=context.codec.canonical_name,
            pixel_format=context.pix_fmt or "",
        )


def write_poster(video: Path, target: Path) -> None:
    """Writes the first frame of `video` to `target` as a JPEG."""
    with _opened(video) as stream:
        frame = next(_decoded(stream, video), None)
        if frame is None:
            raise VideoError(f"{video.name} has no frames", hint="write it anew")
        picture = Image.fromarray(to_rgb(frame))
    with _appears(target) as part:
        picture.save(part, format="JPEG", quality=POSTER_QUALITY)


def to_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """The pixels of a decoded frame of ours, (H, W, 3) uint8 RGB."""
    picture = frame.reformat(
        format="rgb24",
        src_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        interpolation=_EXACT,
    )
    return np.asarray(picture.to_ndarray(), np.uint8)


def _decoded(stream: VideoStream, path: Path) -> Iterator[VideoFrame]:
    stream.thread_type = "AUTO"
    container: Any = stream.container
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise VideoError(f"a frame of {path.name} is damaged", hint="write it anew")
        yield frame


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[VideoStream]:
    """The only stream of the MP4 at `path`, open for reading."""
    with _ffmpeg(f"{path.name} cannot be read"), av.open(_url(path), "r", format="mp4") as container:
        if len(container.streams) != 1 or not container.streams.video:
            raise VideoError(f"{path.name} does not hold exactly one video", hint="write it anew")
        yield container.streams.video[0]


def _url(path: Path) -> str:
    """`path` so that FFmpeg takes it for a file, whatever its name begins with."""
    return f"file:{path}"


@contextlib.contextmanager
def _ffmpeg(what: str) -> Iterator[None]:
    """Turns FFmpeg's errors into `VideoError`, and leaves those of the operating system as they are."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise VideoError(f"{what}: {error.strerror}", hint="write it anew") from error


@contextlib.contextmanager
def _appears(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; after the block it is synced and takes the name `path`."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        sync_file(part)
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
