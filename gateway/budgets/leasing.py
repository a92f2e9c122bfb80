"""Leasing: one transaction in which a process tells what it holds, and is given more where there is more.

    lock ── read leases ── read spent ── write own leases, if spent + all leases <= limit ── commit

The order keeps the promise. A bill that has left somebody's lease is in the ledger, so whoever reads the
leases first and the ledger after them counts it at least once; counted twice it makes a budget smaller for
a moment, never larger. The condition stands in the writing statement itself: whatever else changed, it
cannot write too much.

    the lease of a process   ends when
      that lives             it gives it back, or its bills are in the ledger
      that died              its bills were written by recovery (its mark is gone) and are in the ledger
      of another folder      that gateway ends it; or it was not renewed for `forget_after_s`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from typing import Protocol as Interface

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Row,
    and_,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)

from gateway.budgets.purse import Ask, Standing
from gateway.budgets.spending import Reach, Spending, Unknown, passed
from gateway.control.schema import leases, next_version
from gateway.ledger.position import Position
from gateway.ledger.store import LedgerNewer, LedgerUnavailable
from gateway.ledger.upserting import insert_into
from otel.journal.files import Files
from otel.journal.segments import mark_path

T = TypeVar("T")

LOCK: Final = "leases"
ASKS_MAX: Final = 200
"""Purses of one transaction: others wait for it."""
INT64_MAX: Final = 2**63 - 1


class Database(Interface):
    """See `gateway.control.store.Control`."""

    def run(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        """Do some work in one transaction."""
        ...


class Owner(msgspec.Struct, frozen=True):
    """A process that holds leases, by the name of its writer."""

    gateway_id: int
    writer: str


class Leasing:
    """The leases of one process; all methods belong to one thread.

    Args:
        read: reads the ledger, in whichever thread it likes.
        writer: the name of this process's writer.
        workers: how many processes share this folder.
        forget_after_s: when leases of a gateway elsewhere are forgotten; None: never.
    """

    def __init__(
        self,
        control: Database,
        spending: Spending,
        directory: Path,
        writer: str,
        *,
        workers: int = 1,
        forget_after_s: int | None = None,
        files: Files | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._control = control
        self._spending = spending
        self._directory = directory
        self._writer = writer
        self._workers = workers
        self._forget_after_s = forget_after_s
        self._files = files or Files()
        self._now_ns = now_ns
        self._owed: dict[str, Reach] = {}

    def exchange(self, asks: Sequence[Ask]) -> list[Standing]:
        """Tell what is held, and take what is wanted as far as it is there.

        Raises:
            Unknown: nothing is granted; what was told may have been heard.
        """
        if len(asks) > ASKS_MAX:
            raise ValueError(f"at most {ASKS_MAX} at a time")
        me = Owner(self._spending.gateway_id, self._writer)
        try:
            return self._control.run(lambda c: self._exchanged(c, me, asks), writes=True)
        except (LedgerUnavailable, LedgerNewer) as fault:
            raise Unknown(f"the control database is away: {fault}") from fault

    def wanted(self) -> set[tuple[str, str]]:
        """Return the budgets and payers that another process lacks room of.

        Raises:
            Unknown: it cannot be known now.
        """
        me = Owner(self._spending.gateway_id, self._writer)
        mine = and_(leases.c.gateway_id == me.gateway_id, leases.c.writer == me.writer)
        found = select(leases.c.budget_id, leases.c.payer).where(leases.c.wanted_pico > 0, ~mine)
        try:
            return set(self._control.run(lambda c: c.execute(found).tuples().all()))
        except (LedgerUnavailable, LedgerNewer) as fault:
            raise Unknown(f"the control database is away: {fault}") from fault

    def sweep(self) -> None:
        """End leases of dead processes of this folder whose bills are all in the ledger.

        Raises:
            Unknown: it cannot be known now.
        """
        me = Owner(self._spending.gateway_id, self._writer)
        here = and_(leases.c.gateway_id == me.gateway_id, leases.c.writer != me.writer)
        found = select(leases.c.writer).where(here).distinct()
        try:
            writers = self._control.run(lambda c: set(c.execute(found).scalars()))
            if any(not self._marked(writer) for writer in writers):
                self._control.run(lambda c: self._swept(c, me, writers), writes=True)
        except (LedgerUnavailable, LedgerNewer) as fault:
            raise Unknown(f"the control database is away: {fault}") from fault

    def _swept(self, c: Connection, me: Owner, writers: set[str]) -> None:
        next_version(c, LOCK)
        self._end(c, me, self._gone(writers, self._spending.read(()).position))

    def _exchanged(self, c: Connection, me: Owner, asks: Sequence[Ask]) -> list[Standing]:
        next_version(c, LOCK)
        held = self._others(c, me, asks)
        accounts = [(ask.budget.scope, ask.payer, ask.period) for ask in asks]
        books = self._spending.read(accounts)
        seen = books.position.seen(me.writer)
        here = {row.writer for row in held if row.gateway_id == me.gateway_id}
        gone = self._gone(here, books.position)
        self._end(c, me, gone)
        standings = []
        for ask, account in zip(asks, accounts, strict=True):
            others = [
                row
                for row in held
                if (row.budget_id, row.payer) == (ask.budget.id, ask.payer)
                and not (row.gateway_id == me.gateway_id and row.writer in gone)
            ]
            standings.append(self._one(c, me, ask, others, books.spent_pico[account], seen))
        return standings

    def _end(self, c: Connection, me: Owner, gone: set[str]) -> None:
        if gone:
            own = leases.c.gateway_id == me.gateway_id
            c.execute(delete(leases).where(own, leases.c.writer.in_(sorted(gone))))

    def _one(
        self, c: Connection, me: Owner, ask: Ask, others: Sequence[Row[Any]], spent: int, seen: int
    ) -> Standing:
        projected = 0
        base = ask.base_pico
        for number, cost, _ in ask.bills:
            if number > seen:
                break
            projected += 1
            base -= cost
        taken = sum([row.lease_pico for row in others])
        left = ask.budget.limit_pico - spent - taken - base
        grant = _grant(ask, left, max(self._workers, 1 + len(others)))
        granted = grant if self._write(c, me, ask, base, grant, spent) else 0
        return Standing(
            period=ask.period,
            spent_pico=spent,
            granted_pico=granted,
            over_pico=max(0, -left),
            projected=projected,
            others_pico=taken,
            others_room_pico=sum([row.room_pico for row in others]),
            recovering=any(row.gateway_id == me.gateway_id and not self._alive(row.writer) for row in others),
            wanted_elsewhere=any(row.wanted_pico for row in others),
        )

    def _write(self, c: Connection, me: Owner, ask: Ask, base: int, grant: int, spent: int) -> bool:
        """Write an own lease: more than it is only where that fits; say whether the grant stands."""
        own = (
            leases.c.budget_id == ask.budget.id,
            leases.c.payer == ask.payer,
            leases.c.gateway_id == me.gateway_id,
            leases.c.writer == me.writer,
        )
        if ask.budget.mode == "warn" or not (base or grant or ask.wanted_pico):
            c.execute(delete(leases).where(*own))
            return False
        row = {
            "budget_id": ask.budget.id,
            "payer": ask.payer,
            "gateway_id": me.gateway_id,
            "writer": me.writer,
            "lease_pico": base,
            "room_pico": max(0, ask.room_pico),
            "wanted_pico": 0 if grant else min(ask.wanted_pico, INT64_MAX),
            "renewed_unix_ns": self._now_ns(),
        }
        keys = list(leases.primary_key.columns)
        values = {name: value for name, value in row.items() if name not in {key.name for key in keys}}
        c.execute(insert_into(c, leases).values(row).on_conflict_do_update(index_elements=keys, set_=values))
        if not grant:
            return False
        held = leases.alias("held")
        all_held = (
            select(func.coalesce(func.sum(held.c.lease_pico), 0))
            .where(held.c.budget_id == ask.budget.id, held.c.payer == ask.payer, *self._count(held))
            .scalar_subquery()
        )
        most = max(-1, min(ask.budget.limit_pico - spent - grant, INT64_MAX))
        done = c.execute(
            update(leases)
            .where(*own, all_held <= literal(most, BigInteger()))
            .values(lease_pico=base + grant, room_pico=max(0, ask.room_pico) + grant)
        )
        return done.rowcount == 1

    def _others(self, c: Connection, me: Owner, asks: Sequence[Ask]) -> Sequence[Row[Any]]:
        wanted = [
            and_(leases.c.budget_id == ask.budget.id, leases.c.payer == ask.payer)
            for ask in asks
            if ask.budget.mode == "refuse"
        ]
        if not wanted:
            return ()
        mine = and_(leases.c.gateway_id == me.gateway_id, leases.c.writer == me.writer)
        return c.execute(select(leases).where(or_(*wanted), ~mine, *self._count(leases))).all()

    def _count(self, table: FromClause) -> list[ColumnElement[bool]]:
        """Return the condition for leases that were not forgotten."""
        if self._forget_after_s is None:
            return []
        since = self._now_ns() - self._forget_after_s * 10**9
        here = self._spending.gateway_id
        return [or_(table.c.gateway_id == here, table.c.renewed_unix_ns >= since)]

    def _alive(self, writer: str) -> bool:
        return self._files.held(mark_path(self._directory, writer)) is not None

    def _marked(self, writer: str) -> bool:
        """Say whether a writer lives, or waits for its recovery."""
        return mark_path(self._directory, writer).exists()

    def _gone(self, writers: Iterable[str], position: Position) -> set[str]:
        """Return the writers of this folder all of whose bills were written and are in the ledger."""
        gone = set()
        for writer in writers:
            if self._marked(writer):
                continue
            reach = self._owed.get(writer)
            if reach is None:  # only now: all its bills are durable since its mark is gone
                reach = self._owed[writer] = self._spending.reach(position)
            if passed(position, reach):
                gone.add(writer)
                del self._owed[writer]
        return gone


def _grant(ask: Ask, left: int, sharing: int) -> int:
    """Return how much of what is left to take: what is wanted, and a share of the rest to need less often."""
    if not ask.wanted_pico or left < ask.least_pico:
        return 0
    needed = min(ask.wanted_pico, left)
    return needed + (left - needed) // sharing
