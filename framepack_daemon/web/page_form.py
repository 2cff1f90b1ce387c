"""The form of a new job: its fields out of the schema of a request, and what was filled in as a sidecar.

Names, kinds, ranges, defaults and the English help come from `framepack_daemon.request`, so that a new field of a
sidecar is in the form by itself; the labels come from the table of words. Knows neither files nor the queue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from framepack_daemon.printable import printable
from framepack_daemon.request import Request
from framepack_daemon.request_parts import Lora
from framepack_daemon.web import page_words

# In the order of FramePack's demo; what it does not have follows in the order of the schema.
FIRST = ("seconds", "seed")
DEMO = (
    "cache", "negative_prompt", "num_inference_steps", "true_cfg_scale", "guidance_scale", "guidance_rescale",
    "gpu_memory_preservation", "crf",
)  # fmt: skip
BY_HAND = ("prompt", "loras", "last_image")  # have a part of the form of their own
SHOWN = {"seconds": 5}  # defaults that the schema has in words only
LORA, SCALE = "lora:", "scale:"  # begin the names of the two fields for a LoRA


@dataclass(frozen=True)
class Field:
    """A field of the form."""

    name: str
    label: str
    help: str
    kind: str  # choice, switch, number or text
    value: Any  # that is filled in; "" for none
    default: Any  # None where the daemon decides
    choices: tuple[tuple[str, str], ...] = ()  # value and words
    limits: Mapping[str, Any] | None = None  # attributes of the input


def fields(language: str, values: Mapping[str, Any]) -> dict[str, list[Field]]:
    """The fields in three groups, `first`, `demo` and `more`, filled with `values`, a sidecar, or with the defaults."""
    properties = Request.model_json_schema()["properties"]
    rest = [name for name in properties if name not in (*FIRST, *DEMO, *BY_HAND)]
    return {
        group: [_field(language, name, properties[name], values) for name in names]
        for group, names in (("first", FIRST), ("demo", DEMO), ("more", rest))
    }


def _field(language: str, name: str, schema: dict[str, Any], values: Mapping[str, Any]) -> Field:
    part = _part(schema)
    default = schema.get("default")
    value = values.get(name, SHOWN.get(name, default))
    if name == "seconds" and "frames" in values:
        value = None
    kind, choices = _kind(language, part, optional=default is None)
    return Field(
        name=name,
        label=page_words.words(language)(f"field.{name}"),
        help=page_words.field_help(language, name, schema["description"]),
        kind=kind,
        value=_written(value),
        default=None if default is None else _written(default),
        choices=choices,
        limits=_limits(part),
    )


def _part(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value that is there."""
    return next(part for part in schema.get("anyOf", [schema]) if part.get("type") != "null")


def _kind(language: str, part: dict[str, Any], *, optional: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What kind of input a value needs, and its choices."""
    say = page_words.words(language)
    automatic = (("", say("form.automatic")),) if optional else ()
    if "enum" in part:
        return "choice", (*automatic, *((value, page_words.choice(language, value)) for value in part["enum"]))
    if part["type"] == "boolean":
        return (
            ("choice", (*automatic, ("true", say("form.yes")), ("false", say("form.no"))))
            if optional
            else ("switch", ())
        )
    return ("number" if part["type"] in ("number", "integer") else "text"), ()


def _limits(part: dict[str, Any]) -> dict[str, Any]:
    """The ranges as attributes of an input."""
    found = {"min": part.get("minimum"), "max": part.get("maximum"), "maxlength": part.get("maxLength")}
    if part["type"] in ("number", "integer"):
        found["step"] = part.get("multipleOf", 1) if part["type"] == "integer" else "any"
    if part["type"] == "array":
        found["pattern"] = r"\s*\d+(\s*,\s*\d+)*\s*"
        found["placeholder"] = "1, 2, 3"
    return {name: value for name, value in found.items() if value is not None}


def _written(value: Any) -> Any:
    """A value as it stands in an input."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else value


def prompt_text(prompt: Any) -> str:
    """A prompt as it stands in the form: texts with times as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def sidecar(form: Mapping[str, str]) -> dict[str, Any]:
    """What was filled in, as a sidecar.

    A field that is empty or as it was by default is left out. A text where a number belongs stays one, so that the
    message about it is that of every other way in.
    """
    properties = Request.model_json_schema()["properties"]
    found: dict[str, Any] = {"prompt": _prompt(form.get("prompt", ""))}
    for name, schema in properties.items():
        text = form.get(name, "").strip()
        if name in BY_HAND or not text:
            continue
        value = _value(text, _part(schema))
        if value != schema.get("default"):
            found[name] = value
    if "frames" in found:
        found.pop("seconds", None)
    ticked = [name.removeprefix(LORA) for name in form if name.startswith(LORA)]
    if ticked:
        found["loras"] = [{"name": name, "scale": _value(form.get(SCALE + name) or "1", _SCALE)} for name in ticked]
    return found


def relabelled(language: str, said: str) -> str:
    """What is wrong with a request, with each field called as the form calls it."""
    say = page_words.words(language)
    names = "|".join(name for name in Request.model_fields if name not in BY_HAND)
    return re.sub(rf"(?:^|(?<=; ))({names})(?=[: ])", lambda found: say(f"field.{found[1]}"), printable(said))


_SCALE = Lora.model_json_schema()["properties"]["scale"]
SCALE_LIMITS = _limits(_SCALE)


def _prompt(text: str) -> Any:
    """A prompt that was filled in: a text, or what `prompt_text` made of texts with times."""
    text = text.replace("\r\n", "\n").strip()
    if re.match(r"\[\s*\{", text):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _value(text: str, part: dict[str, Any]) -> Any:
    """A text as the value of that kind that it stands for, or itself."""
    try:
        match part["type"]:
            case "integer":
                return int(text)
            case "number":
                return float(text)
            case "boolean":
                return {"true": True, "on": True, "false": False}.get(text, text)
            case "array":
                return [int(word) for word in text.split(",")]
    except ValueError:
        return text
    return text
