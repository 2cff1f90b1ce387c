"""The first-block cache: what it saves, and that nothing of it stays behind."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from diffusers.hooks import HookRegistry
from diffusers.hooks.group_offloading import LazyPrefetchGroupOffloadingHook, apply_group_offloading

from framepack_daemon.engine import cache, render, sampler
from framepack_daemon.engine import models as engine_models
from framepack_daemon.engine.sources import Sources
from framepack_daemon.request import Request, build, effective

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from framepack_daemon.engine.models import Models

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, SECTIONS = 8, 2


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network of random weights answers changes by more from step to step than that of a trained one."""
    monkeypatch.setattr(cache, "THRESHOLD", 0.4)


def request(**more: Any) -> Request:
    fields = {
        "prompt": "The girl dances gracefully.",
        "frames": 36 * SECTIONS + 1,
        "seed": 11,
        "num_inference_steps": STEPS,
        "width": 64,
        "height": 112,
    }
    return effective(build(fields | more), "tiny")


def sha256(asked: Request, models: Models, image: Path, scratch: Path) -> str:
    scratch.mkdir(exist_ok=True)
    *_, finished = render.render(asked, models, Sources(image), scratch)
    assert isinstance(finished, render.Finished)
    return finished.facts.sha256


@contextlib.contextmanager
def counted(models: Models) -> Iterator[Counter[str]]:
    """How often the first and the last block really work."""
    calls: Counter[str] = Counter()
    blocks = {
        "first": models.transformer.transformer_blocks[0],
        "last": models.transformer.single_transformer_blocks[-1],
    }
    handles = []
    for name, block in blocks.items():

        def count(*_: Any, name: str = name) -> None:
            calls[name] += 1

        handles.append(block.attn.register_forward_hook(count))
    yield calls
    for handle in handles:
        handle.remove()


def hooks(models: Models) -> list[str]:
    registries = [getattr(module, "_diffusers_hook", None) for module in models.transformer.modules()]
    return [name for registry in registries if registry for name in registry.hooks]


@pytest.mark.parametrize("more", [{}, {"true_cfg_scale": 2.0, "negative_prompt": "blurred"}])
def test_a_cache_saves_work_and_leaves_nothing_behind(
    more: dict[str, Any], tiny_models: Models, still: Path, tmp_path: Path
) -> None:
    texts = 2 if more else 1
    with counted(tiny_models) as calls:
        plain = sha256(request(**more), tiny_models, still, tmp_path / "before")
    assert calls == {"first": texts * STEPS * SECTIONS, "last": texts * STEPS * SECTIONS}
    with counted(tiny_models) as calls:
        cached = sha256(request(cache="first_block", **more), tiny_models, still, tmp_path / "cached")
    assert calls["first"] == texts * STEPS * SECTIONS
    # In each section two steps for each text have nothing to reuse.
    assert texts * 2 * SECTIONS <= calls["last"] < texts * STEPS * SECTIONS * 3 / 4
    assert cached != plain
    assert hooks(tiny_models) == []
    assert sha256(request(**more), tiny_models, still, tmp_path / "after") == plain
    assert sha256(request(cache="first_block", **more), tiny_models, still, tmp_path / "again") == cached


def test_each_section_begins_with_nothing_remembered(
    tiny_models: Models, still: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = []
    denoise = sampler.denoise

    def watched(*arguments: Any) -> Iterator[Any]:
        with counted(tiny_models) as calls:
            for state in denoise(*arguments):
                works.append((state.step, calls["last"]))
                yield state

    monkeypatch.setattr(sampler, "denoise", watched)
    sha256(request(cache="first_block"), tiny_models, still, tmp_path / "job")
    assert [work for step, work in works if step <= 2] == [1, 2] * SECTIONS


def test_a_stopped_section_begins_anew_and_gives_the_same_video(
    tiny_models: Models, still: Path, tmp_path: Path
) -> None:
    asked = request(cache="first_block")
    whole = sha256(asked, tiny_models, still, tmp_path / "whole")
    scratch = tmp_path / "stopped"
    scratch.mkdir()
    rendering: Any = render.render(asked, tiny_models, Sources(still), scratch)
    with contextlib.closing(rendering):
        assert any(isinstance(event, render.Step) and (event.section, event.step) == (2, 7) for event in rendering)
    assert hooks(tiny_models) == []
    started, *_, finished = render.render(asked, tiny_models, Sources(still), scratch)
    assert isinstance(started, render.Started)
    assert (started.resumed_section, started.resumed_step) == (2, 0)
    assert isinstance(finished, render.Finished)
    assert finished.facts.sha256 == whole


def test_blocks_that_pass_over_the_device_are_cached_alike(
    tiny_models: Models, models_dir: Path, still: Path, tmp_path: Path
) -> None:
    asked = request(cache="first_block")
    wanted = sha256(asked, tiny_models, still, tmp_path / "resident")
    streamed = engine_models.load("tiny", models_dir)
    apply_group_offloading(streamed.transformer, "cpu", offload_type="block_level", num_blocks_per_group=1)
    # As with a CUDA stream, which adds this hook: its helpers leave the blocks in the first forward pass.
    registry = HookRegistry.check_if_exists_or_initialize(streamed.transformer)
    registry.register_hook(LazyPrefetchGroupOffloadingHook(), "lazy_prefetch_group_offloading")
    with counted(streamed) as calls:
        assert sha256(asked, streamed, still, tmp_path / "streamed") == wanted
    assert calls["last"] < STEPS * SECTIONS * 3 / 4
