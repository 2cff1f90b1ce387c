"""What a sidecar may ask for: its fields, their ranges, and the messages when it asks for something else.

`Request` is the schema. `build` lays a sidecar over the defaults of its folder; `effective` fills in every default and
draws the seed. Field names are diffusers' where it has one; the names of the original system are aliases.
Pure: reads no file and knows neither the queue nor the engine.
"""

from __future__ import annotations

import difflib
import json
import math
import secrets
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from framepack_daemon.errors import RequestError
from framepack_daemon.printable import printable
from framepack_daemon.strict_json import kind_of, shorten

FPS = 30  # frames per second of every video
LATENT_WINDOW = 9  # latent frames that one section samples
FRAMES_PER_SECTION = LATENT_WINDOW * 4  # 36: the VAE makes four frames of each latent frame
MAX_SECONDS = 120.0
MAX_FRAMES = 3601  # 36 * 100 sections + 1
MAX_SEED = 2**63 - 1
DRAWN_SEEDS = 2**31  # drawn seeds stay below, so that every tool and language can hold them

Sampling = Literal["inverted_anti_drifting", "vanilla"]
ModelName = Literal["framepack-i2v", "framepack-f1", "tiny"]

# The order in which each checkpoint was trained to sample.
NATIVE_SAMPLING: dict[str, Sampling] = {
    "framepack-i2v": "inverted_anti_drifting",
    "framepack-f1": "vanilla",
    "tiny": "inverted_anti_drifting",
}

# The bucket size of requests that name none; the tiny model renders on CPUs.
RESOLUTIONS = {"framepack-i2v": 640, "framepack-f1": 640, "tiny": 320}

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
}
ALIASED_VALUES: dict[str, dict[Any, Any]] = {
    "sampling_mode": {"reverse": "inverted_anti_drifting", "forward": "vanilla"},
    "transformer_model": {"base": "framepack-i2v", "f1": "framepack-f1"},
    "use_teacache": {False: "none"},
}
# Fields of the design that this version does not act on: an honest refusal beats a setting without effect.
NOT_YET = {
    "loras": "LoRA",
    "lora_path": "LoRA",
    "lora_scale": "LoRA",
    "notify": "notification",
    "gpu_memory_preservation": "the memory plan per job",
    "continue_from": "extending a video",
    "seeds": "a list of seeds",
}


