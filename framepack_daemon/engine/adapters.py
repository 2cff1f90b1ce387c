"""The LoRAs of the transformer: exactly those of the job that runs.

`use` compares what is wanted with what is loaded, and changes the transformer where that differs. Nothing is ever added
into the weights of the model: a LoRA's layers stand beside them and are taken away again, so that a job without LoRA
gives the same bits whatever ran before it. Knows nothing of where the files came from.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from framepack_daemon.engine import lora_weights
from framepack_daemon.engine.lora_weights import Delta
from framepack_daemon.loras import LoraFile

if TYPE_CHECKING:
    from framepack_daemon.engine.models import Models


def use(models: Models, files: Sequence[LoraFile]) -> None:
    """Let the LoRAs of `files`, and no others, act on the transformer, each with its scale.

    What is loaded already is not read again.

    Raises:
        LoraError: a file is damaged, no LoRA, or made for another model; the transformer is then without any.
    """
    transformer = models.transformer
    # The sum is made in this order, which matters for its last bits.
    wanted = {f"{place}-{file.sha256}": file for place, file in enumerate(files)}
    if list(getattr(transformer, "peft_config", {})) != list(wanted):
        _replace(models, wanted)
    for layer in _adapted(transformer):
        layer.set_adapter(list(wanted))
        layer.requires_grad_(requires_grad=False)
        for name, file in wanted.items():
            layer.set_scale(name, file.scale)


def _adapted(transformer: Any) -> list[Any]:
    return [module for module in transformer.modules() if isinstance(module, LoraLayer)]


def _replace(models: Models, wanted: Mapping[str, LoraFile]) -> None:
    """Take away the LoRAs that are loaded and load those that are wanted."""
    transformer = models.transformer
    if hasattr(transformer, "peft_config"):
        transformer.unload_lora()
    if not wanted:
        return
    known = lora_weights.layers(transformer)
    with ExitStack() as undo:
        undo.callback(transformer.unload_lora)
        for name, file in wanted.items():
            _add(models, name, lora_weights.read(file, known))
        # Where blocks pass over the device, those hooks know only the weights that were there when they were set.
        _maybe_remove_and_reapply_group_offloading(transformer)
        undo.pop_all()


def _add(models: Models, name: str, deltas: dict[str, Delta]) -> None:
    """Load one LoRA as the adapter `name`."""
    config = LoraConfig(
        target_modules=_any_of(deltas),
        rank_pattern=_patterns({layer: delta.rank for layer, delta in deltas.items()}),
        alpha_pattern=_patterns({layer: delta.alpha for layer, delta in deltas.items()}),
    )
    # Without weights, which would be drawn at random and moved to where, and to what type, the layer's own are.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several LoRAs are meant to be
        inject_adapter_in_model(config, models.transformer, name, low_cpu_mem_usage=True)
    for layer, delta in deltas.items():
        module = models.transformer.get_submodule(layer)
        for part, weight in ((module.lora_A[name], delta.down), (module.lora_B[name], delta.up)):
            part.weight = torch.nn.Parameter(weight.to(models.device, models.dtype), requires_grad=False)


def _any_of(layers: Iterable[str]) -> str:
    """A pattern of exactly these names."""
    return "|".join(map(re.escape, layers))


def _patterns(values: dict[str, float]) -> dict[str, Any]:
    """Values by layer as peft takes them: by a pattern of all layers that have the value."""
    grouped: defaultdict[float, list[str]] = defaultdict(list)
    for layer, value in values.items():
        grouped[value].append(layer)
    return {f"^(?:{_any_of(names)})": value for value, names in grouped.items()}
