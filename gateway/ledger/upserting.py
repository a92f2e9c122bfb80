"""Upserting: insert, or do something else where the key is there; both databases say it in the same words."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

Upsert = sqlite.Insert | postgresql.Insert


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
