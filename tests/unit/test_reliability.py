"""The page that promises: every fault has its tests, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
FAULTS = 33
_ROW = re.compile(r"^\| (\d+) \|.*\| (.*) \|$", re.MULTILINE)
_NAME = re.compile(r"`(test_\w+)::(test_\w+)`")


def _tests(module: str) -> set[str]:
    """The tests of a module, by its source alone."""
    (path,) = (ROOT / "tests").glob(f"*/{module}.py")
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if _is_test(node)}


def _is_test(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")


def test_every_fault_has_its_line_in_order() -> None:
    assert [int(row[1]) for row in _ROW.finditer(PAGE)] == list(range(1, FAULTS + 1))


@pytest.mark.parametrize("row", [pytest.param(row[2], id=row[1]) for row in _ROW.finditer(PAGE)])
def test_every_line_names_its_tests(row: str) -> None:
    assert _NAME.findall(row)


@pytest.mark.parametrize("module", sorted({module for module, _ in _NAME.findall(PAGE)}))
def test_every_test_that_is_named_is_there(module: str) -> None:
    named = {test for where, test in _NAME.findall(PAGE) if where == module}
    assert named <= _tests(module)
