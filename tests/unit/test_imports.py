"""The direction of imports, read from the source: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import framepack_daemon

ROOT = Path(framepack_daemon.__file__).parent
LEAVES = {"errors", "request", "request_parts", "aliases", "strict_json", "job", "atomic", "printable", "scratch"}
# Each part, and the parts of the package that it may import.
MAY_IMPORT = {
    "errors": set(),
    "printable": set(),
    "job": set(),
    "strict_json": {"errors", "printable"},
    "aliases": {"errors"},
    "refusals": {"aliases", "strict_json", "printable"},
    "request_parts": set(),
    "request": {"errors", "aliases", "refusals", "request_parts"},
    "atomic": set(),
    "scratch": set(),
    "progress": set(),
    "settings": LEAVES,
    "journal": {"printable"},
    "logs": LEAVES | {"journal"},
    "metrics": LEAVES | {"__init__", "spool.keeper", "workers.channel", "workers.pool"},
    "exports": {"errors"},
    "notify": LEAVES | {"spool.queue"},
    "gallery": LEAVES | {"gallery_files", "gallery_page", "spool"},
    "gallery_files": {"atomic", "gallery_page"},
    "gallery_page": {"job", "printable"},
    "observer": LEAVES
    | {"exports", "gallery", "lifecycle", "logs", "metrics", "notify", "report", "settings", "spool"}
    | {"workers.channel", "workers.pool"},
    "weights": LEAVES,
    "loras": LEAVES,
    "media": LEAVES,
    "spool": LEAVES | {"media.image", "media.clip"},
    "workers.channel": LEAVES,
    "workers.pool": LEAVES | {"workers.channel"},
    "workers.child": {"workers.renderer"},
    "workers.renderer": LEAVES | {"workers.channel", "engine", "weights", "loras"},
    "engine": LEAVES | {"media", "weights", "loras"},
    "systemd": set(),
    "signals": set(),
    "report": {"printable", "lifecycle", "progress", "spool.troubles", "workers.pool"},
    "reload": LEAVES | {"logs", "settings", "signals", "systemd"},
    "startup": LEAVES | {"reload", "report", "settings", "signals", "spool", "systemd"},
    "endings": LEAVES | {"spool"},
    "reasons": LEAVES | {"spool", "workers.channel", "workers.pool"},
    "lifecycle": LEAVES | {"endings", "reasons", "spool", "workers.channel", "workers.pool", "progress"},
    "parts": {"settings", "spool.inbox", "workers.pool"},
    "daemon": LEAVES
    | {"spool", "workers.channel", "workers.pool", "lifecycle", "endings", "settings"}
    | {"observer", "parts", "reload", "report", "signals", "startup", "systemd"},
    "web": LEAVES | {"spool", "settings", "loras", "media.image", "media.clip", "media.helper", "__init__"},
    "cli": LEAVES | {"spool", "daemon", "settings", "logs", "weights", "media", "workers.pool", "web", "__init__"},
    "__main__": {"cli"},
    "__init__": set(),
}
TORCH = {"torch", "diffusers", "transformers", "accelerate", "safetensors", "peft"}
MAY_IMPORT_TORCH = {"engine", "workers.renderer"}


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _part(module: str) -> str:
    """The longest name in the table that the module belongs to."""
    fits = [part for part in MAY_IMPORT if module == part or module.startswith(f"{part}.")]
    return max(fits, key=len, default=module)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=_module)
def test_imports_point_one_way(path: Path) -> None:
    part = _part(_module(path))
    if _module(path) in ("spool", "workers", "media", "engine"):
        return
    allowed = MAY_IMPORT[part] | {part}
    for name in _imports(path):
        if name.startswith("framepack_daemon."):
            other = name.removeprefix("framepack_daemon.")
            other = "__init__" if other == "__version__" else other
            assert any(other == may or other.startswith(f"{may}.") for may in allowed), f"{part} must not know {other}"


@pytest.mark.parametrize("path", MODULES, ids=_module)
def test_only_the_engine_and_its_process_import_torch(path: Path) -> None:
    heavy = {name.split(".")[0] for name in _imports(path)} & TORCH
    assert not heavy or _part(_module(path)) in MAY_IMPORT_TORCH
