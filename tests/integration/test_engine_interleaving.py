"""One worker, many jobs: each gives the bits that it gives alone, whatever ran before it and between its parts."""

from __future__ import annotations

import hashlib
import random
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from framepack_daemon import loras
from framepack_daemon.engine import cache, models, render
from framepack_daemon.engine.sources import Sources
from framepack_daemon.request import Request, build, effective
from framepack_daemon.scratch import LATENTS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = "wild.safetensors"
JOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "longer": {"frames": 73},
    "euler": {"solver": "euler"},
    "wider": {"width": 96},
    "forwards": {"sampling": "vanilla", "frames": 73},
    "cached": {"cache": "first_block"},
    "cached, two texts": {"cache": "first_block", "true_cfg_scale": 2.0, "negative_prompt": "blurred"},
    "two texts": {"true_cfg_scale": 2.0, "negative_prompt": "blurred", "guidance_rescale": 0.5},
    "lora": {"loras": [{"name": LORA}]},
    "weaker lora, cached": {"loras": [{"name": LORA, "scale": 0.5}], "cache": "first_block"},
    "end frame": {"last_image": "beach.last.png"},
    "rounded": {"reference_rounding": True},
    "steps": {"num_inference_steps": 5},
}


@dataclass(frozen=True)
class Job:
    request: Request
    sources: Sources
    scratch: Path

    def finish(self, worker: models.Models) -> tuple[str, str]:
        """Render the rest; hashes of the video and of the latents."""
        *_, finished = render.render(self.request, worker, self.sources, self.scratch)
        assert isinstance(finished, render.Finished)
        latents = (self.scratch / LATENTS).read_bytes()
        return finished.facts.sha256, hashlib.sha256(latents).hexdigest()

    def begin(self, worker: models.Models, steps: int) -> None:
        """Stop after so many steps."""
        rendering: Any = render.render(self.request, worker, self.sources, self.scratch)
        with closing(rendering):
            assert any(isinstance(event, render.Step) and event.step == steps for event in rendering)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network of random weights answers changes by more from step to step than that of a trained one."""
    monkeypatch.setattr(cache, "THRESHOLD", 0.5)


@pytest.fixture
def lora_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "loras"
    folder.mkdir()
    numbers = torch.Generator().manual_seed(5)
    layer = "transformer.single_transformer_blocks.0.attn.to_v"
    pair = {
        f"{layer}.lora_{part}.weight": torch.randn(shape, generator=numbers)
        for part, shape in (("A", (4, 64)), ("B", (64, 4)))
    }
    save_file(pair, folder / LORA)
    return folder


def make(folder: Path, image: Path, last_image: Path, lora_dir: Path) -> dict[str, Job]:
    """Every job with a scratch folder of its own."""
    fields = {
        "prompt": "The girl dances gracefully.",
        "frames": 37,
        "seed": 11,
        "num_inference_steps": 4,
        "width": 64,
        "height": 112,
        "keep_latents": True,
    }
    jobs = {}
    for place, (name, more) in enumerate(JOBS.items()):
        request = effective(build(fields | more), "tiny")
        end = last_image if request.last_image else None
        sources = Sources(image, end, loras=loras.resolve(request.loras, lora_dir))
        scratch = folder / str(place)
        scratch.mkdir(parents=True)
        jobs[name] = Job(request, sources, scratch)
    return jobs


def test_a_job_gives_the_same_bits_whatever_ran_before_it(
    models_dir: Path, picture: Path, end_picture: Path, lora_dir: Path, tmp_path: Path
) -> None:
    def jobs(folder: str) -> dict[str, Job]:
        return make(tmp_path / folder, picture, end_picture, lora_dir)

    alone = {name: job.finish(models.load("tiny", models_dir)) for name, job in jobs("alone").items()}
    assert len({latents for _, latents in alone.values()}) == len(JOBS)  # each field has its effect

    worker = models.load("tiny", models_dir)
    order = random.Random(3)
    names = order.sample(list(JOBS), len(JOBS))
    in_turn = jobs("in turn")
    assert {name: in_turn[name].finish(worker) for name in names} == alone

    interleaved = jobs("interleaved")
    for name in order.sample(names, len(names)):
        interleaved[name].begin(worker, order.randint(1, 3))
    found = {name: interleaved[name].finish(worker) for name in order.sample(names, len(names))}
    assert found == alone
