"""Store: a ledger's database; everything that is done to it is one transaction, and its faults are three.

Away (try again later), broken (set aside and make again), newer than this version (only an operator helps).
The foreign exceptions of both databases are told apart here and nowhere else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import asyncpg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

T = TypeVar("T")

_BROKEN = ("malformed", "not a database", "disk image", "corrupt")


class LedgerUnavailable(Exception):
    """The ledger's database does not answer now; nothing was changed, or all of it."""


class LedgerBroken(Exception):
    """The ledger's file is damaged."""


class LedgerNewer(Exception):
    """A newer version of the gateway made this ledger's schema; the message says what to do."""


class Store(Protocol):
    """A ledger's database."""

    @property
    def name(self) -> str:
        """What to call it in messages: never with a password."""
        ...

    def open(self) -> None:
        """Make the tables, or bring them to this version's schema.

        Raises:
            LedgerUnavailable, LedgerBroken, LedgerNewer: as they say.
        """
        ...

    def check(self) -> None:
        """Read the whole of it, where damage is possible.

        Raises:
            LedgerBroken: it is damaged.
        """
        ...

    def replaced(self) -> bool:
        """Say whether what was opened is no longer what stands at its place."""
        ...

    @property
    def workshop(self) -> Path | None:
        """A folder for files that `run` can have beside it; None where it can have none."""
        ...

    def kept_open(self) -> AbstractContextManager[None]:
        """Keep what costs time to open and to close, between many transactions."""
        ...

    def run(self, work: Callable[[Connection], T], *, writes: bool = False, beside: Path | None = None) -> T:
        """Do some work in one transaction, from any thread, and return what it returns.

        Args:
            beside: a file in the workshop: see `gateway.ledger.sharding`.

        Raises:
            LedgerUnavailable, LedgerBroken: nothing was changed; after a lost connection, perhaps all was.
        """
        ...

    def set_aside(self) -> str | None:
        """Put a broken ledger out of the way; return where it is now, None where that cannot be done."""
        ...

    def bytes(self) -> int:
        """Return how much room it takes."""
        ...

    def close(self) -> None:
        """Let go of it; it can be opened again."""
        ...


@contextmanager
def told_apart() -> Iterator[None]:
    """Map what the databases raise.

    Raises:
        LedgerUnavailable, LedgerBroken: as they say.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error) as fault:
        origin = fault.orig if isinstance(fault, DBAPIError) else fault
        text = str(origin)
        if isinstance(origin, sqlite3.DatabaseError) and any(word in text for word in _BROKEN):
            raise LedgerBroken(text) from fault
        raise LedgerUnavailable(text.splitlines()[0] if text else type(origin).__name__) from fault
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as fault:
        text = str(fault)
        raise LedgerUnavailable(text.splitlines()[0] if text else type(fault).__name__) from fault
