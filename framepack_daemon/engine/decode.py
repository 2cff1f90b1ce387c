"""From latents to frames, one section at a time, holding back only what the next section will still blend.

Each window is decoded once, blended over 33 frames with its neighbour's, and cut into final frames and the new edge.
Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from framepack_daemon.engine.schedule import OVERLAP_FRAMES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from framepack_daemon.engine.models import Models
    from framepack_daemon.engine.schedule import Order


@torch.no_grad()
def decode(models: Models, latents: torch.Tensor) -> torch.Tensor:
    """Frames (1, 3, 4T - 3, H, W) in about [-1, 1] of latents (1, 16, T, H/8, W/8)."""
    scaled = latents.to(models.vae.dtype) / models.vae.config.scaling_factor
    with models.use(models.vae) as vae:
        frames: torch.Tensor = vae.decode(scaled, return_dict=False)[0]
    return frames


@dataclass
class Joiner:
    """Blends the frames of successive sections."""

    order: Order
    edge: torch.Tensor | None = field(default=None)  # (1, 3, 33, H, W): the side that the next section meets

    def prime(self, frames: torch.Tensor) -> None:
        """Take up the edge of a section that was joined before, whose window decodes to `frames`."""
        self.edge = self._cut(frames)[1]

    def add(self, frames: torch.Tensor, section: int) -> torch.Tensor:
        """The frames that are final with `section`, whose window decodes to `frames`."""
        if self.edge is not None:
            frames = blend(frames, self.edge) if self.order.backwards else blend(self.edge, frames)
        if self.order.is_last(section):
            self.edge = None
            return frames
        final, self.edge = self._cut(frames)
        return final

    def _cut(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(final frames, edge); the edge is a copy, so that the rest of the window can be freed."""
        if self.order.backwards:
            return frames[:, :, OVERLAP_FRAMES:], frames[:, :, :OVERLAP_FRAMES].clone()
        return frames[:, :, :-OVERLAP_FRAMES], frames[:, :, -OVERLAP_FRAMES:].clone()


def blend(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """`before` and `after` in one, their common 33 frames faded from the one to the other."""
    fade = torch.linspace(1, 0, OVERLAP_FRAMES, dtype=before.dtype, device=before.device).view(1, 1, -1, 1, 1)
    common = fade * before[:, :, -OVERLAP_FRAMES:] + (1 - fade) * after[:, :, :OVERLAP_FRAMES]
    return torch.cat([before[:, :, :-OVERLAP_FRAMES], common, after[:, :, OVERLAP_FRAMES:]], dim=2)


def to_pixels(frames: torch.Tensor) -> NDArray[np.uint8]:
    """(T, H, W, 3) uint8 of frames (1, 3, T, H, W) in [-1, 1]."""
    unit = (frames[0] * 0.5 + 0.5).clamp(0, 1).float()
    pixels: NDArray[np.uint8] = (unit * 255).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    return pixels
