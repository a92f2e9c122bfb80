"""Overview: what stands of each budget now, for people, the API and the metrics; it decides nothing.

`reserved` is what processes hold for requests under way and for bills that are not in the ledger yet; what
they hold free is `left`, as if it had been given back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, func, select

from gateway.budgets.definitions import EACH, Budget
from gateway.budgets.leasing import Database
from gateway.budgets.spending import Spending, Unknown
from gateway.control.schema import leases
from gateway.ledger.periods import Period

PAYERS_MAX: Final = 1_000
"""Payers of a budget for each one that are listed: those with the most reserved or spent."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One budget and payer.

    Args:
        spent_pico: None while that cannot be known.
    """

    budget: Budget
    payer: str
    period: Period
    spent_pico: int | None
    reserved_pico: int

    @property
    def left_pico(self) -> int | None:
        """What is neither spent nor reserved; not below zero."""
        if self.spent_pico is None:
            return None
        return max(0, self.budget.limit_pico - self.spent_pico - self.reserved_pico)


class Overview:
    """Asks both databases; from any thread without an event loop, one at a time."""

    def __init__(
        self, control: Database, spending: Spending, *, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._control = control
        self._spending = spending
        self._now_ns = now_ns
        self._busy = threading.Lock()

    def of(self, budgets: Sequence[Budget]) -> list[Standing]:
        """Return what stands of budgets for one payer each, in their order; others are left out.

        Raises:
            LedgerUnavailable, LedgerNewer: the control database cannot be read.
        """
        single = [budget for budget in budgets if budget.payer != EACH]
        return self._standings([(budget, budget.payer) for budget in single])

    def payers_of(self, budget: Budget) -> list[Standing]:
        """Return what stands of a budget for each of its payers that has spent or reserved something.

        Raises:
            LedgerUnavailable, LedgerNewer: the control database cannot be read.
        """
        if budget.payer != EACH:
            return self.of([budget])
        period = budget.period_at(self._now_ns())
        with self._busy:
            try:
                found = self._spending.payers(budget.scope, period)
            except Unknown:
                found = {}
        reserved = self._control.run(_reserved)
        payers = set(found) | {payer for budget_id, payer in reserved if budget_id == budget.id}
        most = sorted(
            payers, key=lambda payer: (-found.get(payer, 0) - reserved.get((budget.id, payer), 0), payer)
        )
        return self._standings([(budget, payer) for payer in most[:PAYERS_MAX]])

    def _standings(self, wanted: Sequence[tuple[Budget, str]]) -> list[Standing]:
        if not wanted:
            return []
        now = self._now_ns()
        reserved = self._control.run(_reserved)
        accounts = [(budget.scope, payer, budget.period_at(now)) for budget, payer in wanted]
        with self._busy:
            try:
                spent = self._spending.read(accounts).spent_pico
            except Unknown:
                spent = {}
        return [
            Standing(
                budget=budget,
                payer=payer,
                period=account[2],
                spent_pico=spent.get(account),
                reserved_pico=reserved.get((budget.id, payer), 0),
            )
            for (budget, payer), account in zip(wanted, accounts, strict=True)
        ]

    def close(self) -> None:
        """Let go of the ledger."""
        with self._busy:
            self._spending.close()


def _reserved(connection: Connection) -> dict[tuple[str, str], int]:
    held = select(leases.c.budget_id, leases.c.payer, func.sum(leases.c.lease_pico - leases.c.room_pico))
    rows = connection.execute(held.group_by(leases.c.budget_id, leases.c.payer))
    return {(budget_id, payer): int(total) for budget_id, payer, total in rows}
