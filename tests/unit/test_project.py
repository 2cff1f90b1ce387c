"""The pages and files around the code say what the code does, and nothing of the machine they were written on."""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import fields
from itertools import chain
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from framepack_daemon.aliases import ALIASES
from framepack_daemon.job import JobFile, Role, Run, State
from framepack_daemon.request import Request
from framepack_daemon.settings import Settings
from framepack_daemon.spool import names, status
from framepack_daemon.spool.queue import Queue

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# Written so that this file does not hold what it looks for.
UNWANTED = re.compile(r"/ro[o]t/|/wor[k]/\w|/tmp/[v]/|py[p]i\.org|python[h]osted|download\.py[t]orch")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def row_of_the_sidecar(name: str) -> list[str]:
    """The cells of a field's row: names, value, default, meaning."""
    row = next(line for line in page("sidecar.md").splitlines() if re.match(rf"\| (`\w+`, )?`{name}`", line))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("name", [*Request.model_fields, *ALIASES])
def test_the_page_of_the_sidecar_has_every_field_and_alias(name: str) -> None:
    assert f"`{name}`" in page("sidecar.md")


@pytest.mark.parametrize("name", Request.model_fields)
def test_the_page_of_the_sidecar_has_the_range_of_every_field(name: str) -> None:
    schema = Request.model_json_schema()["properties"][name]
    schema = next((part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"), schema)
    value = row_of_the_sidecar(name)[1]
    if "minimum" in schema and name != "seed":
        assert f"{schema['minimum']:g} to {schema['maximum']:g}" in value
    if "multipleOf" in schema:
        assert f"by {schema['multipleOf']}" in value
    if "maxLength" in schema and name not in ("last_image", "continue_from"):
        assert f"{schema['maxLength']:,} characters" in value
    for choice in schema.get("enum", [schema["const"]] if "const" in schema else []):
        assert f"`{choice}`" in value


@pytest.mark.parametrize(
    "name", [name for name, field in Request.model_fields.items() if field.default not in (None, PydanticUndefined)]
)
def test_the_page_of_the_sidecar_has_every_default(name: str) -> None:
    default = Request.model_fields[name].default
    if not Request.model_fields[name].is_required():
        if isinstance(default, bool):
            shown = str(default).lower()
        else:
            shown = f"{default:g}" if isinstance(default, (int, float)) else default or "empty"
        assert row_of_the_sidecar(name)[2].strip("`") == shown


@pytest.mark.parametrize("alias", ALIASES)
def test_the_page_of_the_sidecar_says_what_an_alias_stands_for(alias: str) -> None:
    row = next(line for line in page("sidecar.md").splitlines() if line.startswith(f"| `{alias}`"))
    assert f"`{ALIASES[alias]}`" in row


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_page_of_the_settings_has_every_setting(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", page("settings.md"), re.MULTILINE)


def test_the_page_of_the_queue_has_every_field_of_the_records(tmp_path: Path) -> None:
    run = Run(job="beach-1f3a9c02d4e5", files=(), submitted_at="", queued_at="")
    in_status = status.compose(Queue(tmp_path), run, State.PENDING)
    wanted = {field.name for record in (Run, JobFile) for field in fields(record)} | in_status.keys()
    wanted |= set(Role) - {Role.DEFAULTS}
    assert [name for name in sorted(wanted) if f"`{name}`" not in page("queue.md")] == []


def test_the_names_that_the_page_of_the_drop_folder_says_are_left_alone_are() -> None:
    section = page("drop-folder.md").partition("## Names that are left alone")[2].partition("\n## ")[0]
    table, folders, conflicts = (part for part in section.split("\n\n") if part.count("`") > 4)
    assert [name for name in re.findall(r"`([^`]+)`", table) if names.read(name) is not None] == []
    assert [name for name in re.findall(r"`([^`]+)`", folders) if names.may_hold_drops(name)] == []
    for name in re.findall(r"`([^`]+)`", conflicts):
        assert getattr(names.read(name), "conflict", False), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())}
    ours = {name for name in wanted if name.startswith("framepack-daemon[")}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {line.partition("==")[0].lower().replace("_", "-"): line.partition("==")[2] for line in lines}
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pinned.values())
    assert {re.split(r"[<>=]", name)[0] for name in wanted - ours} <= pinned.keys()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout: nothing is tracked")
def test_no_tracked_file_names_a_place_of_one_machine() -> None:
    # The folder may belong to another user than the one that runs the tests.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [
        f"{name}: {match[0]}"
        for name in listed.split("\0")
        if name and (ROOT / name).is_file()
        for match in UNWANTED.finditer((ROOT / name).read_text(errors="replace"))
    ]
    assert found == []
