"""What operators read, against the code: every event of the log is explained, every setting stands in config.toml."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from framepack_daemon import settings
from framepack_daemon.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
CONFIG = ROOT / "packaging/config.toml"


def events_of_the_code() -> set[tuple[str, str]]:
    """Each event that a module logs, with its level."""
    found = set()
    for path in (ROOT / "framepack_daemon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name("_log"), level), [ast.Constant(event), *_]) if level in LEVELS:
                    found.add((event, level))
    return found


def test_every_event_of_the_log_is_explained_to_operators() -> None:
    chapter = (ROOT / "docs/operate.md").read_text().partition("## What the events of the log mean")[2]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| .{10,} \|$", chapter, flags=re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == events_of_the_code()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_configuration_that_is_installed_explains_every_setting(name: str) -> None:
    description = re.escape(str(Settings.model_fields[name].description))
    assert re.search(rf"^# {description}\n(# .*\n)?#?{name} = ", CONFIG.read_text(), flags=re.MULTILINE)


def test_what_the_configuration_calls_a_default_is_one(tmp_path: Path) -> None:
    """But for those that depend on the machine, or are off: there it is an example."""
    written = tmp_path / "config.toml"
    written.write_text(re.sub(r"^#(?=\w+ = )", "", CONFIG.read_text(), flags=re.MULTILINE))
    found, _ = settings.load(config=written)
    for name in re.findall(r"^#(\w+) = ", CONFIG.read_text(), flags=re.MULTILINE):
        default = Settings.model_fields[name].default
        assert default in (None, (), getattr(found, name)), name
