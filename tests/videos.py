"""Small videos for tests."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FRAMES = 40


def shade(number: int) -> tuple[int, int, int]:
    """The colour of a frame."""
    return (number * 5 % 256, 255 - number * 5 % 256, 60)


def write_video(
    path: Path,
    *,
    size: tuple[int, int] = (96, 64),
    frames: int = FRAMES,
    codec: str = "libx264",
    pixel_ratio: Fraction | None = None,
    gop: int = 12,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """A video of plain colours, another in each frame, with a red square in the upper left corner."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        if pixel_ratio:
            stream.codec_context.sample_aspect_ratio = pixel_ratio
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), shade(number), np.uint8)
            pixels[: size[1] // 4, : size[0] // 4] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path
