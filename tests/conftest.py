"""What several tests share: the tiny model, made once per run, pictures, and folders with or without a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from lab import Lab
from PIL import Image
from spool_bench import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from framepack_daemon.engine.models import Models

THREADS = 2  # of torch, in every process whose frames are compared


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model files with the tiny model in it."""
    from framepack_daemon.engine import tiny

    folder = tmp_path_factory.mktemp("models")
    tiny.build(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def tiny_models(models_dir: Path) -> Models:
    """The tiny model, loaded on the CPU."""
    import torch

    from framepack_daemon.engine import models

    torch.set_num_threads(THREADS)
    return models.load("tiny", models_dir)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch: networks this small only wait for each other with more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def paint(path: Path, width: int = 96, height: int = 64, shade: int = 0) -> Path:
    """A picture with colours, a gradient and an edge."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = 128 + 100 * np.sin(columns / 12 + shade)
    green = 128 + 100 * np.cos(rows / 9 + shade)
    pixels = np.stack([red, green, (columns + rows + shade) % 256], axis=-1).astype(np.uint8)
    pixels[height // 3 : height // 2, width // 3 : width // 2] = (240, 60, 30)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture of `picture`, for the whole run."""
    return paint(tmp_path_factory.mktemp("still") / "beach.png")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small picture."""
    return paint(tmp_path / "beach.png")


@pytest.fixture
def end_picture(tmp_path: Path) -> Path:
    """Another small picture."""
    return paint(tmp_path / "beach.last.png", shade=2)


@pytest.fixture
def bench(tmp_path: Path, picture: Path) -> Bench:
    """An inbox and a queue without a daemon."""
    return Bench(tmp_path / "bench", picture)


@pytest.fixture
def lab(tmp_path: Path, models_dir: Path, picture: Path) -> Iterator[Lab]:
    """Folders for a daemon; whatever daemon was started in them is ended."""
    laboratory = Lab(tmp_path / "lab", models_dir, picture)
    yield laboratory
    if laboratory.process is not None and laboratory.process.poll() is None:
        laboratory.process.kill()
        laboratory.process.wait()


@pytest.fixture
def running(lab: Lab) -> Lab:
    """A daemon that runs."""
    lab.start()
    return lab
