"""Trimming, stopping, crashing and going on: the video is the same in the end, byte for byte."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
import torch

from framepack_daemon.engine import checkpoint, render
from framepack_daemon.engine.sources import Sources
from framepack_daemon.request import Request, build, effective

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from framepack_daemon.engine.models import Models

SAMPLINGS = ["inverted_anti_drifting", "vanilla"]
CHILD = """
import json, sys, torch
from pathlib import Path
from framepack_daemon.engine import models, render
from framepack_daemon.engine.sources import Sources
from framepack_daemon.request import build
models_dir, image, scratch, sidecar = sys.argv[1:]
torch.set_num_threads(2)
loaded = models.load("tiny", Path(models_dir))
for event in render.render(build(json.loads(sidecar)), loaded, Sources(Path(image)), Path(scratch)):
    print(type(event).__name__, getattr(event, "section", ""), flush=True)
"""


def request(**more: Any) -> Request:
    fields = {
        "prompt": "The girl dances gracefully.",
        "frames": 109,
        "seed": 11,
        "num_inference_steps": 3,
        "width": 64,
        "height": 112,
    }
    return effective(build(fields | more), "tiny")


def finish(asked: Request, models: Models, image: Path, scratch: Path) -> tuple[list[render.Event], render.Finished]:
    scratch.mkdir(exist_ok=True)
    events = list(render.render(asked, models, Sources(image), scratch))
    last = events[-1]
    assert isinstance(last, render.Finished)
    return events, last


@pytest.fixture(scope="module")
def whole(tiny_models: Models, still: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of the uninterrupted video, by direction."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        sampling: finish(request(sampling=sampling), tiny_models, still, folder / sampling)[1].facts.sha256
        for sampling in SAMPLINGS
    }


def stop(asked: Request, models: Models, image: Path, scratch: Path, when: Callable[[render.Event], bool]) -> None:
    scratch.mkdir()
    rendering: Any = render.render(asked, models, Sources(image), scratch)
    with contextlib.closing(rendering):
        assert any(when(event) for event in rendering)


def planes(video: Path) -> list[Any]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def same(ours: Any, theirs: Any) -> bool:
    """Whether two decoded frames are one, but for what nearly lossless coding leaves."""
    return bool(np.abs(ours.astype(int) - theirs).mean() < 1)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_trimming_keeps_every_frame_before_the_end(
    sampling: str, tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    for sections, counts in ((1, (1, 36)), (3, (74, 100))):
        whole = request(sampling=sampling, frames=36 * sections + 1, num_inference_steps=1, crf=1)
        frames = planes(finish(whole, tiny_models, picture, tmp_path / f"whole-{sections}")[1].video)
        assert len(frames) == 36 * sections + 1
        for count in counts:
            asked = request(sampling=sampling, frames=count, num_inference_steps=1, crf=1)
            trimmed = planes(finish(asked, tiny_models, picture, tmp_path / f"trimmed-{count}")[1].video)
            assert len(trimmed) == count
            assert all(same(ours, theirs) for ours, theirs in zip(trimmed, frames, strict=False))
            assert not any(same(frames[0], other) for other in frames[1:])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_stopped_render_ends_in_the_same_video(
    sampling: str, whole: dict[str, str], tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    asked = request(sampling=sampling)
    points: dict[str, Callable[[render.Event], bool]] = {
        "step-2": lambda event: isinstance(event, render.Step) and (event.section, event.step) == (2, 2),
        "last-step": lambda event: isinstance(event, render.Step) and (event.section, event.step) == (3, 3),
        "section-2": lambda event: isinstance(event, render.Section) and event.section == 2,
    }
    found = {}
    for name, when in points.items():
        stop(asked, tiny_models, picture, tmp_path / name, when)
        events, resumed = finish(asked, tiny_models, picture, tmp_path / name)
        assert resumed.facts.sha256 == whole[sampling], name
        steps = sum(isinstance(event, render.Step) for event in events)
        found[name] = (resumed.resumed_from, steps)
    assert found == {"step-2": (2, 4), "last-step": (3, 0), "section-2": (3, 3)}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_missing_segment_is_decoded_anew(
    sampling: str, whole: dict[str, str], tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    asked = request(sampling=sampling)
    for done in (2, 3):
        scratch = tmp_path / f"after-{done}"
        stop(
            asked,
            tiny_models,
            picture,
            scratch,
            lambda event, done=done: isinstance(event, render.Section) and event.section == done,
        )
        (scratch / f"segment-{done - 1:04d}.mp4").unlink(missing_ok=True)
        assert finish(asked, tiny_models, picture, scratch)[1].facts.sha256 == whole[sampling]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_killed_process_ends_in_the_same_video(  # noqa: PLR0917 - fixtures
    sampling: str, whole: dict[str, str], tiny_models: Models, models_dir: Path, picture: Path, tmp_path: Path
) -> None:
    asked = request(sampling=sampling)
    scratch = tmp_path / "killed"
    scratch.mkdir()
    command = [sys.executable, "-c", CHILD, models_dir, picture, scratch, asked.model_dump_json(exclude_none=True)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        lines = iter(child.stdout.readline, "")
        assert any(line.split() == ["Step", "2"] for line in lines)
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    events, resumed = finish(asked, tiny_models, picture, scratch)
    assert resumed.resumed_from == 2
    assert isinstance(events[0], render.Started)
    assert not events[0].note
    assert resumed.facts.sha256 == whole[sampling]


@pytest.mark.parametrize("done", [0, 1])
def test_what_a_killed_render_had_half_written_is_removed(
    done: int, tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    asked = request(frames=37, num_inference_steps=1)
    undisturbed, scratch = tmp_path / "undisturbed", tmp_path / "killed"
    finish(asked, tiny_models, picture, undisturbed)
    stop(asked, tiny_models, picture, scratch, lambda event: isinstance(event, (render.Started, render.Section)[done]))
    halves = ("edge.mp4", ".edge.mp4.part", ".segment-0007.mp4.part", ".checkpoint.safetensors.0123abcd.tmp")
    for name in halves:
        (scratch / name).write_bytes(b"half")
    finish(asked, tiny_models, picture, scratch)
    assert sorted(scratch.iterdir()) == sorted(scratch / path.name for path in undisturbed.iterdir())


def test_another_request_solver_or_revision_or_a_damaged_file_starts_afresh(
    whole: dict[str, str], tiny_models: Models, picture: Path, tmp_path: Path
) -> None:
    asked = request()
    others = {"request": request(guidance_scale=3.0), "solver": request(solver="euler")}
    revised = replace(tiny_models, revision="another")

    def after_one(event: render.Event) -> bool:
        return isinstance(event, render.Section) and event.section == 1

    def cut(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-100])

    for name in ("request", "solver", "revision", "damaged"):
        scratch = tmp_path / name
        models = revised if name == "revision" else tiny_models
        stop(others.get(name, asked), models, picture, scratch, after_one)
        if name == "damaged":
            cut(scratch / checkpoint.CHECKPOINT)
        (started, *_), finished = finish(asked, tiny_models, picture, scratch)
        assert isinstance(started, render.Started)
        assert started.resumed_section is None
        assert "started afresh" in started.note
        assert finished.facts.sha256 == whole["inverted_anti_drifting"]


def test_a_finished_video_is_not_rendered_again(tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    asked = request(frames=37)
    _, first = finish(asked, tiny_models, picture, tmp_path)
    events, again = finish(asked, tiny_models, picture, tmp_path)
    assert events == [again]
    assert again.facts == first.facts
    first.video.write_bytes(first.video.read_bytes()[:-100])
    events, mended = finish(asked, tiny_models, picture, tmp_path)
    assert len(events) > 1
    assert mended.facts == first.facts


def test_what_is_held_does_not_grow_with_the_sections(tiny_models: Models, picture: Path, tmp_path: Path) -> None:
    held, saved = [], []
    asked = request(frames=36 * 7 + 1, num_inference_steps=1)
    for event in render.render(asked, tiny_models, Sources(picture), tmp_path):
        if isinstance(event, render.Section):
            gc.collect()
            tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
            held.append(sum(tensor.nbytes for tensor in tensors))
            saved.append((tmp_path / checkpoint.CHECKPOINT).stat().st_size)
    assert len(held) == 7
    assert len(set(held[1:6])) == 1
    assert max(saved[1:6]) - min(saved[1:6]) < 16