class Request(BaseModel):
    """What one job renders; the schema of a sidecar."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    prompt: str = Field(
        min_length=1,
        max_length=10_000,
        description="What happens in the video.",
        examples=["The girl dances gracefully."],
    )
    negative_prompt: str = Field(
        "", max_length=10_000, description="What should not appear; has an effect only with true_cfg_scale above 1."
    )
    seconds: float | None = Field(
        None,
        ge=0.1,
        le=MAX_SECONDS,
        description="Length in seconds, to the nearest number of sections of 1.2 s; 5 gives 145 frames. Default 5.",
    )
    frames: int | None = Field(
        None, ge=1, le=MAX_FRAMES, description="Length in frames at 30 a second, exactly; instead of seconds."
    )
    seed: int = Field(-1, ge=-1, le=MAX_SEED, description="-1 draws one; the drawn seed is recorded.")
    num_inference_steps: int = Field(25, ge=1, le=100, description="Denoising steps of each section.")
    guidance_scale: float = Field(10.0, ge=1.0, le=32.0, description="Distilled guidance.")
    true_cfg_scale: float = Field(
        1.0, ge=1.0, le=32.0, description="Classifier-free guidance; 1 is off, more doubles the time."
    )
    guidance_rescale: float = Field(0.0, ge=0.0, le=1.0, description="Rescale of the true CFG result; 0 is off.")
    sampling: Sampling | None = Field(
        None,
        description="Order of the sections: last to first, or first to last. Default: what the model was trained for.",
    )
    model: ModelName | None = Field(None, description="Which model renders. Default: the daemon's setting.")
    resolution: int | None = Field(
        None,
        ge=320,
        le=960,
        multiple_of=32,
        description="Bucket size in pixels: the video's shape follows the picture's. Default 640, for tiny 320.",
    )
    width: int | None = Field(None, ge=64, le=2048, multiple_of=16, description="Width in pixels, with height.")
    height: int | None = Field(None, ge=64, le=2048, multiple_of=16, description="Height in pixels, with width.")
    last_image: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="Says that an end frame belongs to this drop: a file named like the picture, with .last. before "
        "its extension (beach.last.jpg). Filled in by itself where that file is there.",
    )
    variations: int = Field(1, ge=1, le=100, description="So many jobs with different seeds from this one drop.")
    cache: Literal["none"] = Field("none", description="Reuse of earlier steps' results; affects quality.")
    codec: Literal["h264"] = Field("h264", description="Codec of the video.")
    crf: int = Field(16, ge=1, le=51, description="x264 quality: 1 is nearly lossless, 51 the smallest file.")
    priority: int = Field(0, ge=-100, le=100, description="Jobs of a higher priority run first.")

    @field_validator("frames", "seed", "num_inference_steps", "resolution", "width", "height", "crf", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """16 for 16.0: the original wrote whole numbers as floats."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @field_validator("prompt", "negative_prompt", "last_image")
    @classmethod
    def _no_nul(cls, value: str | None) -> str | None:
        if value is not None and "\0" in value:
            raise ValueError("has a NUL character in it; remove it")
        return value

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is blank; say what happens in the video")
        return value

    @field_validator("last_image")
    @classmethod
    def _bare_name(cls, value: str | None) -> str | None:
        if value is not None and ("/" in value or "\\" in value or value.startswith(("~", "."))):
            raise ValueError("must be the bare name of a file beside the picture, without a folder; use beach.last.jpg")
        return value

    @model_validator(mode="after")
    def _together(self) -> Request:
        if self.seconds is not None and self.frames is not None:
            raise ValueError("seconds and frames: both say how long the video is; remove one")
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height: one is given without the other; give both, or use resolution")
        if self.width is not None and self.resolution is not None:
            raise ValueError("resolution: is given beside width and height; remove one of the two ways")
        if self.last_image is not None and self.sampling == "vanilla":
            raise ValueError(
                "last_image: sampling vanilla cannot aim at an end frame; set sampling to inverted_anti_drifting"
            )
        return self

    @property
    def sections(self) -> int:
        """Number of sections to sample: the reference's for `seconds`, enough for `frames`."""
        if self.frames is not None:
            ideal = (self.frames - 1) / FRAMES_PER_SECTION
            # Anchored at both ends nothing can be trimmed: the nearest whole number of sections.
            return max(round(ideal) if self.last_image else math.ceil(ideal), 1)
        return max(round((self.seconds or 5.0) * FPS / FRAMES_PER_SECTION), 1)

    @property
    def video_frames(self) -> int:
        """Frames of the finished video, at 30 a second."""
        rendered = FRAMES_PER_SECTION * self.sections + 1
        if self.last_image:
            return rendered
        wanted = self.frames if self.frames is not None else max(round((self.seconds or 5.0) * FPS), 1)
        return min(rendered, wanted)

    def as_sidecar(self) -> dict[str, Any]:
        """The request as a JSON object that is itself a valid sidecar."""
        return self.model_dump(exclude_none=True)


def draw_seed() -> int:
    """A fresh random seed."""
    return secrets.randbelow(DRAWN_SEEDS)


def build(sidecar: dict[str, Any], defaults: dict[str, Any] | None = None) -> Request:
    """The request that `sidecar`, laid over its folder's `defaults`, asks for.

    Raises `RequestError` that names every wrong field.
    """
    over = _canonical(sidecar)
    under = _canonical(defaults or {})
    for group in ({"seconds", "frames"}, {"resolution", "width", "height"}):
        if group & over.keys():
            # One way of saying the length or the size replaces the other.
            under = {key: value for key, value in under.items() if key not in group}
    fields = under | over
    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        spelled = {ALIASES[key]: key for key in sidecar if key in ALIASES}
        problems = [_explain(dict(item), spelled) for item in error.errors()]
        raise RequestError(
            "; ".join(message for message, _ in problems),
            hint="; ".join(dict.fromkeys(hint for _, hint in problems if hint)),
        ) from error


