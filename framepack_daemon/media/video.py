"""Videos: segments written frame by frame, joined without encoding again, checked by decoding.

`SegmentWriter` turns uint8 frames into a file of its own that needs nothing before it, so that `join` can copy packets
behind each other and number them anew, 512 ticks of 1/15360 s per frame. `verify` decodes every frame.
Files appear under their name whole and synced, or not at all. Knows nothing of jobs, folders or models.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from framepack_daemon.errors import VideoError
from framepack_daemon.media import encoders, mp4
from framepack_daemon.media.encoders import ENCODERS, FPS, PIXEL_FORMAT
from framepack_daemon.media.mp4 import to_rgb

__all__ = ["FPS", "SegmentWriter", "VideoFacts", "join", "probe", "to_rgb", "verify", "write_poster"]

TIMESCALE = 15360  # ticks per second of track and movie
TICKS = TIMESCALE // FPS  # 512 ticks per frame
POSTER_QUALITY = 90
# The keys that FFmpeg's MP4 writer keeps; all others it drops without a word.
METADATA_KEYS = frozenset({"title", "artist", "comment", "description", "copyright", "date"})

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
    codec: str  # FFmpeg's name: h264, hevc, av1
    pixel_format: str


class SegmentWriter:
    """Writes frames to an MP4 that appears under `path` when the `with` block ends without an error.

    Width and height are even numbers of pixels, `codec` a key of `ENCODERS`, `crf` the quality from 1 (nearly lossless)
    to 51 (worst). Entering the block raises `EncoderError` where that codec cannot be written.
    """

    def __init__(
        self, path: Path, width: int, height: int, crf: int = encoders.DEFAULT_CRF, codec: str = "h264"
    ) -> None:
        if width <= 0 or height <= 0 or width % 2 or height % 2:
            raise VideoError(
                f"a video cannot be {width}x{height} pixels",
                hint="width and height must be even; give multiples of 16",
            )
        self.frames = 0
        self._size = (height, width)
        self._crf = crf
        self._codec = codec
        self._closing = contextlib.ExitStack()
        self._path = path

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            part = stack.enter_context(mp4.appears(self._path))
            stack.enter_context(mp4.errors_told(f"{self._path.name} could not be written"))
            container = stack.enter_context(av.open(mp4.url(part), "w", format="mp4", options=_MUXER))
            self._container: OutputContainer = container
            height, width = self._size
            self._stream = encoders.add_stream(container, self._codec, width, height, self._crf)
            self._closing = stack.pop_all()
        return self

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Appends `frames`, (T, H, W, 3) uint8 RGB."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*self._size, 3):  # noqa: PLR2004
            raise VideoError(
                f"frames of shape {frames.shape} and type {frames.dtype} do not fit",
                hint=f"they must be uint8 of shape (T, {self._size[0]}, {self._size[1]}, 3)",
            )
        with mp4.errors_told(f"{self._path.name} could not be written"):
            for pixels in frames:
                picture = mp4.from_rgb(pixels, PIXEL_FORMAT)
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


def join(segments: Sequence[Path], target: Path, metadata: Mapping[str, str], *, durable: bool = True) -> None:
    """Copies the packets of `segments`, in order, into the one video `target`, `metadata` at its front.

    `metadata` takes the keys in `METADATA_KEYS`. Not `durable`, the file is whole but may be lost with the power.
    Raises `VideoError` for segments that do not fit together.
    """
    if not segments:
        raise VideoError(f"{target.name} has no segments to join", hint="render at least one section")
    if unknown := metadata.keys() - METADATA_KEYS:
        raise VideoError(
            f"an MP4 does not keep the metadata {', '.join(sorted(unknown))}",
            hint=f"it keeps {', '.join(sorted(METADATA_KEYS))}",
        )
    with mp4.appears(target, durable=durable) as part, mp4.errors_told(f"{target.name} could not be joined"):
        options = _MUXER | {"movflags": "+faststart"}
        with av.open(mp4.url(part), "w", format="mp4", options=options) as output, contextlib.ExitStack() as stack:
            # A file name that is not UTF-8 may be part of a title.
            output.metadata.update({key: value.encode(errors="replace").decode() for key, value in metadata.items()})
            _join_into(output, segments, stack)


def _join_into(output: OutputContainer, segments: Sequence[Path], stack: contextlib.ExitStack) -> None:
    template = stack.enter_context(mp4.opened(segments[0]))
    stream = output.add_stream_from_template(template, opaque=True)  # its decoder need not be able to encode
    stream.codec_context.codec_tag = template.codec_context.codec_tag
    stream.time_base = Fraction(1, TIMESCALE)
    frames = _copy_packets(template, output, stream, 0)
    for path in segments[1:]:
        with mp4.opened(path) as source:
            if source.codec_context.extradata != template.codec_context.extradata:
                raise VideoError(
                    f"{path.name} was encoded otherwise than {segments[0].name}",
                    hint="segments of one video need one size, codec and crf; render them anew",
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


def verify(path: Path, *, frames: int, width: int, height: int, codec: str = "h264") -> VideoFacts:
    """The facts of the video at `path`, every frame decoded; `VideoError` unless they are as expected.

    Expected is what `join` makes of segments in `codec`: yuv420p, 30 fps, the first frame at 0, one frame every 512
    ticks.
    """
    facts = probe(path)
    found = f"{facts.width}x{facts.height}, {facts.frames} frames, {facts.fps} fps, {facts.codec} {facts.pixel_format}"
    wanted = f"{width}x{height}, {frames} frames, {FPS} fps, {ENCODERS[codec].codec} {PIXEL_FORMAT}"
    if found != wanted:
        raise VideoError(f"{path.name} is {found}; it should be {wanted}", hint="write it anew")
    return facts


def probe(path: Path) -> VideoFacts:
    """The facts of the video at `path`, every frame decoded; `VideoError` where one is damaged or out of step."""
    frames = 0
    with mp4.opened(path) as stream:
        for frame in mp4.decoded(stream, path):
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
    with mp4.opened(video) as stream:
        frame = next(mp4.decoded(stream, video), None)
        if frame is None:
            raise VideoError(f"{video.name} has no frames", hint="write it anew")
        picture = Image.fromarray(to_rgb(frame))
    with mp4.appears(target) as part:
        picture.save(part, format="JPEG", quality=POSTER_QUALITY)
