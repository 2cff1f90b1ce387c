"""Draws docs/solver.png, how far the solvers are off: `PYTHONPATH=tests python docs/plot_solver.py`.

The flow is the exact one for data of two normal distributions, of which the narrow one makes it stiff. Left the error
at a noise level on the way, which shows the order; right that of the result, whose last step is the same for both.
Prints the numbers of docs/solver.md.
"""
# ruff: noqa: INP001, T201 - a script beside the documentation, not a package

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from toy_flows import make, path, runge_kutta, towards_two_widths

TARGET = Path(__file__).parent / "solver.png"
SCALE = 2  # drawn so much larger, then made smaller, for smooth lines
WIDTH, HEIGHT = 1100, 470  # pixels
COLOURS = {"unipc": "#c2410c", "euler": "#1d4ed8"}
NAMES = {"unipc": "UniPC", "euler": "Euler"}
INK, FAINT = "#1f2937", "#d1d5db"
NOISE = torch.tensor(np.random.default_rng(7).normal(size=(1, 1, 1, 1, 400)))
ON_THE_WAY = [8, 16, 32, 64, 128, 256, 512]  # steps; all have the level after 7/8 of them
TO_THE_END = [2, 3, 4, 5, 7, 10, 14, 18, 25, 35, 50, 70, 100]
NEARLY_ZERO = 1e-4  # sigma at which the exact way ends
DEFAULT_STEPS = 25

Curves = Mapping[str, Sequence[float]]


def error(state: torch.Tensor, exact: torch.Tensor) -> float:
    """Root of the mean square."""
    return float((state - exact).square().mean().sqrt())


def on_the_way() -> Curves:
    """Errors after 7/8 of the steps."""
    exact = runge_kutta(towards_two_widths, NOISE, make("unipc", 8).sigmas[7], 2000)
    return {
        kind: [
            error(path(make(kind, steps), towards_two_widths, NOISE)[steps * 7 // 8].latents, exact)
            for steps in ON_THE_WAY
        ]
        for kind in NAMES
    }


def at_the_end() -> Curves:
    """Errors of the result."""
    exact = runge_kutta(towards_two_widths, NOISE, NEARLY_ZERO, 20_000)
    return {
        kind: [error(path(make(kind, steps), towards_two_widths, NOISE)[-1].latents, exact) for steps in TO_THE_END]
        for kind in NAMES
    }


@dataclass(frozen=True)
class Panel:
    """Axes with logarithmic scales."""

    draw: ImageDraw.ImageDraw
    left: int  # pixels of the picture, as are the other three
    top: int
    right: int
    bottom: int
    steps: tuple[float, float]  # of the horizontal axis
    decades: tuple[int, int]  # powers of ten of the vertical axis

    def at(self, steps: float, value: float) -> tuple[float, float]:
        """The place of a point, in drawn pixels."""
        low, high = (math.log(end) for end in self.steps)
        across = (math.log(steps) - low) / (high - low)
        up = (math.log10(value) - self.decades[0]) / (self.decades[1] - self.decades[0])
        return (
            SCALE * (self.left + across * (self.right - self.left)),
            SCALE * (self.bottom - up * (self.bottom - self.top)),
        )

    def axes(self, title: str, ticks: Sequence[int]) -> None:
        """Frame, grid, numbers and title."""
        low, high = (10.0**end for end in self.decades)
        for steps in ticks:
            x, y = self.at(steps, low)
            self.draw.line([(x, y), self.at(steps, high)], fill=FAINT, width=SCALE)
            self.text((x, y + 6 * SCALE), str(steps), "mt")
        for decade in range(self.decades[0], self.decades[1] + 1):
            x, y = self.at(self.steps[0], 10.0**decade)
            self.draw.line([(x, y), self.at(self.steps[1], 10.0**decade)], fill=FAINT, width=SCALE)
            self.text((x - 6 * SCALE, y), f"1e{decade}" if decade else "1", "rm")
        self.draw.rectangle([self.at(self.steps[0], high), self.at(self.steps[1], low)], outline=INK, width=SCALE)
        middle = SCALE * (self.left + self.right) / 2
        self.text((middle, SCALE * (self.top - 20)), title, "mm", size=16)
        self.text((middle, SCALE * (self.bottom + 34)), "steps", "mm")

    def curve(self, steps: Sequence[int], values: Sequence[float], colour: str) -> None:
        """A line with a dot at each point."""
        points = [self.at(*point) for point in zip(steps, values, strict=True)]
        self.draw.line(points, fill=colour, width=2 * SCALE)
        for x, y in points:
            self.draw.ellipse([x - 4 * SCALE, y - 4 * SCALE, x + 4 * SCALE, y + 4 * SCALE], fill=colour)

    def guide(self, begin: tuple[float, float], until: float, order: int) -> None:
        """A thin line of a slope, from a point on."""
        end = begin[1] * (begin[0] / until) ** order
        self.draw.line([self.at(*begin), self.at(until, end)], fill=INK, width=SCALE)
        x, y = self.at(*begin)
        self.text((x - 6 * SCALE, y), f"order {order}", "rm", size=13)

    def text(self, place: tuple[float, float], words: str, anchor: str, *, size: int = 14, fill: str = INK) -> None:
        """Words at a place in drawn pixels."""
        self.draw.text(place, words, fill=fill, anchor=anchor, font=ImageFont.load_default(size * SCALE))


def label(panel: Panel, steps: float, value: float, kind: str) -> None:
    """The name of a curve."""
    panel.text(panel.at(steps, value), NAMES[kind], "lm", size=16, fill=COLOURS[kind])


def slopes(steps: Sequence[int], values: Sequence[float]) -> str:
    """The order between each two points."""
    found = -np.diff(np.log(values)) / np.diff(np.log(steps))
    return " ".join(f"{slope:.2f}" for slope in found)


def report(title: str, steps: Sequence[int], curves: Curves) -> None:
    """Print the numbers."""
    print(title, *steps)
    for kind, values in curves.items():
        print(kind, " ".join(f"{value:.1e}" for value in values), "| slopes", slopes(steps, values))


def main() -> None:
    """Measure, print and draw."""
    way, end = on_the_way(), at_the_end()
    report("on the way", ON_THE_WAY, way)
    report("at the end", TO_THE_END, end)
    picture = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    draw = ImageDraw.Draw(picture)
    left = Panel(draw, 60, 50, 530, 400, (7, 600), (-8, 0))
    left.axes("error on the way, at one noise level", ON_THE_WAY)
    left.guide((64, way["unipc"][3] / 4), 256, 4)
    left.guide((32, way["euler"][2] * 3), 512, 1)
    right = Panel(draw, 610, 50, 1080, 400, (1.8, 112), (-3, 0))
    right.axes("error of the result", [2, 5, 10, DEFAULT_STEPS, 50, 100])
    for panel, steps, curves in ((left, ON_THE_WAY, way), (right, TO_THE_END, end)):
        for kind, values in curves.items():
            panel.curve(steps, values, COLOURS[kind])
    label(left, 330, way["euler"][5] / 3, "euler")
    label(left, 200, way["unipc"][4] * 3, "unipc")
    label(right, 60, end["euler"][-2] * 2, "euler")
    label(right, 40, end["unipc"][-2] / 1.5, "unipc")
    picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