def effective(request: Request, model: str, *, variation: int = 0) -> Request:
    """`request` with every default filled in and the seed drawn; `variation` counts the jobs of one drop from 0."""
    name = request.model or model
    filled: dict[str, Any] = {
        "model": name,
        "sampling": request.sampling or NATIVE_SAMPLING[name],
        "seed": draw_seed() if request.seed == -1 else (request.seed + variation) % (MAX_SEED + 1),
        "variations": 1,
    }
    if request.frames is None and request.seconds is None:
        filled["seconds"] = 5.0
    if request.width is None and request.resolution is None:
        filled["resolution"] = RESOLUTIONS[name]
    return build(request.as_sidecar() | filled)


def _canonical(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` under our names; an alias beside the name it stands for is an error."""
    found: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for key, value in fields.items():
        name = ALIASES.get(key, key)
        if name in found:
            raise RequestError(f"{spelled[name]} and {key}: are two names of one field", hint="remove one")
        spelled[name] = key
        if key in NOT_YET:
            raise RequestError(f"{key}: {NOT_YET[key]} is not part of this version", hint="remove the field")
        plain = isinstance(value, (str, bool))
        found[name] = ALIASED_VALUES.get(key, {}).get(value, value) if plain else value
    return found


def _explain(error: dict[str, Any], spelled: dict[str, str]) -> tuple[str, str]:
    """One pydantic error as (message that begins with the field as the user `spelled` it, hint)."""
    field = str(error["loc"][0]) if error["loc"] else ""
    label = printable(shorten(spelled.get(field, field))) or "the name of a field"
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"{label}: unknown field", _suggest(field)
        case "missing":
            return f"{label}: is missing", f'add {label}, for example "{label}": "The girl dances gracefully."'
        case "string_too_short":
            return f"{label}: is empty", f"write {label}, or remove the field"
        case "string_too_long":
            return f"{label}: is too long", f"{label} has at most {context['max_length']} characters"
        case "string_unicode":
            return f"{label}: has half a character in it (a lone surrogate)", f"write {label} again"
        case "value_error":
            problem, _, mend = str(context["error"]).partition("; ")
            return (f"{label}: {problem}" if field else problem), mend
    if field == "cache":
        return f"{label}: caching is not part of this version", "remove the field"
    problem = _wrong_value(field, error["type"], error.get("input"), context)
    hint = "write one text in quotes" if "timed" in problem else f"{label} is {_range(field, label)}"
    return f"{label}: {problem}", hint


def _wrong_value(field: str, kind: str, given: Any, context: dict[str, Any]) -> str:
    """What is wrong with a value of the wrong kind or range."""
    value = shorten(json.dumps(given, default=str))
    match kind:
        case "multiple_of":
            return f"{value} is not a multiple of {context['multiple_of']}"
        case "greater_than_equal" | "less_than_equal":
            return f"{value} is out of range"
        case "finite_number":
            return f"{value} is not a finite number"
        case "literal_error":
            return f"{value} is not a choice"
    if field == "prompt" and isinstance(given, list):
        return "a list of timed prompts is not part of this version"
    if given is None or isinstance(given, bool):
        return f"is {value}"
    return f"{value} is {'not a whole number' if isinstance(given, float) else kind_of(given)}"


def _range(field: str, label: str) -> str:
    """What a field may hold, in words; the original's values under the original's name."""
    schema = Request.model_json_schema()["properties"][field]
    schema = next((part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"), schema)
    if "enum" in schema or "const" in schema:
        return " or ".join(ALIASED_VALUES.get(label) or schema.get("enum") or [schema["const"]])
    kind = {"integer": "a whole number", "number": "a number", "string": "text in quotes"}[schema.get("type", "string")]
    if schema.get("maximum") == MAX_SEED:
        return "-1 (draw one) or a whole number from 0 to 2^63 - 1"
    if "minimum" in schema:
        kind += f" from {schema['minimum']:g} to {schema['maximum']:g}"
    if "multipleOf" in schema:
        kind += f", a multiple of {schema['multipleOf']}"
    return kind


def _suggest(field: str) -> str:
    known = [*Request.model_fields, *ALIASES]
    close = difflib.get_close_matches(shorten(field).lower().replace("-", "_"), known, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]}?"
    return "known fields: " + ", ".join(Request.model_fields)
