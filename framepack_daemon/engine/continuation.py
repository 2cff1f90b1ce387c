"""The last latent frames of a video, kept on request so that another job can go on from them.

Forwards they become the history of the first new section, and the picture in front of it stays the first video's own.
Backwards every section looks at the picture, so the last frame of the first video becomes it. Knows nothing of jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from framepack_daemon import atomic
from framepack_daemon.engine import decode
from framepack_daemon.engine.schedule import KEPT_FRAMES
from framepack_daemon.errors import ContinuationError

if TYPE_CHECKING:
    from pathlib import Path

    from framepack_daemon.engine.models import Models
    from framepack_daemon.engine.schedule import Order

CONTEXT_FRAMES = 10  # latent frames that are decoded for the last frame to come out as it did in the video


@dataclass(frozen=True)
class Ending:
    """Where a video ended."""

    latents: torch.Tensor  # (1, 16, T, H/8, W/8) float32: its last latent frames in the order of time, 10 to 28
    image_latents: torch.Tensor  # (1, 16, 1, H/8, W/8) float32: of the picture that it began with

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the video in pixels."""
        return self.latents.shape[-2] * 8, self.latents.shape[-1] * 8


def grow(ending: torch.Tensor | None, kept: torch.Tensor, order: Order, section: int) -> torch.Tensor | None:
    """The video's last latent frames once `section` is among the `kept` ones."""
    if not order.backwards:
        return kept
    # Backwards the end is sampled first; it stays among the kept ones until there is enough of it.
    made = order.made(section)
    return kept[:, :, :made] if made <= KEPT_FRAMES else ending


def save_ending(path: Path, ending: Ending) -> None:
    """Write an ending, of constant size whatever the length of its video."""
    tensors = {"latents": ending.latents.contiguous(), "image_latents": ending.image_latents.contiguous()}
    atomic.write_bytes(path, save({name: tensor.cpu() for name, tensor in tensors.items()}))


def load_ending(path: Path, device: torch.device) -> Ending:
    """The ending in the file at `path`; `ContinuationError` when it cannot be used."""
    try:
        tensors = load_file(path)
        return Ending(tensors["latents"].to(device), tensors["image_latents"].to(device))
    except (SafetensorError, KeyError) as error:
        raise ContinuationError(
            f"{path.name}: does not hold the end of a video",
            hint="render the job that is continued again, with keep_latents",
        ) from error


def last_frame(models: Models, ending: Ending) -> Image.Image:
    """The last frame of the video, RGB."""
    frames = decode.decode(models, ending.latents[:, :, -CONTEXT_FRAMES:])
    return Image.fromarray(decode.to_pixels(frames[:, :, -1:])[0])
