"""The codecs a video can have: which encoder writes each, and the settings that make its segments fit together.

Every encoder is set up so that segments of one video have the same headers whatever they show, begin with a key frame
that nothing before it is needed for, and number their packets in the order of the frames: then they are joined by
copying. Where an encoder allows it, the same frames give the same bytes. Knows nothing of files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from framepack_daemon.errors import VideoError

FPS = 30  # frames per second
THREADS = 4  # pinned, for what x264 writes depends on it
GOP_FRAMES = 30  # a player can seek to every second
PIXEL_FORMAT = "yuv420p"  # what browsers decode
DEFAULT_CRF = 16
MAX_CRF = 51  # the scale of x264 and x265, which differ by less than 1 dB at the same number
MAX_AV1_CRF = 63  # the scale of SVT-AV1
_THREADS = Path("/proc/self/task")
_NVIDIA = Path("/dev/nvidiactl")  # there where an NVIDIA driver is loaded

# SVT-AV1 tells its settings on standard error each time it opens, unless it is asked for errors alone.
os.environ.setdefault("SVT_LOG", "1")


class EncoderError(VideoError):
    """The codec that a job asks for cannot be written on this machine."""

    code = "no_encoder"
    retryable = False


@dataclass(frozen=True)
class Encoder:
    """How one codec is written."""

    name: str  # FFmpeg's name of the encoder
    codec: str  # FFmpeg's name of what it writes
    options: Callable[[int], dict[str, str]]  # from crf, 1 (nearly lossless) to 51 (worst)
    tag: str | None = None  # of the track, where the usual one is not played everywhere
    is_hardware: bool = False


def _x264(crf: int) -> dict[str, str]:
    # Without mbtree: its AVX-512 code gives other bits now and then for the same frames (seen with PyAV 18), and a
    # resumed job has to end in the same file.
    return {"crf": str(crf), "preset": "medium", "profile": "high", "x264-params": "open-gop=0:mbtree=0"}


def _x265(crf: int) -> dict[str, str]:
    # One thread, and no line about its settings in the stream, which would name the build. Blocks of 32 pixels: with
    # the usual 64 a picture of 64x64, which is a single block then, gave other bits each time (seen with PyAV 18).
    single = "ctu=32:pools=none:frame-threads=1:wpp=0:info=0:log-level=error"
    return {"crf": str(crf), "preset": "medium", "x265-params": f"open-gop=0:bframes=0:{single}"}


def _svt_av1(crf: int) -> dict[str, str]:
    # Its scale is longer; in the range that is used, the same share of it gives x264's quality or a better one. Frames
    # that are coded out of order hide in the packet of the frame that shows them, so packets stay in step.
    return {"crf": str(round(crf * MAX_AV1_CRF / MAX_CRF)), "preset": "6", "svtav1-params": "lp=2"}


def _nvenc(crf: int) -> dict[str, str]:
    # A constant quantizer is the nearest thing to x264's crf, on the same scale, and the same every time.
    quality = {"preset": "p5", "tune": "hq", "profile": "high", "rc": "constqp", "qp": str(crf)}
    return quality | {"forced-idr": "1", "no-scenecut": "1", "rc-lookahead": "0", "b_ref_mode": "disabled"}


ENCODERS = {
    "h264": Encoder("libx264", "h264", _x264),
    "hevc": Encoder("libx265", "hevc", _x265, tag="hvc1"),  # with hev1, its other tag, Apple's players show nothing
    "av1": Encoder("libsvtav1", "av1", _svt_av1),
    "h264_nvenc": Encoder("h264_nvenc", "h264", _nvenc, is_hardware=True),
}


def available_codecs() -> tuple[str, ...]:
    """The codecs that can be written here, as far as that can be told without opening an encoder.

    That a graphics card has no encoder (H100 and A100 are such) only `require` finds out.
    """
    return tuple(
        codec
        for codec, encoder in ENCODERS.items()
        if encoder.name in av.codecs_available and (_NVIDIA.exists() or not encoder.is_hardware)
    )


def require(codec: str, width: int, height: int) -> None:
    """Raises `EncoderError` unless videos of that size can be written in `codec` here; opens its encoder to see."""
    encoder = _built_in(codec)
    context = av.CodecContext.create(encoder.name, "w")
    assert isinstance(context, VideoCodecContext)
    _open(context, codec, width, height, DEFAULT_CRF)
    context.encode(None)  # closed without an end, SVT-AV1 complains on standard error


def add_stream(container: OutputContainer, codec: str, width: int, height: int, crf: int) -> VideoStream:
    """A new track of `container`, its encoder open. Raises `EncoderError`."""
    encoder = _built_in(codec)
    stream = container.add_stream(encoder.name, rate=FPS)
    assert isinstance(stream, VideoStream)
    _open(stream.codec_context, codec, width, height, crf)
    return stream


def _built_in(codec: str) -> Encoder:
    encoder = ENCODERS[codec]
    if encoder.name not in av.codecs_available:
        raise EncoderError(
            f"codec: this build of PyAV has no encoder for {codec}",
            hint=f"use one of {', '.join(available_codecs())}, or install a build with {encoder.name}",
        )
    return encoder


def _open(context: VideoCodecContext, codec: str, width: int, height: int, crf: int) -> None:
    """Sets up the encoder in `context` and opens it."""
    encoder = ENCODERS[codec]
    context.width, context.height, context.pix_fmt = width, height, PIXEL_FORMAT
    context.framerate = Fraction(FPS)
    context.time_base = Fraction(1, FPS)
    context.options = encoder.options(crf)
    context.gop_size = GOP_FRAMES
    context.max_b_frames = 0
    context.thread_type = "FRAME"
    context.thread_count = THREADS
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    context.color_range = ColorRange.MPEG
    if encoder.tag:
        context.codec_tag = encoder.tag
    try:
        with _priority_kept():
            context.open()
    except av.FFmpegError as error:
        hint = "use codec h264"
        if encoder.is_hardware:
            hint = f"it needs an NVIDIA card with a video encoder (A100 and H100 have none) and its driver; {hint}"
        raise EncoderError(
            f"codec: {codec} cannot be written here at {width}x{height} pixels: {error.strerror}", hint=hint
        ) from error


@contextlib.contextmanager
def _priority_kept() -> Iterator[None]:
    """Take back the real-time priority that SVT-AV1, where it may, gives its threads and the one that opens it.

    As root it may, and a machine whose every core it takes answers to nobody any more.
    """
    before = os.sched_getscheduler(0)
    try:
        yield
    finally:
        if before == os.SCHED_OTHER:
            for task in _THREADS.iterdir():
                with contextlib.suppress(ProcessLookupError):
                    if os.sched_getscheduler(int(task.name)) == os.SCHED_FIFO:
                        os.sched_setscheduler(int(task.name), before, os.sched_param(0))
