"""What operators decide is kept apart from the ledger, and is never made again from nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, select

from gateway.control import schema
from gateway.control.migrations import CONTROL
from gateway.control.store import Control, control_store_at
from gateway.ledger.opening import store_at
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import LedgerNewer, LedgerUnavailable
from tests.control.conftest import MakeControl
from tests.ledger.servers import Postgres

OF_KEYS = schema.versions.c.kind == "keys"


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return [
        difference
        for difference in compare_metadata(context, schema.metadata)
        if getattr(difference[1], "name", None) != CONTROL.table
    ]


def test_the_migrations_make_what_the_code_believes(control: MakeControl) -> None:
    assert control().run(differences) == []
    control().run(lambda c: c.exec_driver_sql("DROP INDEX keys_user"), writes=True)
    assert len(control().run(differences)) == 1


def test_changes_come_one_after_another_and_are_seen_from_every_side(control: MakeControl) -> None:
    one, other = control(), control()
    seen = [side.run(lambda c: schema.next_version(c, "keys"), writes=True) for side in (one, other, one)]
    assert seen == [1, 2, 3]
    assert other.run(lambda c: c.execute(select(schema.versions.c.version).where(OF_KEYS)).scalar_one()) == 3


def test_a_schema_of_a_newer_version_is_left_alone(control: MakeControl) -> None:
    control().run(lambda c: c.exec_driver_sql("UPDATE control_schema SET version_num = '9999'"), writes=True)
    with pytest.raises(LedgerNewer, match=r"control\.url"):
        control().run(lambda c: None)


def test_it_is_beside_the_journal_or_in_the_ledgers_postgresql(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    here = str(tmp_path / "control.db")
    assert control_store_at("", "", journal).name == here
    assert control_store_at("", f"sqlite:///{tmp_path}/elsewhere/ledger.db", journal).name == here
    assert control_store_at("", "postgres://me:secret@host/db", journal).name == "postgresql://me:***@host/db"
    assert control_store_at("sqlite:///keys.db", "postgres://me@host/db", journal).name == "keys.db"
    with pytest.raises(ValueError, match=r"control\.url") as fault:
        control_store_at("mysql://me:secret@host/db", "", journal)
    assert "secret" not in str(fault.value)


def test_it_shares_a_postgresql_with_the_ledger(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.database()
    ledger = store_at(url, tmp_path / "journal")
    control = Control(control_store_at("", url, tmp_path / "journal"))
    try:
        ledger.open()
        assert control.run(CONTROL.revision_of) == CONTROL.known_revisions()[0]
        ledger.close()
        ledger.open()  # neither takes the other's tables for its own
    finally:
        ledger.close()
        control.close()


def test_a_ledger_that_is_deleted_or_broken_leaves_the_keys(tmp_path: Path) -> None:
    control = Control(control_store_at("", "", tmp_path / "journal"))
    control.run(lambda c: schema.next_version(c, "keys"), writes=True)
    ledger = SqliteStore(tmp_path / "ledger.db")
    ledger.open()
    ledger.set_aside()
    ledger.open()
    ledger.delete()
    assert (
        control.run(lambda c: c.execute(select(schema.versions.c.version).where(OF_KEYS)).scalar_one()) == 1
    )
    control.close()


def test_a_file_that_is_gone_is_not_made_again_under_a_running_gateway(tmp_path: Path) -> None:
    control = Control(control_store_at("", "", tmp_path / "journal"))
    control.run(lambda c: schema.next_version(c, "keys"), writes=True)
    copy = tmp_path / "copy.db"
    with sqlite3.connect(tmp_path / "control.db") as source, sqlite3.connect(copy) as target:
        source.backup(target)
    for end in ("", "-wal", "-shm"):
        (tmp_path / f"control.db{end}").unlink(missing_ok=True)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="gone"):
            control.run(lambda c: None)
    assert not (tmp_path / "control.db").exists()
    copy.rename(tmp_path / "control.db")
    assert (
        control.run(lambda c: c.execute(select(schema.versions.c.version).where(OF_KEYS)).scalar_one()) == 1
    )
    control.close()


def test_a_damaged_file_is_away_and_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "control.db").write_bytes(b"no database at all" * 1000)
    control = Control(control_store_at("", "", tmp_path / "journal"))
    with pytest.raises(LedgerUnavailable, match="restore a copy"):
        control.run(lambda c: None)
    assert [path.name for path in tmp_path.iterdir()] == ["control.db"]
