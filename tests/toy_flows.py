"""Flows whose way is known otherwise, to try the solvers on; for tests and for docs/plot_solver.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from framepack_daemon.engine import solver

Velocity = Callable[[torch.Tensor, float], torch.Tensor]
SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=7.0, use_dynamic_shifting=True)


def make(kind: str, steps: int, mu: float = 1.15) -> solver.Solver:
    return solver.make(kind, SCHEDULER, steps, mu, torch.device("cpu"))


def path(solving: solver.Solver, velocity: Velocity, noise: torch.Tensor) -> list[solver.State]:
    """The states after 0, 1, 2 ... steps."""
    states = [solver.State(0, noise)]
    for sigma in solving.sigmas[:-1]:
        states.append(solving.step(states[-1], velocity(states[-1].latents, sigma)))
    return states


def bent(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """A velocity with no meaning, not linear and not separable."""
    return torch.tanh(x.flip(1) * (1.5 - sigma)) * (1 + sigma) - x.roll(1, 1) / 3


def towards_two_widths(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The exact velocity for data of two normal distributions, around 1 and -1, one narrow and one wide.

    Stiff: the narrow one draws by 1 / 0.05 times more once sigma is that small.
    """
    means, widths = torch.tensor([1.0, -1.0]).to(x), torch.tensor([0.05, 0.5]).to(x)
    spread = ((1 - sigma) * widths) ** 2 + sigma**2
    off = x[..., None] - (1 - sigma) * means
    share = torch.softmax(-(off**2) / (2 * spread) - spread.log() / 2, dim=-1)
    x0 = (share * (means + (1 - sigma) * widths**2 / spread * off)).sum(-1)
    return (x - x0) / sigma


def runge_kutta(velocity: Velocity, x: torch.Tensor, end: float, steps: int) -> torch.Tensor:
    """The classical method of order 4, from sigma = 1 down to `end`."""
    h = (end - 1) / steps
    for number in range(steps):
        sigma = 1 + number * h
        k1 = velocity(x, sigma)
        k2 = velocity(x + h / 2 * k1, sigma + h / 2)
        k3 = velocity(x + h / 2 * k2, sigma + h / 2)
        k4 = velocity(x + h * k3, sigma + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
