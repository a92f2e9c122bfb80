"""The control plane's database in both kinds; the real PostgreSQL as for the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.control.store import Control, control_store_at
from tests.ledger.conftest import postgres  # noqa: F401 - a fixture

MakeControl = Callable[[], Control]


@pytest.fixture(params=["sqlite", "postgresql"])
def control(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeControl]:
    """Return a way to open one and the same database, again and from several sides."""
    made: list[Control] = []
    url = request.getfixturevalue("postgres").database() if request.param == "postgresql" else ""

    def make() -> Control:
        made.append(Control(control_store_at(url, "", tmp_path / "journal")))
        return made[-1]

    yield make
    for one in made:
        one.close()
