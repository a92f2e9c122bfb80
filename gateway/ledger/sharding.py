"""Sharding: rows that another process has put into a file of their own, taken over by SQLite as they are.

    process 1 ──rows──▶ shard ──┐
    process 2 ──rows──▶ shard ──┴─▶ ledger       one statement copies a shard, without a value in Python

It takes the writer a fifth of what rows cost it. A bill that is there already spoils a whole shard, which the
caller is told (`Spoiled`), with nothing kept; it reads that segment itself then.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from gateway.ledger import schema
from gateway.ledger.projection import Rows

NAME: Final = "shard"
"""What a shard is called in the connection that takes it over."""
_TABLES: Final = (schema.bills.name, schema.lines.name)
_PRAGMAS: Final = (
    "page_size=65536",
    "journal_mode=OFF",
    "synchronous=OFF",
    "locking_mode=EXCLUSIVE",
    "cache_size=-16384",
)


class Spoiled(Exception):
    """A shard has a bill that is there already."""


def definitions(connection: Connection) -> tuple[str, ...]:
    """Return how a ledger defines a shard's tables: only copies of the same definition are copied fast."""
    rows = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name IN (?, ?)", _TABLES)
    return tuple(str(sql) for sql in rows.scalars())


class Shard:
    """A shard that is being written; it needs no care for crashes.

    Raises:
        sqlite3.Error: it cannot be written.
    """

    def __init__(self, path: Path, tables: tuple[str, ...]) -> None:
        self.bills = 0
        self._file = sqlite3.connect(path, isolation_level=None)
        for pragma in _PRAGMAS:
            self._file.execute(f"PRAGMA {pragma}")
        for sql in tables:
            self._file.execute(sql)
        self._file.execute("BEGIN")

    def take(self, rows: Rows) -> None:
        """Move bills and lines from `rows` to the shard.

        Raises:
            sqlite3.IntegrityError: a bill comes twice; the shard is of no use.
        """
        self.bills += len(rows.bills)
        lines = list(chain.from_iterable(rows.lines))
        for table, some in ((schema.bills, rows.bills), (schema.lines, lines)):
            marks = ",".join("?" * len(table.columns))
            self._file.executemany(f"INSERT INTO {table.name} VALUES ({marks})", some)  # noqa: S608
        rows.bills, rows.lines, rows.places = [], [], []

    def close(self) -> None:
        """Finish the file."""
        if self._file.in_transaction:
            self._file.execute("COMMIT")
        self._file.close()


def take_over(connection: Connection) -> None:
    """Copy the shard that the connection has beside it.

    Raises:
        Spoiled: nothing must be kept of this transaction.
    """
    try:
        for name in _TABLES:
            connection.exec_driver_sql(f"INSERT INTO {name} SELECT * FROM {NAME}.{name}")  # noqa: S608
    except IntegrityError as fault:
        raise Spoiled from fault


def ids_in(connection: Connection) -> Iterator[str]:
    """Yield the ids of the bills in that shard."""
    yield from connection.exec_driver_sql(f"SELECT record_id FROM {NAME}.{_TABLES[0]}").scalars()  # noqa: S608
