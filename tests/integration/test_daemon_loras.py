"""LoRA from a sidecar to the frames, and what its user is told when that does not work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from framepack_daemon.job import State

if TYPE_CHECKING:
    from pathlib import Path

    from lab import Lab

WIDTH, RANK = 64, 4  # of the tiny transformer


def make_lora(path: Path) -> None:
    """A LoRA of some effect, with keys as musubi-tuner writes them."""
    path.parent.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    layers = {f"single_blocks_{block}_linear1": 5 * WIDTH for block in (0, 1)} | {"final_layer_linear": WIDTH}
    tensors = {}
    for name, outputs in layers.items():
        tensors |= {
            f"lora_unet_{name}.lora_down.weight": torch.randn(RANK, WIDTH, generator=generator),
            f"lora_unet_{name}.lora_up.weight": torch.randn(outputs, RANK, generator=generator),
            f"lora_unet_{name}.alpha": torch.tensor(2.0),
        }
    save_file(tensors, path)


def test_a_lora_acts_on_its_own_job_alone(lab: Lab) -> None:
    folder = lab.root / "loras"
    make_lora(folder / "Waves.safetensors")
    save_file({"blocks.0.q.lora_A.weight": torch.zeros(RANK, WIDTH)}, folder / "stranger.safetensors")
    # One worker does all of them, in the order of their priority.
    lab.drop("1-plain", priority=5)
    lab.drop("2-waves", priority=4, loras=[{"name": "Waves", "scale": 0.8}])
    lab.drop("3-missing", priority=3, loras=[{"name": "wave.safetensors"}])
    lab.drop("4-stranger", priority=2, loras=[{"name": "Waves"}, {"name": "stranger"}])
    lab.drop("5-plain", priority=1)
    lab.start(loras_dir=folder)
    last = lab.ended("5-plain")
    first, waves = lab.ended("1-plain"), lab.ended("2-waves")
    missing, stranger = lab.ended("3-missing", State.FAILED), lab.ended("4-stranger", State.FAILED)
    assert len(lab.events("worker_started")) == 1
    order = [event["job"] for event in lab.events("job_claimed")]
    assert order == [first, waves, missing, stranger, last]

    error = lab.status(missing)["error"]
    assert error["code"] == "lora"
    assert error["message"] == f"LoRA wave.safetensors is not in {folder}"
    assert error["hint"] == f"put it into {folder}, or did you mean Waves.safetensors?"
    error = lab.status(stranger)["error"]
    assert (
        error["message"] == "LoRA stranger.safetensors: key blocks.0.q.lora_A.weight is for a layer that is not there"
    )
    assert lab.status(stranger)["attempts"] == 1

    plain = lab.frames(first).astype(int)
    assert np.abs(lab.frames(waves).astype(int) - plain).mean() > 1
    assert np.array_equal(lab.frames(last), plain)
    assert json.loads((lab.queue.path(State.DONE, waves) / "job.json").read_text())["loras"] == [
        {"name": "Waves", "scale": 0.8}
    ]
