"""Programs and rights that a test needs: at home it is skipped without them, in CI (`CI=true`) it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def require(*programs: str) -> None:
    """Have the test skipped, or in CI failed, unless all these programs are installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    _require(not missing, f"not installed: {', '.join(missing)}")


def require_root() -> None:
    """Have the test skipped, or in CI failed, unless it may mount file systems."""
    _require(os.geteuid() == 0, "only root may mount file systems")


def require_system_python() -> None:
    """Have the test skipped, or in CI failed, unless the system's Python can use the packages of this one."""
    words = ["/usr/bin/python3", "-c", "import ensurepip, sys, venv; print(*sys.version_info[:2])"]
    ours = " ".join(map(str, sys.version_info[:2]))
    theirs = (
        subprocess.run(words, capture_output=True, text=True, check=False).stdout if Path(words[0]).exists() else ""
    )
    _require(theirs.strip() == ours, f"/usr/bin/python3 with its module venv is not of version {ours}")


def _require(met: bool, reason: str) -> None:
    if met:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
