"""The form of the original's `POST /generate`: its fields and defaults, and what its texts say.

What a field may hold comes from the schema of a sidecar under the field's name there, so that no range is written
twice. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from framepack_daemon.aliases import ALIASED_VALUES, ALIASES, describe
from framepack_daemon.request import Request

# The original's fields with its defaults.
DEFAULTS: dict[str, Any] = {
    "prompt": "A character doing some simple body movements.",
    "video_length": 5.0,
    "seed": -1,
    "use_teacache": True,
    "gpu_memory_preservation": 6.0,
    "steps": 25,
    "cfg": 1.0,
    "gs": 10.0,
    "rs": 0.0,
    "mp4_crf": 16.0,
    "lora_scale": 1.0,
    "lora_path": None,
    "sampling_mode": "reverse",
}
FILE = {"type": "string", "format": "binary"}  # how OpenAPI says that a part of a form is a file
PICTURES = "image/jpeg, image/png, image/webp"  # and others; what a file is, its content says
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_WHOLE = re.compile(r"\s*[+-]?\d{1,300}\s*", re.ASCII)
_SWITCH = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


def fields(texts: Mapping[str, str]) -> dict[str, Any]:
    """The sidecar that a form asks for, under the original's names; a text that is no value of its field stays a text.

    Parts that the original does not know are passed over, as it did.
    """
    given = {name: _value(name, text) for name, text in texts.items() if name in DEFAULTS}
    found = DEFAULTS | given
    return {name: value for name, value in found.items() if value is not None}


def schema() -> dict[str, Any]:
    """The form in JSON Schema, for OpenAPI."""
    properties = {name: _property(name) | {"default": default} for name, default in DEFAULTS.items()}
    properties["lora_path"].pop("default")
    properties["image"] = FILE | {"description": "The picture that the video begins with."}
    return {"type": "object", "required": ["image"], "properties": properties}


def _property(name: str) -> dict[str, Any]:
    if name == "lora_path":
        words = "Name of a LoRA file that `GET /loras` lists."
        return {"type": "string", "description": words, "maxLength": 255, "pattern": r"^([^/\\~.\x00][^/\\\x00]*)?$"}
    if name == "lora_scale":
        return {"type": "number", "minimum": -10, "maximum": 10, "description": describe(name)}
    if name in ALIASED_VALUES:
        choices = list(ALIASED_VALUES[name])
        kind = "boolean" if isinstance(choices[0], bool) else "string"
        return {"type": kind, "description": describe(name)} | ({} if kind == "boolean" else {"enum": choices})
    ours = ALIASES.get(name, name)
    found = Request.model_json_schema()["properties"][ours]
    choices = found.get("anyOf") or found.get("oneOf") or [found]
    part: dict[str, Any] = next(choice for choice in choices if choice.get("type") != "null")
    more = {"pattern": r"^[^\x00]*[^\s\x00][^\x00]*$"} if name == "prompt" else {}
    return {key: value for key, value in part.items() if key not in ("default", "title")} | {
        "description": found["description"],
        **more,
    }


def _value(name: str, text: str) -> Any:
    kind = _property(name)["type"]
    if kind == "boolean":
        return _SWITCH.get(text.strip().lower(), text)
    if kind == "integer" and _WHOLE.fullmatch(text):
        return int(text)
    if kind in ("integer", "number") and _NUMBER.fullmatch(text):
        return float(text)
    return text
