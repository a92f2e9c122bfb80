"""Sharding: rows that another process has put into a file of their own, taken over by SQLite as they are.

    process 1 ──rows──▶ shard ──┐
    process 2 ──rows──▶ shard ──┴─▶ ledger       one statement copies a shard, without a value in Python

It takes the writer a fifth of what rows cost it. A bill that is there already spoils a whole shard, which the
caller is told (`Spoiled`), with nothing kept; it reads that segment itself then.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import IntegrityError

from gateway.ledger import schema
from gateway.ledger.projection import Rows

NAME: Final = "shard"
"""What a shard is called in the connection that takes it over."""
_BILLS: Final = schema.bills.name
_INSERT: Final = f"INSERT INTO {_BILLS} VALUES ({','.join('?' * len(schema.bills.columns))})"  # noqa: S608
_PRAGMAS: Final = (
    "page_size=65536",
    "journal_mode=OFF",
    "synchronous=OFF",
    "locking_mode=EXCLUSIVE",
    "cache_size=-16384",
)


BILLS: Final = schema.bills.to_metadata(MetaData(), schema=NAME)
"""The bills of that shard."""


class Spoiled(Exception):
    """A shard has a bill that is there already."""


def definition(connection: Connection) -> str:
    """Return how a ledger defines a shard's table: only copies of the same definition are copied fast."""
    return str(connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = ?", (_BILLS,)).scalar())


class Shard:
    """A shard that is being written; it needs no care for crashes.

    Raises:
        sqlite3.Error: it cannot be written.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.bills = 0
        self._file = sqlite3.connect(path, isolation_level=None)
        for pragma in _PRAGMAS:
            self._file.execute(f"PRAGMA {pragma}")
        self._file.execute(table)
        self._file.execute("BEGIN")

    def take(self, rows: Rows) -> None:
        """Move bills from `rows` to the shard.

        Raises:
            sqlite3.IntegrityError: a bill comes twice; the shard is of no use.
        """
        self.bills += len(rows.bills)
        self._file.executemany(_INSERT, rows.bills)
        rows.bills, rows.places = [], []

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
        connection.exec_driver_sql(f"INSERT INTO {_BILLS} SELECT * FROM {NAME}.{_BILLS}")  # noqa: S608
    except IntegrityError as fault:
        raise Spoiled from fault


def ids_in(connection: Connection) -> Iterator[str]:
    """Yield the ids of the bills in that shard."""
    yield from connection.exec_driver_sql(f"SELECT record_id FROM {NAME}.{_BILLS}").scalars()  # noqa: S608
