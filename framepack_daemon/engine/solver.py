"""From noise to latents along the noise levels of one section: UniPC as the reference samples, or Euler as diffusers.

The model predicts a velocity v = noise - x0 at latents x = x0 + sigma * v, so that x0 = x - sigma * v, and the equation
to solve is dx/dsigma = (x - x0) / sigma. diffusers' flow-matching scheduler gives the noise levels. A step is a
function of a `State`, which holds all that is needed to go on in another process. Knows nothing of sections or files.

UniPC (arXiv:2302.04867, data prediction) is exact in x and takes x0 for a polynomial in lambda = -log(sigma), through
the predictions of earlier steps. See docs/solver.md.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from framepack_daemon.engine import schedule

ORDER = 3  # of UniPC: predictions that a step looks back to


@dataclass(frozen=True)
class State:
    """A section after so many steps; all tensors are (B, C, T, H, W) float32."""

    step: int  # steps done
    latents: torch.Tensor  # what the model sees next, and in the end the section
    history: tuple[torch.Tensor, ...] = ()  # what the solver looks back to
    guess: torch.Tensor | None = None  # x0 as the step just done saw it: to look at, not needed to go on


class Solver(ABC):
    """A way along the noise levels of a section."""

    def __init__(self, scheduler: Any, steps: int, mu: float, device: torch.device) -> None:
        levels = type(scheduler).from_config(scheduler.config)
        levels.set_timesteps(sigmas=schedule.sigmas(steps), mu=mu, device=device)
        self.timesteps: torch.Tensor = levels.timesteps  # (steps,) float32 on `device`: 1000 * sigma
        self.sigmas: list[float] = levels.sigmas.tolist()  # one more than steps, from 1 down to 0

    @abstractmethod
    def step(self, state: State, velocity: torch.Tensor, seen: torch.Tensor | None = None) -> State:
        """`state` one step on.

        Args:
            state: where the last step led.
            velocity: what the model predicts there, of the same shape and number type.
            seen: the latents that the model was given, if they were rounded.
        """

    def _guess(self, state: State, velocity: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """The model's prediction of x0."""
        return (state.latents if seen is None else seen) - self.sigmas[state.step] * velocity


class Euler(Solver):
    """Straight on along the velocity: the same bits as diffusers' FlowMatchEulerDiscreteScheduler."""

    def step(self, state: State, velocity: torch.Tensor, seen: torch.Tensor | None = None) -> State:
        """As in `Solver`."""
        here, there = self.sigmas[state.step : state.step + 2]
        latents = state.latents + (there - here) * velocity
        return State(state.step + 1, latents, guess=self._guess(state, velocity, seen))


class UniPC(Solver):
    """UniPC-3 with B(h) = h: a predictor (UniP), and a corrector (UniC) that uses the evaluation after it.

    The order rises over the first steps, 1, 2, 3, and stays there. The last step goes to sigma = 0, where lambda has no
    value: it lands on the prediction of x0. A state's history is the corrected latents of the level before, and the
    predictions of x0 at that level and at those before it, newest first.
    """

    def __init__(self, scheduler: Any, steps: int, mu: float, device: torch.device) -> None:
        super().__init__(scheduler, steps, mu, device)
        self._lambdas = [-math.log(sigma) for sigma in self.sigmas[:-1]]

    def step(self, state: State, velocity: torch.Tensor, seen: torch.Tensor | None = None) -> State:
        """As in `Solver`."""
        guess = self._guess(state, velocity, seen)
        after = state.step + 1
        if after == len(self.timesteps):
            return State(after, guess, guess=guess)
        corrected, earlier = state.latents, state.history[1:]
        if earlier:
            corrected = self._move(state.history[0], earlier, state.step, ahead=guess)
        known = (guess, *earlier)[:ORDER]
        return State(after, self._move(corrected, known, after), (corrected, *known), guess)

    def _move(
        self, latents: torch.Tensor, known: Sequence[torch.Tensor], to: int, ahead: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`latents` of the level before `to` brought there, by the predictions of x0 that are `known`, newest first.

        That is UniP; and UniC with the one `ahead`, which is that at `to` itself.
        """
        here, *others = self._lambdas[to - 1 :: -1][: len(known)]
        step = self._lambdas[to] - here
        places = [(other - here) / step for other in others]
        newest, *further = known
        if ahead is not None:
            places, further = [*places, 1.0], [*further, ahead]
        ratio = self.sigmas[to] / self.sigmas[to - 1]
        moved = ratio * latents + (1 - ratio) * newest
        for weight, other in zip(unified_weights(step, places), further, strict=True):
            moved = moved + weight * (other - newest)
        return moved


def unified_weights(step: float, places: Sequence[float]) -> list[float]:
    """What the predictions at `places` weigh against the newest one, in a step of that length in lambda.

    B(h) * rho_m / r_m of the paper with B(h) = h: the rho solve `sum_m r_m^(k-1) rho_m = b_k`, k from 1. For a single
    place rho is 1/2 whatever the step, as in the paper and in diffusers.

    Args:
        step: h, the way in lambda; positive.
        places: r_m, each relative to the newest prediction and in steps: behind it negative, 1 for the step's end.
    """
    if len(places) == 1:
        return [step / 2 / places[0]]
    powers = np.vander(places, increasing=True).T
    rhos = np.linalg.solve(powers, _moments(step, len(places)))
    return [float(step * rho / place) for rho, place in zip(rhos, places, strict=True)]


def _moments(step: float, count: int) -> list[float]:
    """b_1 ... b_count: the integrals of exp((u - 1) * step) * u^k over u from 0 to 1, k! * phi_(k+1) in the paper."""
    zeroth = -math.expm1(-step) / step
    return list(itertools.accumulate(range(1, count + 1), lambda last, k: (1 - k * last) / step, initial=zeroth))[1:]


def make(kind: Literal["unipc", "euler"], scheduler: Any, steps: int, mu: float, device: torch.device) -> Solver:
    """The solver of one section.

    Args:
        kind: as in the request.
        scheduler: diffusers' FlowMatchEulerDiscreteScheduler, with dynamic shift; it is left as it is.
        steps: at least 1.
        mu: exponent of the time shift, see `schedule.shift`.
        device: where the time steps go.
    """
    return {"unipc": UniPC, "euler": Euler}[kind](scheduler, steps, mu, device)
