"""PostgreSQL: one database for several gateways; each one writes only rows of its own journal.

The driver is asynchronous and requests must not share a loop with it, so a store has a loop of its own,
which runs while one of its transactions does, in whichever thread asked for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.ledger.migrations import upgrade
from gateway.ledger.store import LedgerUnavailable, told_apart

T = TypeVar("T")

CONNECT_S: Final = 5.0
STATEMENT_S: Final = 600.0
"""Longest statement: a rebuild sums up all bills in one; anything else takes milliseconds."""
MIGRATION_LOCK: Final = 0x5350_4249_4C4C
"""Of several gateways that start at once, one changes the schema and the others wait."""


class PostgresStore:
    """See `gateway.ledger.store.Store`.

    Args:
        url: as SQLAlchemy writes it; `postgresql://` and `postgres://` mean asyncpg.
        migrate: makes or upgrades the tables; the ledger's by default.
        statement_s: how long a statement may take.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(
        self,
        url: str,
        migrate: Callable[[Connection], None] | None = None,
        *,
        statement_s: float = STATEMENT_S,
    ) -> None:
        self._url = make_url(url).set(drivername="postgresql+asyncpg")
        self._migrate = migrate
        self._statement_s = statement_s
        self._engine: AsyncEngine | None = None
        self._runner: asyncio.Runner | None = None
        self._busy = threading.Lock()

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self._url.set(drivername="postgresql").render_as_string(hide_password=True)

    def open(self) -> None:
        """Make or upgrade the tables; see `Store.open`."""
        self.close()
        self._runner = asyncio.Runner()
        self._engine = create_async_engine(
            self._url,
            connect_args={
                "timeout": CONNECT_S,
                "command_timeout": self._statement_s,
                # Whatever the server's default is: retention goes by what was committed.
                "server_settings": {"application_name": "spanbill", "synchronous_commit": "on"},
            },
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
        )
        self.run(self._upgrade, writes=True)

    def check(self) -> None:
        """Nothing to do: PostgreSQL looks after its own files."""

    def replaced(self) -> bool:
        """Nothing can be put in its place without closing the connection."""
        return False

    @property
    def workshop(self) -> None:
        """It reads no files of ours."""

    def kept_open(self) -> contextlib.AbstractContextManager[None]:
        """Its connection stays open anyway."""
        return contextlib.nullcontext()

    def run(self, work: Callable[[Connection], T], *, writes: bool = False, beside: Path | None = None) -> T:
        """Do some work in one transaction; see `Store.run`."""
        assert beside is None  # there is no workshop
        with self._busy, told_apart():
            if self._runner is None:
                raise LedgerUnavailable("it is not open")
            return self._runner.run(self._run(work, writes=writes))

    async def _run(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        assert self._engine is not None  # it is made with the runner
        async with self._engine.begin() as connection:
            if not writes:
                # A join with stretches of time looks to the planner as if it met a ninth of all rows; it
                # meets few, and reading all bills for each day of a month takes 20 s instead of 0.1.
                await connection.execute(text("SET LOCAL enable_seqscan = off"))
            return await connection.run_sync(work)

    def set_aside(self) -> None:
        """It cannot be: the database is not ours."""

    def bytes(self) -> int:
        """Return the size of the whole database."""
        return int(
            self.run(lambda c: c.execute(text("select pg_database_size(current_database())")).scalar_one())
        )

    def close(self) -> None:
        """Close all connections."""
        with self._busy:
            if self._runner is not None:
                if self._engine is not None:
                    self._runner.run(self._engine.dispose())
                self._runner.close()
            self._engine = None
            self._runner = None

    def _upgrade(self, connection: Connection) -> None:
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        (self._migrate or upgrade)(connection)
