"""What several tests share: the tiny model, made once per run, pictures, and folders with or without a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import crash
import numpy as np
import pytest
from lab import Lab
from PIL import Image
from spool_bench import Bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from framepack_daemon.engine.models import Models


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where tests run side by side, hand in how many crash points were tried here."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["crash_points"] = dict(crash.tally)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what the processes have handed in; one that died has not."""
    crash.tally.update(getattr(node, "workeroutput", {}).get("crash_points", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many crash points the tests have tried."""
    if crash.tally:
        told = ", ".join(f"{operation} {points}" for operation, points in sorted(crash.tally.items()))
        terminalreporter.write_line(f"crash points: {told}; together {crash.tally.total()}")


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
def one_thread(tiny_models: Models) -> Iterator[None]:
    """One thread of torch: networks this small only wait for each other with more.

    What was encoded with another number of threads has other last bits, and is forgotten.
    """
    import torch

    torch.set_num_threads(1)
    tiny_models.encodings.clear()
    yield
    torch.set_num_threads(THREADS)
    tiny_models.encodings.clear()


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
    laboratory.end()


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """How the daemon of `running` is set; a module that wants it otherwise has a fixture of this name."""
    return {}


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path) -> Iterator[Lab]:
    """The folders of `running`."""
    laboratory = Lab(tmp_path_factory.mktemp("shared") / "lab", models_dir, still)
    yield laboratory
    laboratory.end()


@pytest.fixture
def running(shared_lab: Lab, settings: dict[str, Any]) -> Lab:
    """A daemon that runs and has nothing to do: a module's tests share it, for its worker is long in starting."""
    shared_lab.clear()
    if not shared_lab.runs:
        shared_lab.start(**settings)
    return shared_lab
