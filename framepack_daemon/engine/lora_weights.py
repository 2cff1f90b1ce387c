"""What is inside a LoRA file: its keys understood, its layers found in the transformer, every shape checked.

The name of a layer is compared with `_` for every dot, as kohya's trainers write it, so that one table serves all
styles: it has the names of the transformer's own linear layers, and HunyuanVideo's for the same layers. What is one
fused layer there is several here: each takes its rows of the up matrix, and all share the down matrix. A key that fits
nowhere is an error, since half a LoRA looks like a bad one. Knows nothing of how the weights are applied.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from framepack_daemon.errors import LoraError
from framepack_daemon.loras import LoraFile
from framepack_daemon.printable import printable
from framepack_daemon.strict_json import shorten

# What the libraries raise for damaged files: seen by damaging some at random.
_DAMAGE = (
    *(SafetensorError, RuntimeError, AssertionError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(OSError, struct.error, re.error),
)
_GET_AGAIN = "the file is damaged; get it again"
_OTHER_MODEL = "it was made for another model; LoRAs of FramePack and HunyuanVideo fit"
_OTHER_KIND = "only plain LoRA is supported, without DoRA, LoHa, LoKr and biases"

_PREFIX = re.compile(r"(?:base_model\.model\.|model\.|diffusion_model\.|transformer\.|lora_unet_|lora_transformer_)+")
_TEXT_ENCODER = re.compile(r"(?:lora_te\d?_|text_encoders?[._\d]|te\d?\.)")
_KEY = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<part>A|B|down|up)(?:\.\w+)?\.weight|lora\.(?P<old>down|up)\.weight|alpha)"
)
_PARTS = {"A": "down", "B": "up", "down": "down", "up": "up", None: "alpha"}

MAX_KEY_CHARACTERS = 200  # of a key in a message
# HunyuanVideo's layers and ours; `{}` is the number of a block.
_DOUBLE, _SINGLE = "transformer_blocks.{}.", "single_transformer_blocks.{}."
_TEXT = "context_embedder."
_REFINER = f"{_TEXT}token_refiner.refiner_blocks.{{}}."
_EMBEDDER = "time_text_embed."
_HUNYUAN = {
    "double_blocks.{}.img_attn_qkv": tuple(f"{_DOUBLE}attn.to_{part}" for part in "qkv"),
    "double_blocks.{}.img_attn_proj": (f"{_DOUBLE}attn.to_out.0",),
    "double_blocks.{}.img_mlp.fc1": (f"{_DOUBLE}ff.net.0.proj",),
    "double_blocks.{}.img_mlp.fc2": (f"{_DOUBLE}ff.net.2",),
    "double_blocks.{}.img_mod.linear": (f"{_DOUBLE}norm1.linear",),
    "double_blocks.{}.txt_attn_qkv": tuple(f"{_DOUBLE}attn.add_{part}_proj" for part in "qkv"),
    "double_blocks.{}.txt_attn_proj": (f"{_DOUBLE}attn.to_add_out",),
    "double_blocks.{}.txt_mlp.fc1": (f"{_DOUBLE}ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.fc2": (f"{_DOUBLE}ff_context.net.2",),
    "double_blocks.{}.txt_mod.linear": (f"{_DOUBLE}norm1_context.linear",),
    "single_blocks.{}.linear1": (*(f"{_SINGLE}attn.to_{part}" for part in "qkv"), f"{_SINGLE}proj_mlp"),
    "single_blocks.{}.linear2": (f"{_SINGLE}proj_out",),
    "single_blocks.{}.modulation.linear": (f"{_SINGLE}norm.linear",),
    "txt_in.individual_token_refiner.blocks.{}.self_attn_qkv": tuple(f"{_REFINER}attn.to_{part}" for part in "qkv"),
    "txt_in.individual_token_refiner.blocks.{}.self_attn_proj": (f"{_REFINER}attn.to_out.0",),
    "txt_in.individual_token_refiner.blocks.{}.mlp.fc1": (f"{_REFINER}ff.net.0.proj",),
    "txt_in.individual_token_refiner.blocks.{}.mlp.fc2": (f"{_REFINER}ff.net.2",),
    "txt_in.individual_token_refiner.blocks.{}.adaLN_modulation.1": (f"{_REFINER}norm_out.linear",),
    "txt_in.input_embedder": (f"{_TEXT}proj_in",),
    "txt_in.t_embedder.mlp.0": (f"{_TEXT}time_text_embed.timestep_embedder.linear_1",),
    "txt_in.t_embedder.mlp.2": (f"{_TEXT}time_text_embed.timestep_embedder.linear_2",),
    "txt_in.c_embedder.linear_1": (f"{_TEXT}time_text_embed.text_embedder.linear_1",),
    "txt_in.c_embedder.linear_2": (f"{_TEXT}time_text_embed.text_embedder.linear_2",),
    "time_in.mlp.0": (f"{_EMBEDDER}timestep_embedder.linear_1",),
    "time_in.mlp.2": (f"{_EMBEDDER}timestep_embedder.linear_2",),
    "guidance_in.mlp.0": (f"{_EMBEDDER}guidance_embedder.linear_1",),
    "guidance_in.mlp.2": (f"{_EMBEDDER}guidance_embedder.linear_2",),
    "vector_in.in_layer": (f"{_EMBEDDER}text_embedder.linear_1",),
    "vector_in.out_layer": (f"{_EMBEDDER}text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}
# Endings of the original's names, and how ComfyUI has them.
_COMFY = {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", ".linear": ".lin"}


@dataclass(frozen=True)
class Layer:
    """A linear layer of the transformer."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Delta:
    """What a LoRA adds to the weight of one linear layer: `up @ down * alpha / rank`."""

    down: torch.Tensor  # (rank, inputs), floating point, on the CPU
    up: torch.Tensor  # (outputs, rank)
    alpha: float

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self.down.shape[0]


