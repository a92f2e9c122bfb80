"""House rules that a linter does not know."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

from gateway.cli.tables import PAGES
from gateway.pricing import importer

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "gateway").rglob("*.py"), *(ROOT / "otel").rglob("*.py")])
MONEY = [
    *(ROOT / "gateway" / "pricing").glob("*.py"),
    ROOT / "gateway" / "core" / "money.py",
    ROOT / "gateway" / "core" / "charge.py",
]
LINES_MAX = 400


def test_reference_pages_are_what_the_code_says() -> None:
    for name, page in PAGES.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page(), f"docs/{name}: run `make docs`"


def test_the_price_catalogue_is_what_its_source_gives() -> None:
    assert importer.TARGET.read_bytes() == importer.build(), "run `make prices`"


def test_no_float_comes_near_a_price() -> None:
    for path in MONEY:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), (
                f"{path}:{node.lineno}"
            )
            assert not (isinstance(node, ast.Name) and node.id == "float"), f"{path}:{node.lineno}"
            assert not isinstance(node, ast.Div), path


def test_modules_stay_readable_in_one_sitting() -> None:
    for path in SOURCES:
        count = len(path.read_text().splitlines())
        assert count <= LINES_MAX, f"{path.relative_to(ROOT)} has {count} lines"


def test_every_module_says_what_it_promises() -> None:
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_import_hides_inside_a_function() -> None:
    for path in SOURCES:
        if path == Path(importer.__file__):
            continue  # a tool of the build, whose source is no dependency of the gateway
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert not inner, f"{path}:{node.lineno}"


def test_no_tracked_file_names_a_path_of_a_machine() -> None:
    found = subprocess.run(
        ["git", "grep", "-nIE", r"(^|[^A-Za-z0-9_.])/(work|root|home)/"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line for line in found.stdout.splitlines() if "test_tidy.py" not in line]
    assert not lines
