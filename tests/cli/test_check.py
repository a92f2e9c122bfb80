"""`spanbill check` says of a file what a running gateway would: that it is taken over, or why it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway_process import ROOT, Gateway

ALIAS = "routing: {aliases: {m: {targets: [{model: %s}]}}}"


def check(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "spanbill.yaml").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "gateway", "check"],
        cwd=folder,
        env={**Gateway.clean_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_configuration_that_can_be_used_is_printed(tmp_path: Path) -> None:
    done = check(tmp_path, ALIAS % "simulated/sim-small")
    assert done.returncode == 0, done.stderr
    assert "simulated/sim-small" in done.stdout


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (ALIAS % "nobody/nothing", "nobody/nothing"),
        ("limits: {rules: [{id: a, concurrent: 1}, {id: a, concurrent: 2}]}", "limits.rules"),
        ("keys: [{id: k, user: u, key_env: NOT_SET_ANYWHERE}]", "keys: k"),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_its_mistake(tmp_path: Path, text: str, why: str) -> None:
    done = check(tmp_path, text)
    assert done.returncode == 78
    assert why in done.stderr
    assert done.stdout == ""