@dataclass(frozen=True)
class _Settings:
    """The alphas that diffusers wrote into a file's metadata, where it did."""

    default: float | None = None
    pattern: dict[str, float] = field(default_factory=dict)  # by peft's pattern of a layer's name
    by_root: bool = False  # the LoRA is divided by the root of the rank (arXiv:2312.03732)

    def alpha(self, layer: str, rank: int) -> float:
        """Alpha of a layer, in the sense of `Delta`; without one the LoRA counts as it is."""
        told = self.pattern.get(get_pattern_key(list(self.pattern), layer), self.default)
        return rank if told is None else told * math.sqrt(rank) if self.by_root else told


def layers(transformer: Any) -> dict[str, tuple[Layer, ...]]:
    """What a layer's name in a LoRA file, with `_` for every dot, means in a transformer without adapters."""
    linear = {
        name: Layer(name, module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    named: dict[str, tuple[Layer, ...]] = {name: (layer,) for name, layer in linear.items()}
    for theirs, ours in _HUNYUAN.items():
        for block in itertools.count():
            targets = [name.format(block) for name in ours]
            if targets[0] not in linear or (block > 0 and "{}" not in theirs):
                break
            named[theirs.format(block)] = tuple(linear[name] for name in targets)
    for name in list(named):
        for ending, comfy in _COMFY.items():
            if name.endswith(ending):
                named.setdefault(name.removesuffix(ending) + comfy, named[name])
    return {name.replace(".", "_"): targets for name, targets in named.items()}


def read(file: LoraFile, known: dict[str, tuple[Layer, ...]]) -> dict[str, Delta]:
    """What the LoRA in `file` adds, by the name of the transformer's layer; `known` comes from `layers`.

    Raises:
        LoraError: the file is damaged, no LoRA, or made for another model; names the first key that is wrong.
    """
    tensors, settings = _load(file)
    found: dict[str, Delta] = {}
    for layer, keys in _sort(file, tensors).items():
        targets = known.get(layer.replace(".", "_"))
        if targets is None:
            raise _error(file, f"{_shown(next(iter(keys.values())))} is for a layer that is not there", _OTHER_MODEL)
        for target, delta in _split(file, tensors, settings, layer, keys, targets):
            if target.name in found:
                raise _error(file, f"{_shown(keys['up'])} changes the layer {target.name} once more", _GET_AGAIN)
            found[target.name] = delta
    return found


def _error(file: LoraFile, problem: str, hint: str) -> LoraError:
    return LoraError(f"LoRA {printable(file.name)}: {problem}", hint=hint)


def _shown(key: str) -> str:
    return f"key {printable(key[:MAX_KEY_CHARACTERS])}"


def _load(file: LoraFile) -> tuple[dict[str, torch.Tensor], _Settings]:
    """The file's tensors by key, and the settings that diffusers wrote beside them."""
    try:
        if file.path.suffix == ".safetensors":
            with safe_open(file.path, framework="pt") as opened:
                return {key: opened.get_tensor(key) for key in sorted(opened.keys())}, _settings(opened.metadata())
        loaded = torch.load(file.path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        problem = "holds more than weights, or is damaged"
        raise _error(file, problem, "convert it to safetensors with the tool that made it") from error
    except _DAMAGE as error:
        said = printable(shorten(str(error))) or type(error).__name__
        raise _error(file, f"cannot be opened: {said}", _GET_AGAIN) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise _error(file, "is not a table of tensors", _OTHER_KIND)
    return {str(key): loaded[key] for key in sorted(loaded, key=str)}, _Settings()


def _settings(metadata: dict[str, str] | None) -> _Settings:
    """What the metadata of a file that diffusers saved says of its alphas; errors are those of `_load`."""
    told = json.loads((metadata or {}).get("lora_adapter_metadata", "{}"))
    told = {key.removeprefix("transformer."): value for key, value in told.items()}
    pattern = {re.compile(key).pattern: float(alpha) for key, alpha in (told.get("alpha_pattern") or {}).items()}
    default = told.get("lora_alpha")
    return _Settings(None if default is None else float(default), pattern, bool(told.get("use_rslora")))


def _sort(file: LoraFile, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, str]]:
    """The keys of each layer that the file names, by what they are: `down`, `up` and, where there is one, `alpha`."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if _TEXT_ENCODER.match(key):
            raise _error(
                file, f"{_shown(key)} is for a text encoder", "use a LoRA that was trained on the transformer alone"
            )
        match = _KEY.fullmatch(key)
        if match is None:
            raise _error(file, f"{_shown(key)} is not known", _OTHER_KIND)
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise _error(file, f"{_shown(key)} holds values that are not finite numbers", _GET_AGAIN)
        layer = _PREFIX.sub("", match["layer"], count=1)
        found[layer][_PARTS[match["part"] or match["old"]]] = key
    if not found:
        raise _error(file, "is empty", _GET_AGAIN)
    return found


def _split(  # noqa: PLR0917 - what belongs to one layer of the file
    file: LoraFile,
    tensors: dict[str, torch.Tensor],
    settings: _Settings,
    layer: str,
    keys: dict[str, str],
    targets: tuple[Layer, ...],
) -> Iterator[tuple[Layer, Delta]]:
    """What one layer that the file names adds to each of the transformer's."""
    missing = {"down", "up"} - keys.keys()
    if missing:
        raise _error(file, f"{_shown(next(iter(keys.values())))} has no {missing.pop()} matrix beside it", _GET_AGAIN)
    down, up = tensors[keys["down"]], tensors[keys["up"]]
    rank = max(up.shape[-1] if up.ndim else 1, 1)
    rows = [target.outputs for target in targets]
    for key, right in ((keys["down"], (rank, targets[0].inputs)), (keys["up"], (sum(rows), rank))):
        if tensors[key].shape != right:
            shape = " x ".join(map(str, tensors[key].shape)) or "1"
            raise _error(file, f"{_shown(key)} has the shape {shape} instead of {right[0]} x {right[1]}", _OTHER_MODEL)
    alpha = settings.alpha(layer, rank)
    if "alpha" in keys:
        alpha = float(tensors[keys["alpha"]].flatten()[0])
    for target, part in zip(targets, torch.split(up, rows), strict=True):
        yield target, Delta(down, part, alpha)
