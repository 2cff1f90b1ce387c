"""From noise to the latents of one section, step by step.

`denoise` is a generator, so that progress, stop and checkpoint of a half-done section lie with its caller. One loop
serves both directions: what differs comes in as indices and history. Knows nothing of files.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from framepack_daemon.engine import cache, schedule, solver
from framepack_daemon.request import LATENT_WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framepack_daemon.engine.conditioning import Conditioning, Text
    from framepack_daemon.engine.models import Models
    from framepack_daemon.request import Request

DISTILLED_SCALE = 1000.0  # the unit in which the transformer takes the distilled guidance
REFERENCE_DTYPE = torch.bfloat16  # in which the reference gives time steps and latents to the transformer


def draw_noise(conditioning: Conditioning, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Noise of one section, (1, 16, 9, H/8, W/8) float32, drawn on the generator's device."""
    batch, channels, _, height, width = conditioning.image_latents.shape
    shape = (batch, channels, LATENT_WINDOW, height, width)
    noise: torch.Tensor = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    return noise


@dataclass(frozen=True)
class Context:
    """What stays the same in all steps of a section."""

    request: Request
    models: Models
    conditioning: Conditioning
    prompt: Text  # the one that holds in this section
    indices: schedule.Indices
    history: schedule.History


@torch.no_grad()
def denoise(context: Context, begin: solver.State) -> Iterator[solver.State]:
    """The section after each step from `begin` on; where there is a cache, that has to be its first step."""
    request, inputs, state = context.request, _fixed_inputs(context), begin
    solving = _solver(context, begin.latents)
    with ExitStack() as section:
        for step in range(begin.step, request.num_inference_steps):
            if step == cache.FIRST_STEP:
                section.enter_context(cache.used(context.models.transformer, request.cache))
            seen, time = state.latents, solving.timesteps[step]
            if request.reference_rounding:
                seen, time = (value.to(REFERENCE_DTYPE).to(value.dtype) for value in (seen, time))
            state = solving.step(state, _velocity(context, inputs, seen, time), seen)
            yield state


def _solver(context: Context, latents: torch.Tensor) -> solver.Solver:
    """A solver for this section, shifted for its number of tokens."""
    request, models = context.request, context.models
    tokens = latents[0, 0].numel() / models.transformer.config.patch_size**2
    shift = schedule.shift(tokens)
    return solver.make(request.solver, models.scheduler, request.num_inference_steps, shift, models.device)


def _fixed_inputs(context: Context) -> dict[str, Any]:
    """What the transformer is given alike in every step and for both texts."""
    dtype, history = context.models.dtype, context.history
    clean = torch.cat([context.conditioning.image_latents, history.nearest], dim=2)
    guidance = torch.tensor([context.request.guidance_scale], dtype=dtype, device=context.models.device)
    return {
        "image_embeds": context.conditioning.image_embeds,
        "guidance": guidance * DISTILLED_SCALE,
        "indices_latents": context.indices.latents,
        "latents_clean": clean.to(dtype),
        "indices_latents_clean": context.indices.clean,
        "latents_history_2x": history.history_2x.to(dtype),
        "indices_latents_history_2x": context.indices.history_2x,
        "latents_history_4x": history.history_4x.to(dtype),
        "indices_latents_history_4x": context.indices.history_4x,
        "return_dict": False,
    }


def _velocity(context: Context, inputs: dict[str, Any], latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """The velocity at `latents`, float32, with true classifier-free guidance where there is a negative text."""
    models, negative = context.models, context.conditioning.negative

    def predict(text: Text, cached_as: str) -> torch.Tensor:
        with models.transformer.cache_context(cached_as):
            output: torch.Tensor = models.transformer(
                hidden_states=latents.to(models.dtype),
                timestep=time.expand(latents.shape[0]),
                encoder_hidden_states=text.embeds,
                encoder_attention_mask=text.mask,
                pooled_projections=text.pooled,
                **inputs,
            )[0]
        return output.float()

    wanted = predict(context.prompt, "prompt")
    if negative is None:
        return wanted
    unwanted = predict(negative, "negative")
    guided = unwanted + context.request.true_cfg_scale * (wanted - unwanted)
    return _rescale(guided, wanted, context.request.guidance_rescale)


def _rescale(guided: torch.Tensor, wanted: torch.Tensor, amount: float) -> torch.Tensor:
    """`guided` with its spread drawn by `amount` (0-1) towards that of `wanted` (arXiv:2305.08891, section 3.4)."""
    if amount == 0:
        return guided
    dims = list(range(1, guided.ndim))
    rescaled = guided * (wanted.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True))
    return amount * rescaled + (1 - amount) * guided
