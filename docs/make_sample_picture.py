"""Renders the sample picture, a beach at sunset: `python docs/make_sample_picture.py [TARGET]`.

Sky, clouds, sea and sand are functions of the place in the picture and of noise summed over octaves; nothing is
photographed, so the picture may be used for anything.
"""
# ruff: noqa: INP001 - a script beside the documentation, not a package

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Plane = NDArray[np.float64]  # (H, W), or (H, W, 3) for colours, in 0..1

WIDTH, HEIGHT = 768, 512  # pixels
HORIZON = 236  # row
SUN = (505, 208)  # column, row
SUN_RADIUS = 21
TARGET = Path(__file__).parent.parent / "framepack_daemon" / "samples" / "beach.jpg"

random = np.random.default_rng(7)
rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(float)


def noise(wide: float, high: float, octaves: int = 6) -> Plane:
    """Fractal noise in 0..1 whose largest spots are `wide` by `high` pixels."""
    total = np.zeros((HEIGHT, WIDTH))
    for octave in range(octaves):
        cells = (max(2, round(HEIGHT / high * 2**octave)), max(2, round(WIDTH / wide * 2**octave)))
        grid = Image.fromarray(random.random(cells).astype(np.float32))
        total += np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / 2**octave
    darkest, brightest = float(total.min()), float(total.max())
    return (total - darkest) / (brightest - darkest)


def step(low: float, high: float, value: Plane) -> Plane:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(below: Plane, above: Plane | tuple[float, float, float], amount: Plane) -> Plane:
    """`above` laid over `below` by `amount`."""
    return below + (np.asarray(above) - below) * amount[..., None]


def gradient(position: Plane, stops: list[tuple[float, tuple[int, int, int]]]) -> Plane:
    """Colours along `position`, between `stops` of (position, RGB in 0..255)."""
    places = [place for place, _ in stops]
    return np.stack([np.interp(position, places, [rgb[c] / 255 for _, rgb in stops]) for c in range(3)], axis=-1)


def sky() -> Plane:
    """Evening sky with a glow around the sun and clouds lit from below."""
    up = (HORIZON - rows) / HORIZON
    colours = gradient(
        up,
        [
            (-0.1, (255, 176, 96)),
            (0.08, (254, 188, 112)),
            (0.3, (238, 158, 122)),
            (0.6, (150, 126, 158)),
            (1.0, (64, 84, 140)),
        ],
    )
    distance = np.hypot(columns - SUN[0], (rows - SUN[1]) * 1.25)
    colours = mix(colours, (1.0, 0.86, 0.55), 0.75 * np.exp(-distance / 85))
    cover = step(0.42, 0.66, noise(330, 46, 7) * 0.6 + noise(110, 16) * 0.4) * step(0.08, 0.45, up)
    lit = np.exp(-distance / 260)
    clouds = mix(
        np.broadcast_to(np.array([0.42, 0.36, 0.47]), colours.shape), (1.0, 0.70, 0.46), np.clip(1.25 * lit, 0, 1)
    )
    edge = cover * (1 - cover) * 4
    colours = mix(colours, clouds, cover * 0.8)
    return mix(colours, (1.0, 0.83, 0.6), edge * 0.5 * lit)


def sun() -> Plane:
    """How much of the sun's disc covers each place."""
    return 1 - step(SUN_RADIUS - 1.5, SUN_RADIUS + 1.5, np.hypot(columns - SUN[0], rows - SUN[1]))


def shore() -> Plane:
    """Row of the water's edge in each column."""
    edge: Plane = 392 - 34 * (columns / WIDTH) + 9 * np.sin(columns / 83) + 5 * np.sin(columns / 31 + 1)
    return edge + 6 * noise(160, 4000, 4)


def sea(sky_colours: Plane) -> Plane:
    """Water that mirrors the sky, waves that grow towards the shore, and the path of the sun's glitter."""
    depth = np.clip((rows - HORIZON) / 160, 0, 1)
    mirrored = sky_colours[np.clip(2 * HORIZON - rows.astype(int), 0, HORIZON - 1), columns.astype(int)]
    colours = mix(mirrored, (0.10, 0.26, 0.38), 0.46 + 0.28 * depth)
    far = noise(70, 3.2, 4)
    near = noise(240, 15, 5)
    waves = far * (1 - depth) + near * depth
    colours *= (0.74 + 0.52 * waves)[..., None]
    width = 16 + 92 * depth
    path = np.exp(-(((columns - SUN[0]) / width) ** 2))
    sparkle = step(0.5, 0.68, noise(26, 2.6, 3) * (1 - depth) + noise(60, 6, 4) * depth)
    colours = mix(colours, (1.0, 0.82, 0.52), path * (0.3 + 0.7 * sparkle) * (1 - 0.35 * depth))
    for offset, strength, thickness in ((26, 0.85, 3.4), (54, 0.5, 2.4), (84, 0.3, 1.6)):
        bend = 5 * np.sin(columns / 57 + offset) + 14 * (noise(150, 4000, 5) - 0.5)
        crest = shore() - offset + bend * (1 - offset / 120)
        behind = rows - crest
        colours *= (1 - 0.28 * strength * np.exp(-(((behind + 2.6 * thickness) / (2.2 * thickness)) ** 2)))[..., None]
        foam = np.exp(-((behind / thickness) ** 2)) * step(0.3, 0.6, noise(70, 10, 4))
        colours = mix(colours, (1.0, 0.93, 0.86), foam * strength)
    return colours


