"""The files that a job is rendered from, and what is in them.

A video begins with a picture, with the last frame of another video, or with the last latents of one that the daemon
rendered. Knows where files are, not what is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from framepack_daemon import atomic
from framepack_daemon.engine import continuation
from framepack_daemon.errors import ContinuationError
from framepack_daemon.media import clip
from framepack_daemon.media import image as pictures

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

    from framepack_daemon.loras import LoraFile


@dataclass(frozen=True)
class Sources:
    """The files of one job."""

    image: Path | None = None  # the picture at the beginning
    last_image: Path | None = None  # the picture at the end
    video: Path | None = None  # whose last frame is the picture at the beginning
    latents: Path | None = None  # the last latents of the video that this one continues, beside the picture of that
    loras: tuple[LoraFile, ...] = ()

    def picture(self) -> Image.Image:
        """The picture at the beginning, RGB and upright; `ImageError` or `VideoError` when it cannot be used."""
        if self.image is not None:
            return pictures.load(self.image)
        if self.video is not None:
            return clip.last_frame(self.video)
        raise ContinuationError("there is nothing to begin with", hint="drop a picture, or a video to continue")

    def last_picture(self) -> Image.Image | None:
        """The picture at the end, if there is one."""
        return pictures.load(self.last_image) if self.last_image else None

    def ending(self, device: torch.device) -> continuation.Ending | None:
        """The end of the video that this one continues, if its latents are there."""
        return continuation.load_ending(self.latents, device) if self.latents else None

    def digest(self) -> dict[str, object]:
        """What tells these files from others: their content, and not where they are."""
        files = {"image": self.image, "last_image": self.last_image, "video": self.video, "latents": self.latents}
        return {
            **{name: atomic.digest(path)[1] for name, path in files.items() if path},
            "loras": [[file.sha256, file.scale] for file in self.loras],
        }
