"""The page on hardening names tests that exist, and says something of every attack."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "hardening.md").read_text(encoding="utf-8")


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`([a-z_]+/test_[a-z_]+\.py)::(test_[a-z0-9_]+)`", PAGE)
    assert len(named) > 60
    known = {file: functions(TESTS / file) for file, _ in named}
    assert not [f"{file}::{test}" for file, test in named if test not in known[file]]


def test_every_attack_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    assert rows == [str(number) for number in range(1, 25)]


def test_every_fuzz_test_is_on_the_page() -> None:
    fuzzing = []
    for path in sorted((TESTS / "fuzz").glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            calls = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
            if isinstance(node, ast.FunctionDef) and "fuzz" in [
                c.id for c in calls if isinstance(c, ast.Name)
            ]:
                fuzzing.append(f"fuzz/{path.name}::{node.name}")
    assert len(fuzzing) > 15
    assert not [test for test in fuzzing if test not in PAGE]
