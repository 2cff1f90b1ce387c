"""The models of one worker: loaded under the plan of the job in hand, and kept while the next one wants the same.

The device's free memory is measured once, before anything of ours is in it, so that a plan follows from the job and the
settings and not from what ran before. Where a plan turns out to be too much while it loads, the next lower one is
loaded, and the plans above are not tried again. Knows no queue.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

from framepack_daemon import weights
from framepack_daemon.engine import memory, models
from framepack_daemon.engine.models import Models
from framepack_daemon.errors import OutOfMemoryError
from framepack_daemon.request import Request


class Loader:
    """Loads models onto one device."""

    def __init__(
        self,
        models_dir: Path,
        device: str,
        setting: str = "auto",
        preservation: float = 0.0,
        *,
        room: memory.Room | None = None,
        say: Callable[..., None] = lambda event, **fields: None,  # noqa: ARG005
    ) -> None:
        self._models_dir = models_dir
        self._device = device
        self._setting = setting  # "auto", or a plan
        self._preservation = preservation  # GiB
        self._say = say  # is told `loading` and `loaded`
        self._room = room  # of the device; measured before the first load where it is not given
        self._too_much: str | None = None  # the lowest plan that did not load
        self.models: Models | None = None  # those that are loaded

    def load(self, model: str, request: Request | None = None, below: str | None = None) -> Models:
        """The models of that name, under the plan for `request`, but one lower than `below`.

        Raises:
            WeightsError: files are missing, or not what they should be.
            DeviceError: there is no such device.
            OutOfMemoryError: not even the lowest plan can be loaded.
        """
        while True:
            plan = self.plan(model, request, below)
            try:
                return self._loaded(model, plan)
            except OutOfMemoryError:
                if memory.lower(plan) is None:
                    raise
                self._too_much = plan

    def plan(self, model: str, request: Request | None = None, below: str | None = None) -> str:
        """The plan that `load` takes; from here on the process takes no more of the device than `request` allows."""
        if self._room is None:
            self._room = memory.room(models.usable(self._device))
        preservation = self._preservation
        if request is not None and request.gpu_memory_preservation is not None:
            preservation = request.gpu_memory_preservation
        memory.limit(torch.device(self._device), self._room, preservation)
        bound = max(filter(None, (below, self._too_much)), key=memory.PLANS.index, default=None)
        return memory.choose(self._setting, self._room, preservation, model=model, pixels=_pixels(request), below=bound)

    def _loaded(self, model: str, plan: str) -> Models:
        """The models under that plan; any others are let go first, so that both never have to fit."""
        if self.models is not None and (self.models.name, self.models.plan) == (model, plan):
            return self.models
        self.models = None
        gc.collect()
        if torch.device(self._device).type == "cuda":
            torch.cuda.empty_cache()
        self._say("loading", model=model, plan=plan)
        started = time.monotonic()
        if model == "tiny":
            weights.pull(model, self._models_dir)  # the embedded model is made on the spot
        self.models = models.load(model, self._models_dir, self._device, plan=plan)
        self._say("loaded", model=model, plan=plan, seconds=time.monotonic() - started)
        return self.models


def _pixels(request: Request | None) -> int:
    """Of a frame, about: a bucket's sides follow from the picture, its area hardly does."""
    if request is None:
        return memory.NOMINAL_PIXELS
    if request.width is not None and request.height is not None:
        return request.width * request.height
    return request.resolution**2 if request.resolution is not None else memory.NOMINAL_PIXELS
