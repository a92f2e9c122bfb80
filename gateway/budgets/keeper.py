"""Keeper: the purses of one process, and the one thread in which they are exchanged with the store.

    requests ──want──▶ purses ──ask──▶ thread: one transaction ──standing──▶ purses ──▶ requests go on
                                   ▲
    tend, every TEND_S ────────────┘  tells what was billed, gives back what is idle or wanted elsewhere

Requests that lack room at the same time wait for one and the same exchange. Purses are touched in the event
loop only; the thread gets values and returns values.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from gateway.budgets.definitions import EACH, Budget
from gateway.budgets.leasing import ASKS_MAX, Database, Leasing
from gateway.budgets.purse import NEVER_PICO, NOTHING, Ask, Purse, Standing
from gateway.budgets.spending import Spending, Unknown
from gateway.budgets.stored import Memo, Version, read_all
from gateway.budgets.warning import Warnings
from gateway.core.exchange import Identity
from gateway.ledger.store import LedgerNewer, LedgerUnavailable

log = logging.getLogger("spanbill.budgets")

TEND_S: Final = 0.25
IDLE_S: Final = 5.0
"""A lease that nobody used for so long is given back."""
HEARTBEAT_S: Final = 60.0
"""How often a lease is told again, so that it is not forgotten."""
SWEEP_S: Final = 1.0
"""How often leases of dead processes are looked for."""
FAULT_LOG_S: Final = 60.0
START_S: Final = 2.0
"""How long a start waits for the stored budgets; until they are read, those that were known last hold."""
PAYERS_MAX: Final = 100_000
"""Remembered identities; they come from keys, and the memo starts over when it is full."""


class Keeper:
    """See the module.

    Args:
        configured: budgets of the configuration, which go before stored ones of the same id.
        memo: where stored ones are remembered for a start without the database.
        warnings: told of each standing, in the thread.
    """

    def __init__(
        self,
        control: Database,
        leasing: Leasing,
        spending: Spending,
        warnings: Warnings,
        configured: Sequence[Budget],
        *,
        memo: Memo | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._leasing = leasing
        self._spending = spending
        self._warnings = warnings
        self._configured = tuple(configured)
        self._memo = memo
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._thread = ThreadPoolExecutor(1, "budgets")
        self._version: int | None = None
        self._stored: tuple[Budget, ...] = ()
        self._budgets: tuple[Budget, ...] = ()
        self._by_payer: dict[tuple[str, str], list[Budget]] = {}
        self._purses: dict[tuple[str, str], Purse] = {}
        self._known: dict[tuple[str, str, str | None, str | None], tuple[Purse, ...]] = {}
        self._take(() if memo is None else memo.recall())
        self._turn = asyncio.Lock()
        self._begun = asyncio.Event()
        self._next: asyncio.Task[None] | None = None
        self._told_at: dict[tuple[str, str], float] = {}
        self._task: asyncio.Task[None] | None = None
        self._logged_at = -FAULT_LOG_S
        self._swept_at = -SWEEP_S
        self.fault: str | None = None
        self.fault_since = 0.0
        self.refused = 0
        self.overdrawn_pico = 0

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """All budgets in force, by id."""
        return self._budgets

    @property
    def warnings_given(self) -> int:
        """How many warnings this process was the first to give."""
        return self._warnings.given

    @property
    def still(self) -> asyncio.Lock:
        """Held while purses may be changed by nobody else."""
        return self._turn

    def configure(self, configured: Sequence[Budget]) -> None:
        """Put other budgets in the place of those of the configuration; the caller holds `still`."""
        self._configured = tuple(configured)
        self._take(self._stored)

    def purses_of(self, identity: Identity) -> tuple[Purse, ...]:
        """Return the purses that a request of an identity is held against, always in the same order."""
        key = (identity.key_id, identity.user_id, identity.team, identity.project)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= PAYERS_MAX:
                self._known.clear()
            found = self._known[key] = tuple(self._made(identity))
        return found

    def _made(self, identity: Identity) -> Iterable[Purse]:
        if not self._by_payer:
            return
        budgets = {
            budget.id: (budget, payer)
            for scope in ("key", "user", "team", "project")
            for name in (identity.key_id, identity.user_id, identity.team, identity.project, EACH)
            if name is not None
            for budget in self._by_payer.get((scope, name), ())
            if (payer := budget.payer_of(identity)) is not None
        }
        for _, (budget, payer) in sorted(budgets.items()):
            yield self._purses.setdefault((budget.id, payer), Purse(budget, payer))

    def _index(self) -> None:
        self._by_payer = {}
        for budget in self._budgets:
            self._by_payer.setdefault((budget.scope, budget.payer), []).append(budget)

    async def more(self, purses: Sequence[Purse]) -> None:
        """Ask the store for what these purses want, together with all others that want something.

        Raises:
            Unknown: nothing came of it.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._round())
        await asyncio.shield(self._next)
        if self.fault is not None and any(purse.wanted_pico for purse in purses):
            raise Unknown(self.fault)

    async def _round(self) -> None:
        async with self._turn:
            self._next = None  # whoever comes from here on waits for the next one
            wanting = [purse for purse in self._purses.values() if purse.wanted_pico]
            await self._exchange(wanting[:ASKS_MAX])

    async def _exchange(self, purses: Sequence[Purse]) -> None:
        """Exchange some purses with the store; the caller has the turn."""
        if not purses:
            return
        now = self._now_ns()
        asks = [purse.ask(now) for purse in purses]
        loop = asyncio.get_running_loop()
        try:
            standings = await loop.run_in_executor(self._thread, self._leasing.exchange, asks)
        except Unknown as fault:
            for purse in purses:
                purse.changed = True
            self._failed(str(fault))
            return
        self._went_well()
        at = self._monotonic()
        for purse, standing in zip(purses, standings, strict=True):
            purse.hear(standing)
            self._told_at[purse.budget.id, purse.payer] = at
        await loop.run_in_executor(self._thread, self._warn, asks, standings)

    def _warn(self, asks: Sequence[Ask], standings: Sequence[Standing]) -> None:
        for ask, standing in zip(asks, standings, strict=True):
            bills = ask.bills[standing.projected :]
            period = standing.period
            settled = sum([cost for _, cost, at in bills if period.start_ns <= at < period.end_ns])
            spent = standing.spent_pico + settled
            self._warnings.look(ask.budget, ask.payer, period, spent, refused=ask.exhausted)

    def _failed(self, why: str) -> None:
        at = self._monotonic()
        if self.fault is None:
            self.fault_since = at
        self.fault = why
        if at - self._logged_at >= FAULT_LOG_S:
            self._logged_at = at
            log.warning("what was spent of budgets cannot be known now", extra={"why": why})

    def _went_well(self) -> None:
        if self.fault is not None:
            log.info("what was spent of budgets is known again")
        self.fault = None

    # beside requests

    async def start(self) -> None:
        """Begin to tend; return when the stored budgets are known, or after START_S."""
        self._task = asyncio.create_task(self._tend())
        self._task.add_done_callback(_ended)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), START_S)

    async def stop(self) -> None:
        """Give back what is free, and stop; bills that are not in the ledger stay in the lease."""
        if self._task is not None:
            self._task.cancel()
        async with self._turn:
            for purse in self._purses.values():
                purse.give_up_room()
            holding = [purse for purse in self._purses.values() if purse.standing is not None]
            for at in range(0, len(holding), ASKS_MAX):
                await self._exchange(holding[at : at + ASKS_MAX])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        self._spending.close()

    async def _tend(self) -> None:
        while True:  # ends with the gateway
            await self.tend()
            self._begun.set()
            await asyncio.sleep(TEND_S)

    async def tend(self) -> None:
        """Look for changed budgets, tell the store what changed here, and give back what is not needed."""
        async with self._turn:
            await self._refresh()
            await self._sweep()
            await self._give_back()
            due = self._due()
            for at in range(0, len(due), ASKS_MAX):
                await self._exchange(due[at : at + ASKS_MAX])
            self._drop_empty()

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, self._read, self._version)
        except (LedgerUnavailable, LedgerNewer) as fault:
            if self._budgets:
                self._failed(f"the control database is away: {fault}")
            return
        if found is not None:
            self._version = found.number
            self._take(found.budgets)

    def _read(self, known: int | None) -> Version | None:
        found = self._control.run(lambda c: read_all(c, known))
        if found is not None and self._memo is not None:
            self._memo.remember(found.budgets)
        return found

    def _take(self, budgets: Sequence[Budget]) -> None:
        """Take over changed budgets; a purse of a changed one must ask before it lets anybody in."""
        self._stored = tuple(budgets)
        own = {budget.id for budget in self._configured}
        stored = [budget for budget in budgets if budget.id not in own]
        self._budgets = tuple(sorted([*self._configured, *stored], key=lambda budget: budget.id))
        self._index()
        self._known.clear()
        by_id = {budget.id: budget for budget in self._budgets}
        for purse in self._purses.values():
            budget = by_id.get(purse.budget.id)
            if budget != purse.budget:
                purse.give_up_room()
                purse.period = NOTHING
                purse.standing = None
                purse.refused_pico = NEVER_PICO
            if budget is not None:
                purse.budget = budget

    async def _sweep(self) -> None:
        at = self._monotonic()
        if self._budgets and at - self._swept_at >= SWEEP_S:
            self._swept_at = at
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._leasing.sweep)
            except Unknown as fault:
                self._failed(str(fault))

    async def _give_back(self) -> None:
        holding = [purse for purse in self._purses.values() if purse.room_pico > 0]
        if not holding:
            return
        loop = asyncio.get_running_loop()
        try:
            wanted = await loop.run_in_executor(self._thread, self._leasing.wanted)
        except Unknown:
            wanted = set()
        idle_since = self._now_ns() - round(IDLE_S * 1e9)
        for purse in holding:
            if (purse.budget.id, purse.payer) in wanted or purse.at_ns < idle_since:
                purse.give_up_room()

    def _due(self) -> list[Purse]:
        late = self._monotonic() - HEARTBEAT_S
        return [
            purse
            for key, purse in self._purses.items()
            if purse.changed or purse.bills or (purse.lease_pico and self._told_at.get(key, late) <= late)
        ]

    def _drop_empty(self) -> None:
        """Forget purses that hold nothing and that no request knows."""
        empty = [
            key
            for key, purse in self._purses.items()
            if not (purse.lease_pico or purse.held or purse.changed)
            and purse.at_ns < self._now_ns() - round(IDLE_S * 1e9)
        ]
        if empty:
            self._known.clear()
        for key in empty:
            del self._purses[key]
            self._told_at.pop(key, None)


def _ended(task: asyncio.Task[None]) -> None:
    """Say that nobody tends any more: until a restart leases are not given back, nor changes heard of."""
    if not task.cancelled() and (fault := task.exception()) is not None:
        log.error("budgets are not tended any more; restart this gateway", exc_info=fault)
