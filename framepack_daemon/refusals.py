"""What is said of a field that a sidecar has wrong: what is wrong, under the user's own name of it, and the mend.

`explain` turns one finding of pydantic into words. The ranges come out of the schema, so that they are written once.
Pure: knows the findings and the schema, not the request.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from framepack_daemon.aliases import ALIASED_VALUES, ALIASES
from framepack_daemon.printable import printable
from framepack_daemon.strict_json import kind_of, shorten

Schema = dict[str, Any]

# What a field of several parts looks like.
FORMS = {
    "prompt": 'text in quotes, or a list like [{"at": 0, "text": "She waves."}, {"at": 2.5, "text": "She turns."}]',
    "loras": 'a list like [{"name": "style.safetensors", "scale": 0.8}], of at most 16',
    "seeds": "a list like [1, 2, 3], of at most 100",
}
# The tags by which pydantic tells the two kinds of prompt apart.
ONE_TEXT, TIMED_TEXTS = "one text", "timed texts"


def explain(error: dict[str, Any], spelled: dict[str, str], schema: Schema) -> tuple[str, str]:
    """One pydantic error as (message that begins with the field as the user `spelled` it, hint)."""
    path = [part for part in error["loc"] if part not in (ONE_TEXT, TIMED_TEXTS)]
    field = str(path[0]) if path else ""
    label = _label(path, spelled)
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"{label}: unknown field", _suggest(field, schema) if len(path) == 1 else _form(field)
        case "missing" if len(path) == 1:
            return f"{label}: is missing", f'add {label}, for example "{label}": "The girl dances gracefully."'
        case "missing":
            return f"{label}: is missing", _form(field)
        case "string_too_short" | "too_short":
            return f"{label}: is empty", f"write {label}, or remove the field"
        case "string_too_long":
            return f"{label}: is too long", f"{label} has at most {context['max_length']} characters"
        case "too_long":
            return f"{label}: has {context['actual_length']} parts", f"{label} has at most {context['max_length']}"
        case "string_unicode":
            return f"{label}: has half a character in it (a lone surrogate)", f"write {label} again"
        case "value_error":
            problem, _, mend = str(context["error"]).partition("; ")
            return (f"{label}: {problem}" if field else problem), mend
    return f"{label}: {_wrong_value(error, context)}", f"{label} is {_range(path, label, schema)}"


def _label(path: list[Any], spelled: dict[str, str]) -> str:
    """How a message calls the place: `loras[0].scale`, or the original's name of the field."""
    if not path:
        return "the name of a field"
    first = spelled.get(str(path[0]), str(path[0]))
    if first == "lora_path":  # one of two plain fields that became one with parts
        return "lora_scale" if path[-1] == "scale" else first
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[1:]]
    return printable(shorten(first + "".join(parts))) or "the name of a field"


def _wrong_value(error: dict[str, Any], context: dict[str, Any]) -> str:
    """What is wrong with a value of the wrong kind or range."""
    given = error.get("input")
    value = shorten(json.dumps(given, default=str))
    match error["type"]:
        case "multiple_of":
            return f"{value} is not a multiple of {context['multiple_of']}"
        case "greater_than_equal" | "less_than_equal":
            return f"{value} is out of range"
        case "finite_number":
            return f"{value} is not a finite number"
        case "literal_error":
            return f"{value} is not a choice"
    if given is None or isinstance(given, bool):
        return f"is {value}"
    return f"{value} is {'not a whole number' if isinstance(given, float) else kind_of(given)}"


def _range(path: list[Any], label: str, schema: Schema) -> str:
    """What a field may hold, in words; the original's values under the original's name."""
    field = str(path[0])
    if field in FORMS and len(path) == 1:
        return FORMS[field]
    found = _part(path, schema)
    if "enum" in found or "const" in found:
        allowed = ALIASED_VALUES.get(label) or found.get("enum") or [found["const"]]
        return " or ".join(choice if isinstance(choice, str) else json.dumps(choice) for choice in allowed)
    kinds = {"integer": "a whole number", "number": "a number", "string": "text in quotes", "boolean": "true or false"}
    kind = kinds.get(found.get("type", ""), FORMS.get(field, "another kind of value"))
    if found.get("maximum", 0) >= 1 << 62:
        drawn = "-1 (draw one) or " if found["minimum"] < 0 else ""
        return f"{drawn}a whole number from 0 to 2^63 - 1"
    if "minimum" in found:
        kind += f" from {found['minimum']:g} to {found['maximum']:g}"
    if "multipleOf" in found:
        kind += f", a multiple of {found['multipleOf']}"
    return kind


def _part(path: list[Any], schema: Schema) -> Schema:
    """The schema of the place that `path` leads to."""
    found: Schema = {"properties": schema["properties"]}
    for part in path:
        found = found["items"] if isinstance(part, int) else found["properties"].get(part, {})
        choices = found.get("anyOf") or found.get("oneOf") or [found]
        choices = [
            schema["$defs"][choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice for choice in choices
        ]
        # Of several kinds of value the last but "null" is the one with parts.
        found = [choice for choice in choices if choice.get("type") != "null"][-1]
    return found


def _form(field: str) -> str:
    return f"{field} is {FORMS.get(field, 'another kind of value')}"


def _suggest(field: str, schema: Schema) -> str:
    known = [*schema["properties"], *ALIASES]
    close = difflib.get_close_matches(shorten(field).lower().replace("-", "_"), known, n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else "known fields: " + ", ".join(schema["properties"])
