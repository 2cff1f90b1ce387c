"""The frame of a video: which size a picture gets, what is cut off, and what true CFG's rescale does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from framepack_daemon.engine import conditioning, sampler
from framepack_daemon.request import build


@pytest.mark.parametrize("shape", [(1920, 1080), (1080, 1920), (1000, 1000), (3000, 200), (1, 1)])
@pytest.mark.parametrize("resolution", range(320, 961, 32))
def test_a_bucket_of_any_resolution_has_the_shape_of_its_like_at_640(shape: tuple[int, int], resolution: int) -> None:
    image = Image.new("RGB", shape)
    height, width = conditioning.frame_size(build({"prompt": "a", "resolution": resolution}), image)
    bucket = conditioning.nearest_bucket(image.height, image.width)
    assert (height % 16, width % 16) == (0, 0)
    for side, of_bucket in zip((height, width), bucket, strict=True):
        assert abs(side - of_bucket * resolution / 640) <= 8
    if resolution == 640:
        assert (height, width) == bucket


def test_width_and_height_are_taken_as_they_are() -> None:
    request = build({"prompt": "a", "width": 80, "height": 2048})
    assert conditioning.frame_size(request, Image.new("RGB", (500, 100))) == (2048, 80)


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (50, 40), (640, 641)])
def test_a_picture_covers_the_frame_and_loses_alike_on_both_sides(size: tuple[int, int]) -> None:
    columns, rows = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    picture = Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8))
    frame = np.asarray(conditioning.fit(picture, 64, 96), float)
    assert frame.shape == (64, 96, 3)
    # Red grows from left to right and green downwards: the middle stays the middle, and nothing is stretched.
    assert np.allclose(frame[..., :2].mean(axis=(0, 1)), 127, atol=3)
    steps = np.array([np.diff(frame[32, :, 0]).mean() * size[0], np.diff(frame[:, 48, 1]).mean() * size[1]])
    assert steps[0] == pytest.approx(steps[1], rel=0.08)


def test_rescale_gives_true_cfg_the_spread_of_the_wanted_prediction() -> None:
    generator = torch.Generator().manual_seed(1)
    wanted = torch.randn(2, 16, 3, 8, 8, generator=generator)
    guided = 4 * torch.randn(2, 16, 3, 8, 8, generator=generator) + 1
    spread = [sampler._rescale(guided, wanted, amount).flatten(1).std(dim=1) for amount in (0.0, 0.5, 1.0)]
    assert torch.equal(spread[0], guided.flatten(1).std(dim=1))
    assert torch.allclose(spread[2], wanted.flatten(1).std(dim=1))
    assert torch.allclose(spread[1], (spread[0] + spread[2]) / 2)
