"""Processes with one budget store, and a ledger and a journal that are models of themselves.

Guard, keeper, purses and leasing are the product's own, and so is the SQL; a process dies by being forgotten.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, create_engine, func, select
from sqlalchemy.pool import StaticPool

from gateway.budgets.definitions import Budget
from gateway.budgets.guard import BudgetGuard
from gateway.budgets.keeper import Keeper
from gateway.budgets.leasing import Database, Leasing
from gateway.budgets.spending import Account, Books, Spending, Unknown
from gateway.budgets.warning import Warnings
from gateway.control.migrations import CONTROL
from gateway.control.schema import leases
from gateway.core.exchange import Call, Exchange, Identity
from gateway.ledger.position import Position
from gateway.ledger.store import LedgerUnavailable
from otel.journal.files import Files

T = TypeVar("T")

USD = 10**12
DAY_NS = 86_400 * 10**9
START_NS = 1_790_000_000 * 10**9
GATEWAY = 7


class MemoryControl:
    """The control database in memory; it fails where it is told to."""

    def __init__(self) -> None:
        self._engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        with self._engine.begin() as connection:
            CONTROL.upgrade(connection)
        self.away = False
        self.lose_answer = False

    def run(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        if self.away:
            raise LedgerUnavailable("away")
        with self._engine.begin() as connection:
            done = work(connection)
        if self.lose_answer and writes:
            self.lose_answer = False
            raise LedgerUnavailable("the connection was lost in the commit")
        return done

    def close(self) -> None:
        self._engine.dispose()


@dataclass(frozen=True)
class Bill:
    writer: str
    number: int
    identity: Identity
    cost: int
    ended_ns: int


class Sums:
    """Sums of bills by account; each is added up when it is first asked for, and then kept."""

    def __init__(self) -> None:
        self.bills: list[Bill] = []
        self._known: dict[Account, int] = {}

    def add(self, bill: Bill) -> None:
        self.bills.append(bill)
        for account in self._known:
            self._known[account] += _part(account, bill)

    def of(self, account: Account) -> int:
        if account not in self._known:
            self._known[account] = sum(_part(account, bill) for bill in self.bills)
        return self._known[account]


def _part(account: Account, bill: Bill) -> int:
    scope, payer, period = account
    who = bill.identity
    owner = {"key": who.key_id, "user": who.user_id, "team": who.team, "project": who.project}[scope]
    return bill.cost if owner == payer and period.start_ns <= bill.ended_ns < period.end_ns else 0


@dataclass
class World:
    """What is outside of all processes."""

    folder: Path
    budgets: tuple[Budget, ...]
    control: Any = field(default_factory=MemoryControl)
    now_ns: int = START_NS
    journal: Sums = field(default_factory=Sums)
    ledger: Sums = field(default_factory=Sums)
    seen: dict[str, int] = field(default_factory=dict)
    highest: int = 0
    ledger_away: bool = False
    overdrawn: Sums = field(default_factory=Sums)
    alive: set[str] = field(default_factory=set)
    processes: list[Process] = field(default_factory=list)
    dead: list[Process] = field(default_factory=list)
    names: int = 0

    def __post_init__(self) -> None:
        (self.folder / "writers").mkdir(parents=True, exist_ok=True)

    def start(self, **policy: Any) -> Process:
        self.names += 1
        process = Process(self, f"b{self.names}-0", policy)
        self.processes.append(process)
        return process

    def project(self, count: int = 10**9) -> None:
        """Let the ledger take up some more of the journal."""
        for bill in self.journal.bills[self.projected : self.projected + count]:
            self.ledger.add(bill)
            self.seen[bill.writer] = max(self.seen.get(bill.writer, 0), bill.number)
        self.highest = max(self.highest, self.projected)

    @property
    def projected(self) -> int:
        return len(self.ledger.bills)

    def lose_ledger(self) -> None:
        self.ledger = Sums()
        self.seen = {}

    def recover(self, process: Process, by: Process, share: Callable[[], float]) -> None:
        """Write the bills that a dead process owes, by a living one, and forget it."""
        for who, amount in process.open.values():
            by.number += 1
            self.journal.add(Bill(by.name, by.number, who, int(amount * share()), self.now_ns))
        process.open.clear()
        self.dead.remove(process)
        (self.folder / "writers" / process.name).unlink()

    def spent(self, budget: Budget, payer: str) -> int:
        """Return what was billed in the period of now, in the ledger or not yet."""
        return self.journal.of((budget.scope, payer, budget.period_at(self.now_ns)))

    def reserved(self, budget: Budget, payer: str) -> int:
        return sum(
            amount
            for process in (*self.processes, *self.dead)
            for who, amount in process.open.values()
            if budget.payer_of(who) == payer
        )

    def check(self, who: Identity) -> None:
        """Hold every budget of somebody to its promise."""
        for budget in self.budgets:
            payer = budget.payer_of(who)
            if budget.mode == "refuse" and payer is not None:
                taken = self.spent(budget, payer) + self.reserved(budget, payer)
                over = self.overdrawn.of((budget.scope, payer, budget.period_at(self.now_ns)))
                assert taken <= budget.limit_pico + over, (budget.id, payer, taken)

    def leased(self) -> int:
        total = select(func.coalesce(func.sum(leases.c.lease_pico), 0))
        return int(self.control.run(lambda c: c.execute(total).scalar_one()))

    def lease_rows(self) -> int:
        rows = select(func.count()).select_from(leases)
        return int(self.control.run(lambda c: c.execute(rows).scalar_one()))


class ModelSpending:
    """`Spending` of a modelled ledger."""

    gateway_id = GATEWAY

    def __init__(self, world: World) -> None:
        self._world = world

    def read(self, accounts: Sequence[Account]) -> Books:
        world = self._world
        if world.ledger_away:
            raise Unknown("away")
        if world.projected < world.highest:
            raise Unknown("behind")
        spent = {account: world.ledger.of(account) for account in accounts}
        return Books(spent_pico=spent, position=Position({"all": world.projected}, world.seen))

    def reach(self, _: Position) -> dict[str, int]:
        return {"all": len(self._world.journal.bills)}

    def close(self) -> None:
        pass


class ModelFiles:
    """Knows which marks are locked by a living process."""

    def __init__(self, world: World) -> None:
        self._world = world

    def held(self, path: Path) -> int | None:
        return 1 if path.name in self._world.alive else None


class Process:
    """One worker: the product's guard and keeper."""

    def __init__(self, world: World, name: str, policy: dict[str, Any]) -> None:
        self.world = world
        self.name = name
        self.number = 0
        self.amount: int | None = 0
        self.open: dict[int, tuple[Identity, int]] = {}
        self.holds: dict[int, Any] = {}
        self.count = 0
        self.slept_s = 0.0
        self.on_sleep: Callable[[], Awaitable[None]] | None = None
        world.alive.add(name)
        (world.folder / "writers" / name).touch()
        spending = cast(Spending, ModelSpending(world))
        control = cast(Database, world.control)
        leasing = Leasing(
            control,
            spending,
            world.folder,
            name,
            workers=policy.pop("workers", 1),
            forget_after_s=policy.pop("forget_after_s", None),
            files=cast(Files, ModelFiles(world)),
            now_ns=lambda: world.now_ns,
        )
        self.warnings = Warnings(
            control, event_id=lambda: random.randbytes(8).hex(), webhook=True, now_ns=lambda: world.now_ns
        )
        self.keeper = Keeper(
            control,
            leasing,
            spending,
            self.warnings,
            world.budgets,
            memo=policy.pop("memo", None),
            now_ns=lambda: world.now_ns,
            monotonic=self._monotonic,
        )
        self.guard = BudgetGuard(
            self.keeper,
            lambda call, aims: self.amount,
            lambda: self.number,
            now_ns=lambda: world.now_ns,
            monotonic=self._monotonic,
            sleep=self._sleep,
            **policy,
        )

    def _monotonic(self) -> float:
        return self.world.now_ns / 1e9 + self.slept_s

    async def _sleep(self, seconds: float) -> None:
        self.slept_s += seconds * 10  # fewer turns
        if self.on_sleep is not None:
            await self.on_sleep()
        await asyncio.sleep(0)

    async def begin(self, who: Identity, amount: int | None) -> int:
        """Admit one request; return its number.

        Raises:
            SpanbillError: it was refused.
        """
        self.amount = amount
        hold = await self.guard.admit(cast(Call, _Asked(who)), ())
        self.count += 1
        self.holds[self.count] = hold
        self.open[self.count] = (who, amount or 0)
        return self.count

    def end(self, request: int, cost: int | None) -> None:
        """Settle a request with a bill, or release it without one (None)."""
        who, amount = self.open.pop(request)
        hold = self.holds.pop(request)
        if cost is None:
            hold.release()
            return
        self.number += 2
        now = self.world.now_ns
        self.world.journal.add(Bill(self.name, self.number, who, cost, now))
        if cost > amount:
            self.world.overdrawn.add(Bill(self.name, self.number, who, cost - amount, now))
        hold.settle(cast(Exchange, _Settled(_Charged(cost))))

    def die(self) -> None:
        """End without a word."""
        self.world.alive.remove(self.name)
        self.world.processes.remove(self)
        self.world.dead.append(self)
        self.keeper._thread.shutdown()

    async def stop(self) -> None:
        """End in order."""
        await self.keeper.stop()
        self.world.alive.remove(self.name)
        self.world.processes.remove(self)
        self.world.dead.append(self)


@dataclass(frozen=True)
class _Asked:
    identity: Identity


@dataclass(frozen=True)
class _Charged:
    cost_pico_usd: int


@dataclass(frozen=True)
class _Settled:
    charge: _Charged


def identity(user: str = "alice", *, key: str | None = None, team: str | None = None) -> Identity:
    return Identity(key_id=key or f"key-{user}", user_id=user, source="key", team=team)
