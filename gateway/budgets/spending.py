"""Spending: what the ledger says was spent, and whether it can be believed yet.

Nothing else ever counts as spent, so that no crash refills a budget and none leaks one. Sum and position
are read in one transaction: a bill is in the sum exactly if its number is not above `seen`. A ledger that
is being made anew, or has not yet read what this journal held when it was first asked, would say too
little, and is not believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import Connection, func, select

from gateway.budgets.definitions import Scope, filters_of
from gateway.ledger import schema
from gateway.ledger.opening import FILE, place_of
from gateway.ledger.periods import Period
from gateway.ledger.position import Position, position_of
from gateway.ledger.postgres import PostgresStore
from gateway.ledger.projection import id_of
from gateway.ledger.queries import Filters, costs
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import LedgerBroken, LedgerNewer, LedgerUnavailable, Store
from otel.journal.files import Files
from otel.journal.reader import Reader
from otel.journal.removed import folder_id

STATEMENT_S: Final = 5.0
"""Longest statement in PostgreSQL: requests wait for it, and sums are read from roll-ups."""
_UTC: Final = ZoneInfo("UTC")

Account = tuple[Scope, str, Period]
"""Whose spending, and when."""
Reach = Mapping[str, int]
"""Segments of a journal, and how far each is to be read."""


class Unknown(Exception):
    """What was spent cannot be known now; the message says why."""


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger says.

    Args:
        spent_pico: of each account that was asked for.
        position: how far this journal was read.
    """

    spent_pico: dict[Account, int]
    position: Position


class Spending:
    """The ledger as one journal's gateway asks it; all methods belong to one thread.

    It is read in a thread of its own, because whoever asks may be inside the control database's event loop.

    Args:
        store: an own one, so that it waits for no other's transaction.
    """

    def __init__(self, directory: Path, store: Store, files: Files | None = None) -> None:
        self._directory = directory
        self._store = store
        self._files = files or Files()
        self._open = False
        self._first: Reach | None = None
        self._passed_bytes = 0
        self._gateway_id: int | None = None
        self._thread = ThreadPoolExecutor(1, "budgets-ledger")

    @property
    def gateway_id(self) -> int:
        """The journal's name in the ledger.

        Raises:
            Unknown: the folder has none that can be read.
        """
        if self._gateway_id is None:
            try:
                self._gateway_id = id_of(folder_id(self._directory, self._files))
            except (OSError, ValueError) as fault:
                raise Unknown(str(fault)) from fault
        return self._gateway_id

    def read(self, accounts: Sequence[Account]) -> Books:
        """Return what was spent.

        Raises:
            Unknown: the ledger is away, broken or behind.
        """
        books, passed_bytes = self._thread.submit(self._read, self.gateway_id, accounts).result()
        if passed_bytes < self._passed_bytes:
            raise Unknown("the ledger is being made again")
        if self._first is None:
            self._first = self.reach(books.position)
        if self._first and not passed(books.position, self._first):
            raise Unknown("the ledger has not yet all bills of before the start")
        self._first = {}
        self._passed_bytes = passed_bytes
        return books

    def payers(self, scope: Scope, period: Period) -> dict[str, int]:
        """Return what each payer of a kind has spent, in pico-USD.

        Raises:
            Unknown: the ledger is away, broken or behind.
        """
        self.read(())
        question = costs((scope,), Filters(), period, _UTC)

        def ask(c: Connection) -> dict[str, int]:
            rows = [row for statement in question.statements for row in c.execute(statement)]
            groups = [(group.values[0], group.total.cost_pico) for group in question.fold(rows)]
            return {payer: cost for payer, cost in groups if payer is not None}

        try:
            return self._thread.submit(self._store.run, ask).result()
        except (LedgerUnavailable, LedgerBroken) as fault:
            raise Unknown(f"the ledger is away: {fault}") from fault

    def _read(self, gateway_id: int, accounts: Sequence[Account]) -> tuple[Books, int]:
        try:
            if not self._open or self._store.replaced():
                self._store.open()
                self._open = True
            return self._store.run(lambda c: _books(c, gateway_id, accounts))
        except (LedgerUnavailable, LedgerBroken, LedgerNewer) as fault:
            self._open = False
            raise Unknown(f"the ledger is away: {fault}") from fault

    def reach(self, position: Position) -> Reach:
        """Return how far the journal has to be read for all that is durable now.

        Raises:
            Unknown: the journal cannot be read.
        """
        try:
            ahead = Reader(self._directory, position, self._files).stretches()
        except OSError as fault:
            raise Unknown(f"the journal cannot be read: {fault}") from fault
        return {stretch.name: stretch.limit for stretch in ahead}

    def close(self) -> None:
        """Let go of the ledger."""
        self._thread.submit(self._store.close).result()
        self._thread.shutdown()


def spending_of(directory: Path, ledger_url: str, files: Files) -> Spending:
    """Return the spending in the ledger of a setting.

    Raises:
        ValueError: the setting names no ledger.
    """
    place = place_of(ledger_url, "ledger.url")
    if isinstance(place, str):
        return Spending(directory, PostgresStore(place, statement_s=STATEMENT_S), files)
    return Spending(directory, SqliteStore(place or directory.parent / FILE), files)


def passed(position: Position, reach: Reach) -> bool:
    """Say whether a journal was read that far."""
    return all(position[name] >= limit for name, limit in reach.items())


def _books(connection: Connection, gateway_id: int, accounts: Sequence[Account]) -> tuple[Books, int]:
    gateways, segments = schema.gateways, schema.segments
    if connection.execute(select(gateways.c.id).where(gateways.c.rollups_due).limit(1)).first() is not None:
        raise LedgerUnavailable("its sums are being made")
    spent = {account: spent_pico(connection, account) for account in accounts}
    total = select(func.sum(segments.c.passed)).where(segments.c.gateway_id == gateway_id)
    position = position_of(connection, gateway_id)
    return Books(spent_pico=spent, position=position), int(connection.execute(total).scalar() or 0)


def spent_pico(connection: Connection, account: Account) -> int:
    """Return what an account comes to, in pico-USD."""
    scope, payer, period = account
    question = costs((), filters_of(scope, payer), period, _UTC)
    rows = [row for statement in question.statements for row in connection.execute(statement)]
    return sum([group.total.cost_pico for group in question.fold(rows)])
