"""The arithmetic of sections: in which order they are sampled, what each sees, and which frames it gives.

`Order` holds all that differs between the two directions; everything else asks it. A video of n sections has 9n + 1
latent frames, the picture's among them, and 36n + 1 frames. Pure: knows neither models nor files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from framepack_daemon.request import FPS, FRAMES_PER_SECTION, LATENT_WINDOW

HISTORY = (1, 2, 16)  # latent frames at the three scales, the nearest first
HISTORY_FRAMES = sum(HISTORY)  # 19
KEPT_FRAMES = 3 * LATENT_WINDOW + 1  # 28: enough to decode the newest window and the one before it
OVERLAP_FRAMES = (LATENT_WINDOW - 1) * 4 + 1  # 33, one decoded section: over which two windows are blended
MAX_SHIFT_EXPONENT = math.log(7.0)
# The line through these two points gives the time shift (FramePack, diffusers_helper/k_diffusion/wrapper.py).
SHIFT_POINTS = ((256, 0.5), (4096, 1.15))  # (tokens, mu)
SHORT_VIDEO = 4  # sections; longer ones do not pad all the way to their end


@dataclass(frozen=True)
class Indices:
    """Positions in time, in latent frames, of everything that the transformer sees; each a 1-D tensor of int64."""

    latents: torch.Tensor
    clean: torch.Tensor  # the picture, and the nearest frame of the history
    history_2x: torch.Tensor
    history_4x: torch.Tensor


@dataclass(frozen=True)
class History:
    """The latent frames around a section, (B, C, T, H, W) with T of 1, 2 and 16."""

    nearest: torch.Tensor
    history_2x: torch.Tensor
    history_4x: torch.Tensor


@dataclass(frozen=True)
class Order:
    """One direction of sampling.

    Backwards (inverted anti-drifting) starts at the video's end: new frames go before the history, and the last section
    meets the picture. Forwards (vanilla) starts at the picture: new frames go behind the history.
    """

    backwards: bool
    sections: int
    continues: bool = False  # forwards from another video's latents instead of a picture

    @property
    def rendered_frames(self) -> int:
        """Frames of the video before it is trimmed."""
        return FRAMES_PER_SECTION * self.sections + 1

    @property
    def video_order(self) -> range:
        """Sections in the order in which their frames stand in the video."""
        return range(self.sections - 1, -1, -1) if self.backwards else range(self.sections)

    def seconds(self, section: int) -> float:
        """The time in the video, in seconds, in the middle of `section`."""
        place = self.sections - 1 - section if self.backwards else section
        return (place + 0.5) * FRAMES_PER_SECTION / FPS

    def is_last(self, section: int) -> bool:
        """Whether `section`, counted from 0, is the last to be sampled."""
        return section == self.sections - 1

    def indices(self, section: int) -> Indices:
        """Positions in time for `section`."""
        if self.backwards:
            sizes = [1, paddings(self.sections)[section] * LATENT_WINDOW, LATENT_WINDOW, *HISTORY]
            picture, _, latents, nearest, history_2x, history_4x = torch.split(torch.arange(sum(sizes)), sizes)
        else:
            sizes = [1, *reversed(HISTORY), LATENT_WINDOW]
            picture, history_4x, history_2x, nearest, latents = torch.split(torch.arange(sum(sizes)), sizes)
        return Indices(latents, torch.cat([picture, nearest]), history_2x, history_4x)

    def start(self, before: torch.Tensor) -> torch.Tensor:
        """The kept latent frames before the first section: none, and forwards what comes `before` the video.

        That is the picture, or the latent frames that it continues.
        """
        batch, channels, _, height, width = before.shape
        nothing = before.new_zeros(batch, channels, HISTORY_FRAMES, height, width)
        return nothing if self.backwards else torch.cat([nothing, before], dim=2)[:, :, -KEPT_FRAMES:]

    def history(self, kept: torch.Tensor) -> History:
        """What the next section sees of the kept latent frames."""
        if self.backwards:
            return History(*torch.split(kept[:, :, :HISTORY_FRAMES], list(HISTORY), dim=2))
        history_4x, history_2x, nearest = torch.split(kept[:, :, -HISTORY_FRAMES:], list(reversed(HISTORY)), dim=2)
        return History(nearest, history_2x, history_4x)

    def grow(
        self, kept: torch.Tensor, latents: torch.Tensor, image_latents: torch.Tensor, section: int
    ) -> torch.Tensor:
        """The kept latent frames, at most 28, after `section` gave `latents`."""
        if not self.backwards:
            return torch.cat([kept, latents], dim=2)[:, :, -KEPT_FRAMES:]
        if self.is_last(section):
            latents = torch.cat([image_latents, latents], dim=2)
        return torch.cat([latents, kept], dim=2)[:, :, :KEPT_FRAMES]

    def window(self, kept: torch.Tensor, section: int, *, back: int = 0) -> torch.Tensor:
        """The latent frames to decode for `section`: its own and its neighbour's.

        Of a `kept` that is newer by `back` sections (0 or 1).
        """
        frames = self._window_frames(section)
        newer = sum(self._new_frames(section + 1 + step) for step in range(back))
        if self.backwards:
            return kept[:, :, newer : newer + frames]
        return kept[:, :, kept.shape[2] - newer - frames : kept.shape[2] - newer]

    def made(self, section: int) -> int:
        """Latent frames that are made once `section` is, the picture's among them where it was met."""
        return sum(self._new_frames(done) for done in range(section + 1)) + int(not self.backwards)

    def _new_frames(self, section: int) -> int:
        """Latent frames that `section` adds to the kept ones."""
        return LATENT_WINDOW + int(self.backwards and self.is_last(section))

    def lead(self, section: int) -> int:
        """How many frames of the decoded window belong to the video that is continued, but for its last one."""
        return OVERLAP_FRAMES - 1 if self.continues and section == 0 else 0

    def _window_frames(self, section: int) -> int:
        if section > 0 or self.continues:
            return LATENT_WINDOW + self._new_frames(section)
        return LATENT_WINDOW + int(not self.backwards or self.is_last(section))

    def span(self, section: int) -> range:
        """The frames of the untrimmed video that are final once `section` is decoded."""
        begin, end = self._reach(section), self._reach(section + 1)
        if self.backwards:
            return range(self.rendered_frames - end, self.rendered_frames - begin)
        return range(begin, end)

    def _reach(self, sections: int) -> int:
        """How many frames are final after the first `sections` sections."""
        if sections in (0, self.sections):
            return self.rendered_frames if sections else 0
        latents = LATENT_WINDOW * sections + int(not self.backwards)
        return decoded_frames(latents) - OVERLAP_FRAMES


def decoded_frames(latents: int) -> int:
    """Frames that the VAE makes of so many latent frames: one of the first, four of each other."""
    return (latents - 1) * 4 + 1


def paddings(sections: int) -> list[int]:
    """Distance between picture and section, in windows, when sampling backwards (FramePack, demo_gradio.py)."""
    if sections > SHORT_VIDEO:
        return [3] + [2] * (sections - 3) + [1, 0]
    return list(reversed(range(sections)))


def sigmas(steps: int) -> NDArray[np.float64]:
    """Noise levels before the time shift, from 1 downwards."""
    return np.linspace(1.0, 0.0, steps + 1)[:-1]


def shift(tokens: float) -> float:
    """The exponent `mu` of the time shift for a window of so many tokens."""
    (low, mu_low), (high, mu_high) = SHIFT_POINTS
    slope = (mu_high - mu_low) / (high - low)
    return min(tokens * slope + (mu_low - slope * low), MAX_SHIFT_EXPONENT)
