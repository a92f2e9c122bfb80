"""Where the tests find real provider traffic; they skip, and say so, where it is absent.

Generated tests take as long as the machine needs, and try the same examples in every CI run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "spanbill",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("spanbill")

ROOT = Path(__file__).resolve().parent.parent


def shared_folder(variable: str, default: str) -> Path:
    """Return the folder that `variable` names, or the default beside the repository."""
    return Path(os.environ.get(variable) or ROOT.parent / "shared" / default)


@pytest.fixture(scope="session")
def recordings() -> Path:
    folder = shared_folder("SPANBILL_RECORDINGS", "recordings")
    if not (folder / "index.jsonl").exists():
        pytest.skip(f"no recordings at {folder}; set SPANBILL_RECORDINGS")
    return folder
