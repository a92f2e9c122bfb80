"""Both kinds of databases, control and ledger together; the real PostgreSQL as for the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.budgets.spending import Spending, spending_of
from gateway.control.store import Control, control_store_at
from gateway.ledger.opening import store_at
from gateway.ledger.store import Store
from otel.journal.files import Files
from tests.ledger.conftest import postgres  # noqa: F401 - a fixture


class Places:
    """Where a gateway of this folder has its databases; each of them can be opened several times."""

    def __init__(self, journal: Path, url: str) -> None:
        self.journal = journal
        self.url = url
        self._made: list[Control | Store | Spending] = []

    def control(self) -> Control:
        made = Control(control_store_at("", self.url, self.journal))
        self._made.append(made)
        return made

    def ledger(self) -> Store:
        made = store_at(self.url, self.journal)
        self._made.append(made)
        return made

    def spending(self) -> Spending:
        made = spending_of(self.journal, self.url, Files())
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    url = request.getfixturevalue("postgres").database() if request.param == "postgresql" else ""
    found = Places(tmp_path / "data" / "journal", url)
    yield found
    found.close()
