"""The names that the original system used for a sidecar's fields, brought to ours.

`canonical` gives a sidecar's fields under our names; `spelled` says how the user wrote one, so that a message can use
the user's own word. Knows neither types nor ranges.
"""

from __future__ import annotations

import json
from typing import Any

from framepack_daemon.errors import RequestError

# The original's name of a field, and ours.
ALIASES = {
    "video_length": "seconds",
    "gs": "guidance_scale",
    "cfg": "true_cfg_scale",
    "rs": "guidance_rescale",
    "mp4_crf": "crf",
    "n_prompt": "negative_prompt",
    "use_teacache": "cache",
    "sampling_mode": "sampling",
    "transformer_model": "model",
    "steps": "num_inference_steps",
    "lora_path": "loras",
    "lora_scale": "loras",
}
ALIASED_VALUES: dict[str, dict[Any, Any]] = {
    "sampling_mode": {"reverse": "inverted_anti_drifting", "forward": "vanilla"},
    "transformer_model": {"base": "framepack-i2v", "f1": "framepack-f1"},
    "use_teacache": {False: "none", True: "first_block"},
}

# Two fields of the original that are one of ours, and what they hold.
_ONE_LORA = {"lora_path": "The name of the one file in loras.", "lora_scale": "The scale of the one file in loras."}
_NO_LORA = ("", "none", "None")  # what the original's form sends without a LoRA


def canonical(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` under our names; `RequestError` for an alias beside the name it stands for."""
    found: dict[str, Any] = {}
    written: dict[str, str] = {}
    for key, value in _one_lora(fields).items():
        name = ALIASES.get(key, key)
        if name in found:
            raise RequestError(f"{written[name]} and {key}: are two names of one field", hint="remove one")
        written[name] = key
        plain = isinstance(value, (str, bool))
        found[name] = ALIASED_VALUES.get(key, {}).get(value, value) if plain else value
    return found


def _one_lora(fields: dict[str, Any]) -> dict[str, Any]:
    """`lora_path` and `lora_scale` as the one LoRA that they name; a scale without a path says nothing."""
    if not any(key in fields for key in _ONE_LORA):
        return fields
    rest = {key: value for key, value in fields.items() if key not in _ONE_LORA}
    name = fields.get("lora_path")
    if name is None or (isinstance(name, str) and name in _NO_LORA):
        return rest
    scale = {"scale": fields["lora_scale"]} if "lora_scale" in fields else {}
    return rest | {"lora_path": [{"name": name} | scale]}


def spelled(sidecar: dict[str, Any]) -> dict[str, str]:
    """How the user wrote our names."""
    return {ALIASES[key]: key for key in sidecar if key in ALIASES and key != "lora_scale"}


def describe(alias: str) -> str:
    """What one of the original's names stands for, in a sentence."""
    if alias in _ONE_LORA:
        return _ONE_LORA[alias]
    values = ALIASED_VALUES.get(alias, {})
    words = ", ".join(f"{json.dumps(theirs)} for {json.dumps(ours)}" for theirs, ours in values.items())
    return f"Another name of {ALIASES[alias]}" + (f": {words}." if words else ".")
