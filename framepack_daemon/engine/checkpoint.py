"""What a job needs to go on after a crash or a stop: two small safetensors files in its scratch.

`checkpoint.safetensors` holds the latent frames and the random numbers after a section, of one size however long the
video is; `step.safetensors` the solver's state inside a section, written on a graceful stop. Each carries the identity
of what is rendered, and one of another job, or one that is damaged, is never used. Knows nothing of frames or videos.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from framepack_daemon import atomic
from framepack_daemon.engine.solver import State

if TYPE_CHECKING:
    from framepack_daemon.engine.models import Models
    from framepack_daemon.engine.sources import Sources
    from framepack_daemon.request import Request

CHECKPOINT = "checkpoint.safetensors"
STEP = "step.safetensors"
HISTORY = "history."  # before the place of a tensor of the solver's history, from 0
FORMAT = 2  # goes up when older files can no longer be read


@dataclass(frozen=True)
class Checkpoint:
    """The state between two sections."""

    next_section: int  # counted from 0
    kept: torch.Tensor  # (1, 16, T, H/8, W/8) float32, at most 28 latent frames
    generator: torch.Tensor  # state of the noise generator, uint8
    ending: torch.Tensor | None  # the video's last latent frames so far, at most 28, where they are kept
    environment: str  # where it was made: the same gives the same bits


def identity(request: Request, models: Models, sources: Sources) -> str:
    """A hash over everything that decides what the frames are."""
    what = {
        "format": FORMAT,
        "request": request.as_sidecar(),
        "sources": sources.digest(),
        "model": [models.name, models.revision],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def environment(models: Models) -> str:
    """What the last bits of a result depend on: kind of device, number types, threads, versions."""
    cpu = models.device.type == "cpu"
    device = f"cpu {platform.machine()}" if cpu else torch.cuda.get_device_name(models.device)
    parts = {
        "device": device,
        "dtype": str(models.dtype),
        "plan": models.plan,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    return json.dumps(parts, sort_keys=True)


class Store:
    """The checkpoint files of one job in `scratch`."""

    def __init__(self, scratch: Path, job: str, models: Models) -> None:
        self._path = scratch / CHECKPOINT
        self._step_path = scratch / STEP
        self._job = job
        self._device = models.device
        self._environment = environment(models)

    @property
    def has_files(self) -> bool:
        """Whether anything was saved, usable or not."""
        return self._path.exists() or self._step_path.exists()

    def save(
        self, next_section: int, kept: torch.Tensor, generator: torch.Generator, ending: torch.Tensor | None = None
    ) -> None:
        """Put the state before `next_section` in place of the one saved before."""
        tensors = {"kept": kept.contiguous(), "generator": generator.get_state()}
        if ending is not None:
            tensors["ending"] = ending.clone()  # no two tensors of a file may share memory
        self._write(self._path, tensors, next_section=next_section)
        self._step_path.unlink(missing_ok=True)

    def save_step(self, section: int, state: State) -> None:
        """Save how far `section` is."""
        tensors = {"latents": state.latents}
        tensors |= {f"{HISTORY}{place}": tensor for place, tensor in enumerate(state.history)}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self._write(self._step_path, tensors, section=section, step=state.step)

    def load(self) -> Checkpoint | None:
        """The saved state; None when there is none for this job."""
        found = self._read(self._path)
        if found is None:
            return None
        tensors, metadata = found
        try:
            return Checkpoint(
                next_section=int(metadata["next_section"]),
                kept=tensors["kept"].to(self._device),
                generator=tensors["generator"],
                ending=tensors["ending"].to(self._device) if "ending" in tensors else None,
                environment=metadata["environment"],
            )
        except (KeyError, ValueError):
            return None

    def load_step(self, section: int) -> State | None:
        """How far `section` was when it was stopped; None when that was not saved."""
        found = self._read(self._step_path)
        if found is None or found[1].get("section") != str(section):
            return None
        tensors = {name: tensor.to(self._device) for name, tensor in found[0].items()}
        history = tuple(tensors[f"{HISTORY}{place}"] for place in range(len(tensors) - 1))
        return State(int(found[1]["step"]), tensors["latents"], history)

    def is_from_here(self, checkpoint: Checkpoint) -> bool:
        """Whether it was made under the conditions of now, so that the result is the same to the last bit."""
        return checkpoint.environment == self._environment

    def clear(self) -> None:
        """Remove the files."""
        for path in (self._path, self._step_path):
            path.unlink(missing_ok=True)

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], **facts: int) -> None:
        metadata = {key: str(value) for key, value in facts.items()}
        metadata |= {"job": self._job, "environment": self._environment}
        on_host = {key: value.cpu() for key, value in tensors.items()}
        atomic.write_bytes(path, save(on_host, metadata))

    def _read(self, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """(tensors, metadata) of a file of this job; None when it is not there, damaged, or another job's."""
        try:
            opened: Any = safe_open(path, "pt")
            with opened as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        except (FileNotFoundError, SafetensorError):
            return None
        return (tensors, metadata) if metadata.get("job") == self._job else None
