"""Inserting: many rows at once, as fast as each database takes them."""

from __future__ import annotations

from sqlalchemy import Connection, Table
from sqlalchemy.util import await_only

from gateway.ledger.projection import Row
from gateway.ledger.upserting import nothing, upsert


def insert_rows(connection: Connection, table: Table, rows: list[Row]) -> None:
    """Insert rows that have a table's columns in their order, as fast as the database takes them."""
    if not rows:
        return
    names = [column.name for column in table.columns]
    if connection.dialect.name == "postgresql":
        driver = connection.connection.driver_connection
        assert driver is not None  # the connection is in use
        await_only(driver.copy_records_to_table(table.name, records=rows, columns=names))
        return
    marks = ",".join("?" * len(names))
    connection.exec_driver_sql(f"INSERT INTO {table.name} VALUES ({marks})", rows)  # noqa: S608  # names of ours


def insert_missing(connection: Connection, table: Table, rows: list[Row]) -> None:
    """Insert rows, in this order, except where their keys are there already."""
    upsert(connection, table, nothing, rows)
