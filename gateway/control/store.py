"""Store: the control plane's database, opened when it is first asked, and asked by one thread at a time.

It is never deleted, set aside or made again: what stands in it stands nowhere else. Unless `control.url`
names another place it is in the ledger's PostgreSQL, or the file `control.db` beside the journal's folder; a
SQLite ledger may be deleted at any time, so it is never in that one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection

from gateway.control.migrations import CONTROL
from gateway.ledger.opening import place_of
from gateway.ledger.postgres import PostgresStore
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import LedgerBroken, LedgerUnavailable, Store

log = logging.getLogger("spanbill.control")

T = TypeVar("T")

FILE: Final = "control.db"
STATEMENT_S: Final = 5.0
"""Longest statement in PostgreSQL; all of them go by an index or read a bounded list."""


def control_store_at(url: str, ledger_url: str, journal: Path) -> Store:
    """Return the database of the settings `control.url` and `ledger.url`.

    Raises:
        ValueError: a setting names no database that we know; the message does not repeat it.
    """
    place = place_of(url, "control.url")
    if place is None:
        ledger = place_of(ledger_url, "ledger.url")
        place = ledger if isinstance(ledger, str) else journal.parent / FILE
    if isinstance(place, Path):
        return SqliteStore(place, CONTROL.upgrade)
    return PostgresStore(place, CONTROL.upgrade, statement_s=STATEMENT_S)


class Control:
    """An open control database; each user of it (a thread, a guard) may have one of its own.

    Attributes:
        opened: how often it was opened: another number may be another database.
    """

    def __init__(self, store: Store) -> None:
        self.opened = 0
        self._store = store
        self._open = False
        self._busy = threading.Lock()

    @property
    def name(self) -> str:
        """What to call it in messages: never with a password."""
        return self._store.name

    def run(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        """Do some work in one transaction, from any thread without an event loop, and return what it returns.

        Raises:
            LedgerUnavailable: it is away, or damaged; nothing was changed, or, where the connection was lost
                in a commit, perhaps all was.
            LedgerNewer: a newer version made its schema.
        """
        with self._busy:
            try:
                self._opened()
                return self._store.run(work, writes=writes)
            except LedgerBroken as fault:
                raise LedgerUnavailable(f"it is damaged, restore a copy: {fault}") from fault

    def _opened(self) -> None:
        if self._open and not self._store.replaced():
            return
        if self._open:
            if not self._store.bytes():
                raise LedgerUnavailable("its file is gone: restore it, or start again without what it held")
            log.error("the control database was replaced", extra={"control": self.name})
            self._open = False
        self._store.open()
        self._open = True
        self.opened += 1

    def close(self) -> None:
        """Let go of it; it is opened again when it is asked."""
        with self._busy:
            self._store.close()
            self._open = False
