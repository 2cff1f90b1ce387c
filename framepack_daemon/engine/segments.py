"""The segments of a video: written behind the sampler's back, one per section, then joined.

A single thread encodes while the GPU samples on; at most one section waits for it. Frames beyond the end of the
requested video are dropped here, before they are encoded. Knows nothing of latents.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from framepack_daemon.engine import decode
from framepack_daemon.media import video

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from framepack_daemon.engine.schedule import Order
    from framepack_daemon.request import Request

TITLE_CHARACTERS = 200


class Segments:
    """The segment files of one job in `scratch`; closing waits for the one that is being written."""

    def __init__(self, scratch: Path, order: Order, request: Request) -> None:
        self._scratch = scratch
        self._order = order
        self._request = request
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)

    def path(self, section: int) -> Path:
        """The file of `section`."""
        return self._scratch / f"segment-{section:04d}.mp4"

    def frames(self, section: int) -> int:
        """How many frames of `section` are in the video."""
        span = self._order.span(section)
        return max(min(span.stop, self._request.video_frames) - span.start, 0)

    def is_written(self, section: int) -> bool:
        """Whether nothing of `section` is left to be encoded."""
        return not self.frames(section) or self.path(section).is_file()

    def put(self, section: int, final: torch.Tensor) -> None:
        """Encode the `final` frames (1, 3, T, H, W) of `section`, those beyond the video's end excepted."""
        self.wait()
        wanted = final[:, :, : self.frames(section)]
        if wanted.shape[2]:
            self._writing = self._thread.submit(self._write, self.path(section), decode.to_pixels(wanted))

    def wait(self) -> None:
        """Come back when all that was put is on disk; raises what went wrong there."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def _write(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        height, width = pixels.shape[1:3]
        with video.SegmentWriter(path, width, height, crf=self._request.crf) as writer:
            writer.write(pixels)

    def join(self, target: Path) -> None:
        """Make one video of all segments, the request in its metadata."""
        self.wait()
        paths = [self.path(section) for section in self._order.video_order if self.frames(section)]
        metadata = {
            "title": self._request.prompt[:TITLE_CHARACTERS],
            "comment": json.dumps(self._request.as_sidecar(), ensure_ascii=False),
        }
        video.join(paths, target, metadata)

    def clear(self) -> None:
        """Remove the files."""
        for section in range(self._order.sections):
            self.path(section).unlink(missing_ok=True)
