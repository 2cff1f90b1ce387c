"""The parts of a request that are more than a number or a word: texts with times, LoRA files, names of files.

Pure: knows the form of a part and says what is wrong with one, not what a request makes of it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

MAX_SECONDS = 120.0  # of a video
MAX_NAME_CHARACTERS = 255

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


def no_nul(value: str) -> str:
    """`value` if it can be written into a file and a path."""
    if "\0" in value:
        raise ValueError("has a NUL character in it; remove it")
    return value


def not_blank(value: str) -> str:
    """`value` if it says something."""
    if not no_nul(value).strip():
        raise ValueError("is blank; say what happens in the video")
    return value


def bare_name(value: str, use: str) -> str:
    """`value` if it is the name of a file without a folder; the message says what to `use` instead."""
    if "/" in no_nul(value) or "\\" in value or value.startswith(("~", ".")):
        raise ValueError(f"must be the bare name of a file, without a folder; {use}")
    return value


class TimedText(BaseModel):
    """A text, and from when on it says what happens."""

    model_config = STRICT

    at: float = Field(ge=0.0, le=MAX_SECONDS, description="Seconds from the video's beginning.")
    text: Prompt = Field(description="What happens from then on.")

    _check = field_validator("text")(not_blank)


class Lora(BaseModel):
    """A LoRA and how strongly it acts."""

    model_config = STRICT

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS, description="Name of a file in loras_dir.")
    scale: float = Field(1.0, ge=-10.0, le=10.0, description="How strongly it acts; 0 is not at all.")

    @field_validator("name")
    @classmethod
    def _bare_name(cls, value: str) -> str:
        return bare_name(value, "put the file into loras_dir and write its name")
