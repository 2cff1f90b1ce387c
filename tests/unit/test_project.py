"""The pages and files around the code say what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from framepack_daemon.request import ALIASES, NOT_YET, Request
from framepack_daemon.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", [*Request.model_fields, *ALIASES, *NOT_YET])
def test_the_page_of_the_sidecar_has_every_field_and_alias(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs/sidecar.md").read_text()


@pytest.mark.parametrize("name", [name for name, field in Request.model_fields.items() if field.metadata])
def test_the_page_of_the_sidecar_has_the_range_of_every_number(name: str) -> None:
    schema = Request.model_json_schema()["properties"][name]
    schema = next((part for part in schema.get("anyOf", [schema]) if "minimum" in part), schema)
    if "minimum" not in schema or name == "seed":
        return
    row = next(
        line
        for line in (ROOT / "docs/sidecar.md").read_text().splitlines()
        if re.match(rf"\| (`\w+`, )?`{name}`", line)
    )
    assert f"{schema['minimum']:g} to {schema['maximum']:g}" in row


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_the_page_of_the_settings_has_every_setting(name: str) -> None:
    assert name in (ROOT / "docs/settings.md").read_text()


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert {re.split(r"[<>=]", name)[0] for name in wanted} <= pinned
