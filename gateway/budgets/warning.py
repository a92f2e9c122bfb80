"""Warning: a budget that passes 50, 80 or 100 % says so once, whoever sees it first.

The row of a warning is what makes it one: who adds it, logs it. It also holds what a webhook is told, and
when that is to be tried (again), so that a delivery outlives the process that began it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy import Connection

from gateway.budgets.definitions import Budget
from gateway.budgets.leasing import Database
from gateway.control.schema import warnings
from gateway.core.money import pico_to_usd
from gateway.ledger.periods import SECOND_NS, Period
from gateway.ledger.store import LedgerNewer, LedgerUnavailable
from gateway.ledger.upserting import upsert_for

log = logging.getLogger("spanbill.budgets")

PERCENTS: Final = (50, 80, 100)
TOLD_MAX: Final = 100_000
"""Remembered warnings; the memo starts over when it is full, and the database knows them all."""

Told = tuple[Budget, str, int, int]


class Warnings:
    """What one process warns of; all methods belong to one thread.

    Args:
        event_id: makes a new id, by which a webhook's receiver knows a warning again.
        webhook: there is one to be told.
    """

    def __init__(
        self,
        control: Database,
        *,
        event_id: Callable[[], str],
        webhook: bool,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._control = control
        self._event_id = event_id
        self._webhook = webhook
        self._now_ns = now_ns
        self._told: set[Told] = set()
        self.given = 0

    def look(
        self, budget: Budget, payer: str, period: Period, spent_pico: int, *, refused: bool = False
    ) -> None:
        """Warn of each threshold that is passed and was not told yet.

        Args:
            refused: a request was refused because the rest is too little: that is all of it, too.
        """
        for percent in PERCENTS:
            reached = spent_pico * 100 >= budget.limit_pico * percent
            told = (budget, payer, period.start_ns, percent)
            if told in self._told or not (reached or (refused and percent == PERCENTS[-1])):
                continue
            row = self._row(budget, payer, period, spent_pico, percent)
            try:
                new = self._control.run(lambda c, row=row: _added(c, row), writes=True)  # type: ignore[misc]  # bound
            except (LedgerUnavailable, LedgerNewer):
                return  # the next look finds it again
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told.add(told)
            if new:
                self.given += 1
                log.warning(
                    "a budget has passed a threshold",
                    extra=_facts(budget, payer, period, spent_pico, percent),
                )

    def _row(
        self, budget: Budget, payer: str, period: Period, spent_pico: int, percent: int
    ) -> dict[str, object]:
        now, event_id = self._now_ns(), self._event_id()
        facts = _facts(budget, payer, period, spent_pico, percent)
        body = {"id": event_id, "type": "budget.threshold", "at": _moment(now), **facts}
        return {
            "budget_id": budget.id,
            "payer": payer,
            "period_start_ns": period.start_ns,
            "percent": percent,
            "at_unix_ns": now,
            "event_id": event_id,
            "body": msgspec.json.encode(body).decode(),
            "tries": 0,
            "next_unix_ns": now if self._webhook else None,
        }


def _added(connection: Connection, row: dict[str, object]) -> bool:
    return connection.execute(upsert_for(connection, warnings, {}).values(row)).rowcount == 1


def _facts(budget: Budget, payer: str, period: Period, spent_pico: int, percent: int) -> dict[str, object]:
    endless = budget.span == "total"
    return {
        "budget": budget.id,
        "scope": budget.scope,
        "payer": payer,
        "percent": percent,
        "limit_usd": pico_to_usd(budget.limit_pico),
        "spent_usd": pico_to_usd(spent_pico),
        "mode": budget.mode,
        "period": budget.span,
        "period_start": None if endless else _moment(period.start_ns),
        "period_end": None if endless else _moment(period.end_ns),
    }


def _moment(at_unix_ns: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at_unix_ns // SECOND_NS)).isoformat()
