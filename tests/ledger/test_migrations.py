"""Every older schema comes up to the newest, which is what the code believes it to be."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect

from gateway.ledger import schema
from gateway.ledger.migrations import LEDGER, known_revisions, revision_of, upgrade
from gateway.ledger.store import Store
from tests.ledger.conftest import MakeStore


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return [
        difference
        for difference in compare_metadata(context, schema.metadata)
        if getattr(difference[1], "name", None) != LEDGER.table
    ]


@pytest.mark.parametrize("revision", known_revisions())
def test_each_revision_comes_up_to_the_newest(
    revision: str, ledger: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ledger()
    whole = LEDGER.upgrade
    with monkeypatch.context() as old:
        for place in ("gateway.ledger.sqlite.upgrade", "gateway.ledger.postgres.upgrade"):
            old.setattr(place, lambda connection: whole(connection, revision))
        store.open()
    assert store.run(revision_of) == revision
    store.close()
    store.open()
    assert store.run(revision_of) == known_revisions()[0]
    assert store.run(differences) == []
    assert store.run(lambda c: inspect(c).get_view_names()) == ["current_bills", "lines"]


def test_a_schema_that_misses_something_is_seen_to_differ(ledger: MakeStore) -> None:
    store = ledger()
    store.open()
    store.run(lambda c: c.exec_driver_sql("DROP INDEX bills_account"), writes=True)
    assert len(store.run(differences)) == 1


def test_an_upgrade_that_fails_leaves_nothing(ledger: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store = ledger()

    def half(connection: Connection) -> None:
        upgrade(connection)
        raise OSError("cut")

    with monkeypatch.context() as broken:
        for place in ("gateway.ledger.sqlite.upgrade", "gateway.ledger.postgres.upgrade"):
            broken.setattr(place, half)
        with pytest.raises(Exception, match="cut"):
            store.open()
    assert store.run(revision_of) is None
    store.open()
    assert store.run(revision_of) == known_revisions()[0]
