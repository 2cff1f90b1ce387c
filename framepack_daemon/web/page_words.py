"""The page's words in the language of the browser, out of one table with a column for each language.

Knows neither the queue nor the templates.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "ja")  # the columns of the table; the first is for everybody else
TABLE = Path(__file__).with_name("locales") / "labels.toml"

Words = Callable[..., str]


@cache
def table() -> dict[str, dict[str, list[str]]]:
    """The table: section, key, and a text in each language; `help` holds Japanese alone."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def words(language: str) -> Words:
    """A function that gives the text of a key such as `form.start`, with its `%s` filled in; KeyError without one."""
    column = LANGUAGES.index(language)

    def say(key: str, *values: object) -> str:
        section, name = key.split(".")
        text = table()[section][name][column]
        return text % values if values else text

    return say


def field_help(language: str, field: str, description: str) -> str:
    """What a field of a request does: its `description` in the schema, or that in Japanese."""
    return str(table()["help"][field]) if language == "ja" else description


def choice(language: str, value: str) -> str:
    """One of the values that a field can have, in words where it is none that people know."""
    return words(language)(f"choice.{value}") if value in table()["choice"] else value


def best_language(accepted: str) -> str:
    """The language that a browser would like best, by its `Accept-Language` header."""
    wishes: list[tuple[float, int, str]] = []
    for place, part in enumerate(accepted.split(",")):
        tag, _, weight = part.strip().partition(";q=")
        language = tag.split("-")[0].lower()
        if language in LANGUAGES:
            wishes.append((-_number(weight), place, language))
    return min(wishes, default=(0.0, 0, LANGUAGES[0]))[-1]


def _number(weight: str) -> float:
    """The weight of a wish, 1 where none is written."""
    try:
        return float(weight or 1)
    except ValueError:
        return 0.0
