"""Upserting: insert, or do something else where the key is there; both databases say it in the same words.

A statement that many batches need is put into words once (`upsert`): its rows then go to the driver as they
are, in the order of the table's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

Upsert = sqlite.Insert | postgresql.Insert
Setting = Callable[[Table, Upsert], dict[str, Any]]
"""What becomes of a row that is there; nothing if there are no columns in it."""

_texts: Final[dict[tuple[str, Table, Setting], str]] = {}
"""One for each database, table and setting."""


def upsert(connection: Connection, table: Table, setting: Setting, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows that have a table's columns in their order; where the key is there, set what is to be set.

    Args:
        setting: a function of a module, which gives the same for the same table always.
    """
    if not rows:
        return
    dialect = connection.dialect
    text = _texts.get((dialect.name, table, setting))
    if text is None:
        statement = upsert_for(connection, table, setting(table, insert_into(connection, table)))
        names = [column.name for column in table.columns]
        compiled = statement.compile(dialect=dialect, column_keys=names)
        assert compiled.positiontup == names  # both drivers take them by place
        text = _texts[dialect.name, table, setting] = str(compiled)
    connection.exec_driver_sql(text, list(rows))


def nothing(_table: Table, _new: Upsert) -> dict[str, Any]:
    """Leave what is there."""
    return {}


def insert_into(connection: Connection, table: Table) -> Upsert:
    """Return the database's own insert, which knows of conflicts."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def upsert_for(connection: Connection, table: Table, values: dict[str, Any]) -> Upsert:
    """Return an insert that sets `values` where the key is there; nothing if there are none."""
    statement = insert_into(connection, table)
    keys = list(table.primary_key.columns)
    if not values:
        return statement.on_conflict_do_nothing(index_elements=keys)
    return statement.on_conflict_do_update(index_elements=keys, set_=values)