def sand(sky_colours: Plane) -> Plane:
    """Sand with ripples and grain, dark and mirroring where it is wet."""
    down = np.clip((rows - shore()) / (HEIGHT - 370), 0, 1)
    colours = gradient(down, [(0, (176, 134, 100)), (0.5, (198, 154, 112)), (1, (160, 120, 90))])
    bend = noise(230, 70, 4)
    ripples = np.sin((rows + 60 * bend + columns * 0.12) / (1.6 + 2.6 * down)) * step(0.3, 0.7, down)
    grain = random.normal(0, 1, (HEIGHT, WIDTH))
    colours *= (1 + 0.055 * ripples + 0.16 * (noise(130, 34) - 0.5) + 0.03 * grain)[..., None]
    wet = 1 - step(0.04, 0.34, down + 0.1 * (noise(120, 14) - 0.5))
    mirrored = sky_colours[np.clip((2 * HORIZON - rows).astype(int) + 120, 0, HORIZON - 1), columns.astype(int)]
    colours = mix(colours, mirrored * 0.5 + np.array([0.20, 0.15, 0.12]), wet * 0.72)
    glow = np.exp(-(((columns - SUN[0]) / 150) ** 2))
    return mix(colours, (1.0, 0.78, 0.5), wet * glow * 0.42)


def boat(picture: Image.Image) -> Image.Image:
    """A sailing boat before the horizon, drawn four times as large and reduced."""
    scale = 4
    layer = Image.new("RGBA", (WIDTH * scale, HEIGHT * scale))
    draw = ImageDraw.Draw(layer)

    def shape(points: list[tuple[float, float]], colour: tuple[int, int, int, int]) -> None:
        draw.polygon([((262 + x) * scale, (HORIZON + 7 + y) * scale) for x, y in points], fill=colour)

    shape([(1, -50), (1, -5), (-21, -5), (-12, -24)], (74, 52, 66, 255))
    shape([(3, -46), (3, -5), (20, -5), (13, -22)], (104, 70, 74, 255))
    shape([(1, -52), (2.4, -52), (2.4, -2), (1, -2)], (40, 30, 42, 255))
    shape([(-24, -4), (25, -4), (17, 3), (-17, 3)], (42, 30, 42, 255))
    shape([(-20, 4), (20, 4), (9, 15), (3, 30), (-5, 14)], (46, 34, 48, 80))
    layer = layer.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def render() -> Image.Image:
    """The picture, RGB."""
    above = sky()
    picture = mix(mix(above, (1.0, 0.96, 0.82), sun()), sea(above), step(HORIZON - 0.8, HORIZON + 0.8, rows))
    edge = shore()
    picture = mix(picture, sand(above), step(-1, 2.5, rows - edge))
    wash = np.exp(-(((rows - edge) / 3.4) ** 2)) * (0.55 + 0.45 * noise(60, 8, 4))
    lace = np.exp(-(((rows - edge + 8) / 9) ** 2)) * step(0.45, 0.62, noise(34, 7, 4))
    picture = mix(picture, (1.0, 0.94, 0.88), np.clip(0.9 * wash + 0.6 * lace, 0, 1))
    haze = np.exp(-(((rows - HORIZON) / 7) ** 2)) * 0.35
    picture = mix(picture, (1.0, 0.77, 0.55), haze)
    vignette = 1 - 0.22 * np.hypot((columns / WIDTH - 0.5) * 1.2, rows / HEIGHT - 0.5) ** 2 * 2
    pixels = np.clip(picture * vignette[..., None] + random.normal(0, 0.008, picture.shape), 0, 1)
    return boat(Image.fromarray((pixels * 255).round().astype(np.uint8))).filter(ImageFilter.GaussianBlur(0.5))


if __name__ == "__main__":
    render().save(Path(sys.argv[1]) if sys.argv[1:] else TARGET, quality=88, optimize=True)
