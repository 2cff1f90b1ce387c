"""A rough picture of a section while it is sampled: its latent frames side by side, turned into colours by a formula.

The formula is linear, and fitted to the job's own picture, whose pixels and latents are both known: so it costs nothing
next to a step, needs no table of numbers, and fits every VAE. Knows nothing of when it is wanted.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from framepack_daemon import atomic

if TYPE_CHECKING:
    from pathlib import Path

QUALITY = 75  # of the JPEG
MIN_HEIGHT = 128  # pixels; smaller latents are enlarged
RIDGE = 1e-2  # keeps the fit sane for a picture of one colour


class Glimpse:
    """The colours of one job's latents."""

    def __init__(self, picture: Image.Image, image_latents: torch.Tensor) -> None:
        """Fit the colours of `picture` to its `image_latents` (1, C, 1, H, W)."""
        channels, height, width = image_latents.shape[1], *image_latents.shape[-2:]
        small = picture.resize((width, height), Image.Resampling.BOX)
        colours = torch.from_numpy(np.asarray(small, np.float32).reshape(-1, 3).copy()) / 255 - 0.5
        values = _with_constant(image_latents[0, :, 0].reshape(channels, -1).T.float().cpu())
        scale = values.T @ values + RIDGE * len(values) * torch.eye(channels + 1)
        self._weights = torch.linalg.solve(scale, values.T @ colours)

    def write(self, latents: torch.Tensor, path: Path) -> None:
        """Put a JPEG of `latents` (1, C, T, H, W), its frames from left to right, in place of the one at `path`."""
        strip = latents[0].permute(2, 1, 3, 0).float().cpu()  # (H, T, W, C)
        height, frames, width, channels = strip.shape
        colours = _with_constant(strip.reshape(-1, channels)) @ self._weights + 0.5
        pixels = (colours.clamp(0, 1) * 255).round().to(torch.uint8).reshape(height, frames * width, 3).numpy()
        picture = Image.fromarray(pixels)
        if height < MIN_HEIGHT:
            picture = picture.resize((frames * width * MIN_HEIGHT // height, MIN_HEIGHT), Image.Resampling.NEAREST)
        data = io.BytesIO()
        picture.save(data, format="JPEG", quality=QUALITY)
        atomic.write_bytes(path, data.getvalue(), durable=False)


def _with_constant(values: torch.Tensor) -> torch.Tensor:
    """(N, C + 1): the rows of `values` (N, C), each with a one behind it."""
    return torch.cat([values, torch.ones(len(values), 1)], dim=1)
