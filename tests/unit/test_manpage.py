"""The man page has every command and setting, and is well-formed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import require
from typer.main import get_command

from framepack_daemon.cli import app
from framepack_daemon.settings import Settings

SCRIPT = Path(__file__).parents[2] / "packaging" / "manpage.py"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("man") / "framepack-daemon.1"
    path.write_bytes(subprocess.run([sys.executable, SCRIPT], check=True, capture_output=True).stdout)
    return path


def mandoc(page: Path, *words: str) -> str:
    require("mandoc")
    done = subprocess.run(["mandoc", *words, page], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_man_page_is_well_formed(page: Path) -> None:
    assert mandoc(page, "-T", "lint") == ""


def test_the_man_page_has_every_command_and_setting(page: Path) -> None:
    shown = re.sub(".\b", "", mandoc(page, "-T", "ascii"))  # letters that are struck over are bold
    headings = {line.strip() for line in shown.splitlines() if re.match(r" {3}\S", line)}
    commands = get_command(app).commands
    assert "submit" in commands
    names = [f"{name} {each}".strip() for name, group in commands.items() for each in getattr(group, "commands", [""])]
    assert [name for name in names if name not in headings] == []
    options = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    assert options <= set(shown.split())
