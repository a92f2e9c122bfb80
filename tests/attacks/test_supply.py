"""Supply: what is installed is what was locked, and what is built runs nothing by itself."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AT_START = re.compile(r"(\.pth|(^|/)(sitecustomize|usercustomize)\.py)$")
"""What Python runs before anything is imported."""
PACKAGES = ("gateway", "otel")


def tracked() -> list[str]:
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


@pytest.mark.parametrize("lock", ["runtime.txt", "dev.txt"])
def test_every_locked_requirement_is_pinned_and_hashed(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) > 20
    for line in lines:
        assert re.match(r"[a-z0-9][a-z0-9._-]*==[0-9][^ ;]*( ;[^#]*?)? +--hash=sha256:[0-9a-f]{64}", line), (
            line
        )
        assert "://" not in line, "a requirement from an address is outside the registry's hashes"


def test_everything_that_installs_asks_for_hashes() -> None:
    for name in ("Makefile", "Dockerfile"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if "pip install" in line]
        assert lines, name
        for line in lines:
            assert "--require-hashes" in line or "uv==" in line, f"{name}: {line.strip()}"


def test_a_wheel_takes_both_packages_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hatch = project["tool"]["hatch"]
    assert hatch == {"build": {"targets": {"wheel": {"packages": list(PACKAGES)}}}}, "a hook or a forced file"
    assert project["build-system"]["build-backend"] == "hatchling.build"


def test_no_tracked_file_runs_at_the_start_of_python() -> None:
    files = tracked()
    assert any(file.startswith("gateway/") for file in files)
    assert not [file for file in files if AT_START.search(file)]


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
def test_the_built_wheel_runs_nothing_by_itself(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("gateway/") for name in names)
    assert not [name for name in names if AT_START.search(name)]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
