"""Animated pictures of a video, for chats and pages that show no videos: WebP or GIF.

Frames are chosen evenly over the whole video, at most `FPS` a second and `MAX_FRAMES` in all, and keep the video's
pace: that of a long video shows fewer frames a second. So memory and file size have a bound that does not depend on the
video. Knows nothing of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from av.video.stream import VideoStream
from PIL import Image

from framepack_daemon.errors import VideoError
from framepack_daemon.media import mp4
from framepack_daemon.media.encoders import FPS as VIDEO_FPS

LONG_SIDE = 320  # pixels
FPS = 10  # frames per second, at most
MAX_FRAMES = 100  # 10 s at full rate; 100 pictures of 320x320 take 31 MB while they are written
WEBP_QUALITY = 75
_OPTIONS: dict[str, dict[str, Any]] = {
    ".webp": {"format": "WEBP", "quality": WEBP_QUALITY},
    ".gif": {"format": "GIF"},
}


def write_animation(video: Path, target: Path) -> None:
    """Writes an animated picture of `video` to `target`, whose suffix is `.webp` or `.gif`; it loops for ever.

    Raises `VideoError` for a video that cannot be decoded, KeyError for another suffix.
    """
    options = _OPTIONS[target.suffix]
    with mp4.opened(video) as stream:
        pictures = _pictures(stream, video)
        milliseconds = stream.frames * 1000 / VIDEO_FPS
    if not pictures:
        raise VideoError(f"{video.name} has no frames", hint="write it anew")
    if target.suffix == ".gif":
        # Pillow's own way to choose 256 colours takes 100 times as long, and is 1 dB nearer to the picture.
        pictures = [picture.quantize(method=Image.Quantize.FASTOCTREE) for picture in pictures]
    shown = round(milliseconds / len(pictures))
    with mp4.appears(target) as part:
        pictures[0].save(part, save_all=True, append_images=pictures[1:], duration=shown, loop=0, **options)


def _pictures(stream: VideoStream, video: Path) -> list[Image.Image]:
    """The chosen frames of the video, small."""
    width, height = stream.width, stream.height
    scale = min(1.0, LONG_SIDE / max(width, height))
    size = round(width * scale), round(height * scale)
    chosen = set(_chosen(stream.frames))
    frames = enumerate(mp4.decoded(stream, video))
    return [Image.fromarray(mp4.to_rgb(frame, *size)) for number, frame in frames if number in chosen]


def _chosen(frames: int) -> Iterator[int]:
    """Numbers of the frames that are shown: the first, and others at equal distances."""
    count = min(max(round(frames * FPS / VIDEO_FPS), 1), MAX_FRAMES)
    return (place * frames // count for place in range(count))
