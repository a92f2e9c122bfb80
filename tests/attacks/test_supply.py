"""Supply: what is installed is what was locked, and what is built runs nothing by itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker

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


PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|ISC|ISCL|PSF|CNRI-Python)\b")
COPYLEFT = re.compile(r"GPL|EUPL|SSPL|BUSL|CC-BY-NC|Commons Clause", re.IGNORECASE)
OF_FILES_ONLY = {"certifi", "orjson"}
"""MPL-2.0, unchanged: what is made with them stays under its own licence."""


def locked() -> Iterator[importlib.metadata.Distribution]:
    """Yield what `requirements/runtime.txt` locks and this platform needs."""
    for line in (ROOT / "requirements" / "runtime.txt").read_text().splitlines():
        found = re.match(r"([a-z0-9][a-z0-9._-]*)==[^ ]* *(?:; *([^\\]+))?", line)
        if found is not None and (found[2] is None or Marker(found[2].strip()).evaluate()):
            yield importlib.metadata.distribution(found[1])


def licence_of(distribution: importlib.metadata.Distribution) -> str:
    facts = distribution.metadata
    classifiers = [c for c in facts.get_all("Classifier") or () if c.startswith("License ::")]
    return " ".join([facts.get("License-Expression") or (facts.get("License") or "")[:60], *classifiers])


def test_every_runtime_dependency_has_a_licence_that_leaves_ours_alone() -> None:
    licences = {found.metadata["Name"]: licence_of(found) for found in locked()}
    assert len(licences) > 40
    for name, licence in licences.items():
        assert PERMISSIVE.search(licence) or name in OF_FILES_ONLY, f"{name}: {licence or 'no licence'}"
        assert not COPYLEFT.search(licence), f"{name}: {licence}"


def test_nothing_that_is_locked_runs_at_the_start_of_python() -> None:
    files = [str(file) for found in locked() for file in found.files or ()]
    assert len(files) > 1000
    assert not [file for file in files if AT_START.search(file) and "/" not in file]


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
