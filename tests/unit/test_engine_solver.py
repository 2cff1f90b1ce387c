"""The solvers on equations that can be solved otherwise: exactness, order, the paper's formula, and going on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import load, save
from toy_flows import SCHEDULER, bent, make, path, runge_kutta, towards_two_widths

from framepack_daemon.engine import solver

SHIFTS = [0.5, 1.15, math.log(7.0)]  # mu of the smallest window, of 4096 tokens, and the largest
COUNTS = [1, 2, 3, 4, 5, 10, 25]
NOISE = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mu", SHIFTS)
@pytest.mark.parametrize("steps", [*COUNTS, 100])
def test_levels_are_the_references_and_diffusers(steps: int, mu: float) -> None:
    t = np.linspace(1, 0, steps + 1)[:-1]
    wanted = math.exp(mu) / (math.exp(mu) + (1 / t - 1))
    for kind in ("unipc", "euler"):
        solving = make(kind, steps, mu)
        assert solving.sigmas[0] == 1
        assert solving.sigmas[-1] == 0
        np.testing.assert_allclose(solving.sigmas[:-1], wanted, rtol=3e-7)
        assert solving.timesteps.dtype == torch.float32
        assert torch.equal(solving.timesteps, torch.tensor(solving.sigmas[:-1]) * 1000)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("kind", ["unipc", "euler"])
def test_a_straight_flow_is_solved_exactly(kind: str, steps: int) -> None:
    x0 = NOISE.flip(0) * 3
    states = path(make(kind, steps), lambda x, sigma: (x - x0) / sigma, NOISE)
    torch.testing.assert_close(states[-1].latents, x0, rtol=0, atol=4e-6)
    constant = NOISE - x0
    states = path(make(kind, steps), lambda _x, _sigma: constant, NOISE)
    torch.testing.assert_close(states[-1].latents, x0, rtol=0, atol=4e-6)


@pytest.mark.parametrize("mu", SHIFTS)
def test_euler_is_diffusers_bit_for_bit(mu: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER.config)
    theirs.set_timesteps(sigmas=np.linspace(1, 0, 26)[:-1], mu=mu)
    solving, x = make("euler", 25, mu), NOISE
    for state, time, sigma in zip(path(solving, bent, NOISE)[1:], theirs.timesteps, solving.sigmas, strict=False):
        x = theirs.step(bent(x, sigma), time, x, return_dict=False)[0]
        assert torch.equal(state.latents, x)


class Stock(UniPCMultistepScheduler):
    """diffusers' formulas with the data coefficient 1."""

    def _sigma_to_alpha_sigma_t(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(sigma), sigma


@pytest.mark.parametrize("mu", SHIFTS)
@pytest.mark.parametrize("steps", [*COUNTS, 100])
def test_unipc_steps_are_diffusers_up_to_the_last(steps: int, mu: float) -> None:
    theirs = Stock(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        solver_type="bh1",
        solver_order=3,
        lower_order_final=False,
    )
    theirs.set_timesteps(steps)
    solving, x = make("unipc", steps, mu), NOISE.double()
    theirs.sigmas = torch.tensor(solving.sigmas, dtype=torch.float64)
    *states, last = path(solving, bent, NOISE.double())
    for state, time, sigma in zip(states[1:], theirs.timesteps, solving.sigmas, strict=False):
        x = theirs.step(bent(x, sigma), time, x, return_dict=False)[0]
        torch.testing.assert_close(state.latents, x, rtol=0, atol=1e-9)
    x0 = states[-1].latents - solving.sigmas[-2] * bent(states[-1].latents, solving.sigmas[-2])
    assert torch.equal(last.latents, x0)


def phi(k: int, z: float) -> float:
    """Phi_k(z) of exponential integrators by its series: sum of z^n / (n + k)!."""
    return sum(z**n / math.factorial(n + k) for n in range(40))


def paper_step(
    order: int, lambdas: list[float], x: torch.Tensor, m: list[torch.Tensor], *, correct: bool
) -> torch.Tensor:
    """UniP-p, or UniC-p (arXiv:2302.04867, algorithms 7 and 8, alpha = 1, B(h) = h), from lambdas[-2] to lambdas[-1].

    `m` are the predictions of x0, the newest last; for UniC that at the step's end.
    """
    h = lambdas[-1] - lambdas[-2]
    base = m[-2] if correct else m[-1]
    before = m[:-2] if correct else m[:-1]
    differences = [(before[-i] - base, (lambdas[-2 - i] - lambdas[-2]) / h) for i in range(1, order)]
    if correct:
        differences.append((m[-1] - base, 1.0))
    p = len(differences)
    x = math.exp(-h) * x - math.expm1(-h) * base
    if p == 0:
        return x
    ratios = [ratio for _, ratio in differences]
    rhs = np.array([math.factorial(n) * phi(n + 1, -h) for n in range(1, p + 1)])
    a = [0.5] if p == 1 else np.linalg.solve(np.array([[r**n for r in ratios] for n in range(p)]), rhs)
    return x + h * sum(weight * difference / ratio for weight, (difference, ratio) in zip(a, differences, strict=True))


@pytest.mark.parametrize("steps", COUNTS)
def test_unipc_is_the_papers_formula(steps: int) -> None:
    solving = make("unipc", steps)
    lambdas = [-math.log(sigma) for sigma in solving.sigmas[:-1]]
    base = predicted = NOISE.double()
    m: list[torch.Tensor] = []
    for i, sigma in enumerate(solving.sigmas[:-1]):
        m.append(predicted - sigma * bent(predicted, sigma))
        base = paper_step(min(i, 3), lambdas[: i + 1], base, m, correct=True) if i else predicted
        if i + 1 < steps:
            predicted = paper_step(min(i + 1, 3), lambdas[: i + 2], base, m, correct=False)
    double = path(solving, bent, NOISE.double())[-1].latents
    torch.testing.assert_close(double, m[-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(path(solving, bent, NOISE)[-1].latents.double(), m[-1], rtol=0, atol=1e-5)


def test_order_of_convergence_on_a_stiff_equation() -> None:
    noise = torch.linspace(-2, 2, 16, dtype=torch.float64)[None, None, None, None]
    counts = [64, 128, 256]
    errors: dict[str, list[float]] = {"unipc": [], "euler": []}
    level = make("unipc", 64).sigmas[56]  # one that they all have
    exact = runge_kutta(towards_two_widths, noise, level, 500)
    for kind, found in errors.items():
        for steps in counts:
            solving, place = make(kind, steps), steps * 56 // 64
            assert solving.sigmas[place] == pytest.approx(level, abs=1e-7)
            found.append(float((path(solving, towards_two_widths, noise)[place].latents - exact).abs().max()))
    slope = {kind: -np.polyfit(np.log(counts), np.log(found), 1)[0] for kind, found in errors.items()}
    assert slope["euler"] == pytest.approx(1, abs=0.1)
    assert slope["unipc"] > 3
    assert all(ours < theirs / 10 for ours, theirs in zip(errors["unipc"], errors["euler"], strict=True))


@pytest.mark.parametrize("mu", [0.0, *SHIFTS])
@pytest.mark.parametrize("kind", ["unipc", "euler"])
def test_every_count_of_steps_gives_numbers(kind: str, mu: float) -> None:
    for steps in range(1, 101):
        states = path(make(kind, steps, mu), bent, NOISE)
        assert len(states) == steps + 1
        assert all(state.latents.isfinite().all() for state in states)
        assert all(state.latents.dtype == torch.float32 for state in states)
        assert states[-1].latents.abs().max() < 20


@pytest.mark.parametrize("kind", ["unipc", "euler"])
def test_a_state_written_and_read_goes_on_bit_for_bit(kind: str) -> None:
    states = path(make(kind, 7), bent, NOISE)
    for state in states:
        named = {"latents": state.latents, **{str(place): kept for place, kept in enumerate(state.history)}}
        read = load(save(named))
        resumed = solver.State(state.step, read.pop("latents"), tuple(read[str(place)] for place in range(len(read))))
        solving = make(kind, 7)
        for sigma in solving.sigmas[state.step : -1]:
            resumed = solving.step(resumed, bent(resumed.latents, sigma))
        assert resumed.step == 7
        assert torch.equal(resumed.latents, states[-1].latents)


@pytest.mark.parametrize("kind", ["unipc", "euler"])
def test_a_guess_is_made_of_what_the_model_saw(kind: str) -> None:
    solving, rounded = make(kind, 3), NOISE.bfloat16().float()
    velocity = bent(rounded, 1.0)
    state = solving.step(solver.State(0, NOISE), velocity, rounded)
    assert torch.equal(state.guess, rounded - velocity)
    # A step begins where the last one led, and not at what the model was shown.
    moved = solving.step(solver.State(0, NOISE), velocity).latents
    torch.testing.assert_close(state.latents, moved, rtol=0, atol=0.01)
