"""Both databases; the real PostgreSQL is there in CI, and elsewhere where Debian's package is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.ledger.postgres import PostgresStore
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import Store
from tests.ledger.servers import Postgres, programs, running_postgres

MakeStore = Callable[[], Store]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if programs() is None:
        assert not os.environ.get("CI"), "CI needs PostgreSQL: apt-get install postgresql"
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    """Return a way to open one and the same ledger, again and from several sides."""
    made: list[Store] = []
    url = request.getfixturevalue("postgres").database() if request.param == "postgresql" else ""

    def make() -> Store:
        store: Store = PostgresStore(url) if url else SqliteStore(tmp_path / "ledger.db")
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()
