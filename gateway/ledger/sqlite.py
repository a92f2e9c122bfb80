"""SQLite: one file, one writer, readers beside it (WAL); a commit is on the disk when it returns.

`synchronous=FULL`: what the ledger says it has read, retention may remove from the journal, so a power loss
must not take it back. A file that was deleted or replaced under an open ledger is noticed before each write,
for SQLite itself would write on into the deleted one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from gateway.ledger.migrations import upgrade
from gateway.ledger.sharding import NAME
from gateway.ledger.store import LedgerBroken, LedgerUnavailable, told_apart

T = TypeVar("T")

BUSY_S: Final = 2.0
"""How long a transaction waits for another process's."""
ASIDE_MAX: Final = 1_000
COMPANIONS: Final = ("-wal", "-shm", "")
CACHE_KIB: Final = 32 * 1024


class SqliteStore:
    """See `gateway.ledger.store.Store`.

    Args:
        path: of the file; its folder is made if it is not there.
        migrate: makes or upgrades the tables; the ledger's by default.
    """

    def __init__(self, path: Path, migrate: Callable[[Connection], None] | None = None) -> None:
        self._path = path
        self._migrate = migrate
        self._engine: Engine | None = None
        self._file: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The file."""
        return str(self._path)

    def open(self) -> None:
        """Make or upgrade the tables; see `Store.open`."""
        self.close()
        with told_apart():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # As long as it takes: a page cache outlives no connection, and a connection costs 0.1 ms.
            self._engine = create_engine(
                f"sqlite:///{self._path}", connect_args={"timeout": BUSY_S}, poolclass=NullPool
            )
            event.listen(self._engine, "connect", _prepare)
            event.listen(self._engine, "begin", _begin)
            self.run(self._migrate or upgrade, writes=True)
            self._file = _identity(self._path)

    def check(self) -> None:
        """Let SQLite look at every page."""
        answer = self.run(lambda c: c.exec_driver_sql("PRAGMA quick_check(1)").scalar_one())
        if answer != "ok":
            raise LedgerBroken(str(answer))

    def replaced(self) -> bool:
        """Say whether the file was deleted or another one put in its place."""
        return _identity(self._path) != self._file

    @property
    def workshop(self) -> Path:
        """A folder beside the file."""
        return self._path.with_name(f"{self._path.name}.shards")

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep a connection: when the last one closes, SQLite writes all that is in the WAL to the file."""
        if self._engine is None:
            raise LedgerUnavailable("it is not open")
        with told_apart(), self._engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1 FROM sqlite_master").all()
            connection.rollback()
            yield

    def run(self, work: Callable[[Connection], T], *, writes: bool = False, beside: Path | None = None) -> T:
        """Do some work in one transaction; see `Store.run`."""
        if self._engine is None:
            raise LedgerUnavailable("it is not open")
        options = {"writes": writes, "beside": beside}
        with told_apart(), self._engine.connect().execution_options(**options) as connection:
            connection.begin()
            done = work(connection)
            connection.commit()
            return done

    def set_aside(self) -> str:
        """Rename the file and what belongs to it."""
        self.close()
        with told_apart():
            aside = next(
                path
                for number in range(1, ASIDE_MAX)
                if not (path := self._path.with_name(f"{self._path.name}.broken-{number}")).exists()
            )
            self._rename(aside)
        return str(aside)

    def delete(self) -> None:
        """Delete the file and what belongs to it."""
        self.close()
        for end in COMPANIONS:
            self._path.with_name(self._path.name + end).unlink(missing_ok=True)

    def bytes(self) -> int:
        """Return the size of the file and what belongs to it."""
        total = 0
        for end in COMPANIONS:
            with contextlib.suppress(FileNotFoundError):
                total += self._path.with_name(self._path.name + end).stat().st_size
        return total

    def close(self) -> None:
        """Close all connections."""
        if self._engine is not None:
            self._engine.dispose()
        self._engine = None
        self._file = None

    def _rename(self, aside: Path) -> None:
        for end in COMPANIONS:
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + end).rename(aside.with_name(aside.name + end))


def _prepare(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver's own way to begin transactions is in ours
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "temp_store=MEMORY",
        f"cache_size=-{CACHE_KIB}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    writes, beside = options.get("writes", False), options.get("beside")
    if beside is not None:  # which cannot be said within a transaction
        connection.exec_driver_sql(f"ATTACH ? AS {NAME}", (str(beside),))
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
