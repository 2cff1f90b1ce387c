"""The segments of a video: written behind the sampler's back, one per section, then joined.

A single thread encodes while the GPU samples on; at most one section waits for it. Frames beyond the end of the
requested video are dropped here, before they are encoded. The preview is what there is so far, and the edge that the
next section will still change. Knows nothing of latents.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from framepack_daemon.engine import decode
from framepack_daemon.engine.schedule import OVERLAP_FRAMES
from framepack_daemon.media import video
from framepack_daemon.scratch import PREVIEW

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from framepack_daemon.engine.schedule import Order
    from framepack_daemon.request import Request

EDGE = "edge.mp4"  # frames that are encoded for the preview alone


class Segments:
    """The segment files of one job in `scratch`; closing waits for the one that is being written."""

    def __init__(self, scratch: Path, order: Order, request: Request) -> None:
        self._scratch = scratch
        self._order = order
        self._request = request
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._writing: Future[None] | None = None
        self._preview_is_new = False

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

    def put(self, section: int, final: torch.Tensor, edge: torch.Tensor | None) -> None:
        """Encode the `final` frames (1, 3, T, H, W) of `section`, those beyond the video's end excepted.

        With the `edge` (1, 3, 33, H, W) that the next section will blend, a preview follows.
        """
        self.wait()
        wanted = decode.to_pixels(final[:, :, : self.frames(section)])
        shown = None if edge is None else decode.to_pixels(edge[:, :, : self._edge_frames(section)])
        self._writing = self._thread.submit(self._write_section, section, wanted, shown)

    def _edge_frames(self, section: int) -> int:
        """How many frames of the edge behind `section` are in the video."""
        span = self._order.span(section)
        begin = span.start - OVERLAP_FRAMES if self._order.backwards else span.stop
        return max(min(begin + OVERLAP_FRAMES, self._request.video_frames) - begin, 0)

    def wait(self) -> None:
        """Come back when all that was put is on disk; raises what went wrong there."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def preview_is_new(self) -> bool:
        """Whether the preview was written since this was asked last."""
        new, self._preview_is_new = self._preview_is_new, False
        return new

    def _write_section(self, section: int, pixels: NDArray[np.uint8], edge: NDArray[np.uint8] | None) -> None:
        if len(pixels):
            self._write(self.path(section), pixels)
        if edge is not None and len(edge):
            self._write_preview(section, edge)

    def _write_preview(self, section: int, edge: NDArray[np.uint8]) -> None:
        """What is ready after `section`, with its edge, as a video that plays."""
        last = self._scratch / EDGE
        self._write(last, edge)
        ready = [self.path(done) for done in self._order.video_order if done <= section and self.frames(done)]
        parts = [last, *ready] if self._order.backwards else [*ready, last]
        video.join(parts, self._scratch / PREVIEW, {}, durable=False)
        last.unlink()
        self._preview_is_new = True

    def _write(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        height, width = pixels.shape[1:3]
        with video.SegmentWriter(path, width, height, crf=self._request.crf, codec=self._request.codec) as writer:
            writer.write(pixels)

    def join(self, target: Path, metadata: Mapping[str, str]) -> None:
        """Make one video of all segments, with `metadata` in it."""
        self.wait()
        video.join(
            [self.path(section) for section in self._order.video_order if self.frames(section)], target, metadata
        )

    def clear(self) -> None:
        """Remove the files."""
        (self._scratch / PREVIEW).unlink(missing_ok=True)
        for section in range(self._order.sections):
            self.path(section).unlink(missing_ok=True)
