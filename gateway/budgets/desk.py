"""Desk: budgets as the doors and the commands handle them; what cannot be done is said as to a caller.

Budgets of the configuration are shown with the others, and are changed where they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time_ns
from typing import Any, TypeVar

from sqlalchemy import Connection

from gateway.budgets import stored
from gateway.budgets.definitions import EACH, Budget
from gateway.budgets.leasing import Database
from gateway.budgets.overview import Overview
from gateway.budgets.shown import Changes, Fields, amounts, shown
from gateway.core.errors import CallerError, GatewayFault
from gateway.core.exchange import Identity
from gateway.ledger.store import LedgerNewer, LedgerUnavailable

T = TypeVar("T")


class Desk:
    """See the module; its methods wait for databases, and none may be called in an event loop's thread.

    Args:
        configured: those of the configuration.
    """

    def __init__(self, control: Database, overview: Overview, configured: Sequence[Budget]) -> None:
        self._control = control
        self._overview = overview
        self.configure(configured)

    def configure(self, configured: Sequence[Budget]) -> None:
        """Put other budgets in the place of those of the configuration."""
        self._configured = {budget.id: budget for budget in configured}

    def listed(
        self, wanted: Callable[[Budget], bool], after: str | None, count: int
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return a page of budgets in the order of their ids, and whether there are more."""
        version = self._run(stored.read_all)
        assert version is not None  # nothing is known before it
        all_of = {**{budget.id: budget for budget in version.budgets}, **self._configured}
        chosen = [all_of[name] for name in sorted(all_of) if (after is None or name > after)]
        chosen = [budget for budget in chosen if wanted(budget)]
        return self._described(chosen[:count]), len(chosen) > count

    def get(self, budget_id: str, identity: Identity | None = None) -> dict[str, Any]:
        """Return one budget; with the payers of one for each apart, or only with the one that asks."""
        budget = self._known(budget_id)
        if identity is not None and budget.payer_of(identity) is None:
            raise _absent(budget_id)
        (found,) = self._described([budget])
        if budget.payer == EACH:
            payers = self._asked(lambda: self._overview.payers_of(budget))
            own = None if identity is None else budget.payer_of(identity)
            found["payers"] = [amounts(one) for one in payers if own in (None, one.payer)]
        return found

    def create(self, fields: Fields, who: str) -> dict[str, Any]:
        """Make a budget."""
        try:
            budget = fields.budget()
            if budget.id in self._configured:
                raise stored.AlreadyThere(f"there is a budget {budget.id} in the configuration")
            self._run(lambda c: stored.create(c, budget, who, time_ns()), writes=True)
        except stored.AlreadyThere as fault:
            raise CallerError("budget_exists", str(fault), status=409, param="id") from fault
        except ValueError as fault:
            raise invalid(str(fault)) from fault
        return self._described([budget])[0]

    def change(self, budget_id: str, changes: Changes, who: str) -> dict[str, Any]:
        """Change a budget."""
        self._not_configured(budget_id)

        def work(c: Connection) -> Budget | None:
            before = stored.read_one(c, budget_id)
            if before is None:
                return None
            after = changes.applied(before)
            stored.change(c, after, who, time_ns())
            return after

        try:
            budget = self._run(work, writes=True)
        except ValueError as fault:
            raise invalid(str(fault)) from fault
        if budget is None:
            raise _absent(budget_id)
        return self._described([budget])[0]

    def remove(self, budget_id: str, who: str) -> None:
        """Delete a budget."""
        self._not_configured(budget_id)
        if not self._run(lambda c: stored.remove(c, budget_id, who, time_ns()), writes=True):
            raise _absent(budget_id)

    def _known(self, budget_id: str) -> Budget:
        found = self._configured.get(budget_id) or self._run(lambda c: stored.read_one(c, budget_id))
        if found is None:
            raise _absent(budget_id)
        return found

    def _not_configured(self, budget_id: str) -> None:
        if budget_id in self._configured:
            raise CallerError(
                "budget_configured", "this budget stands in the configuration; change it there", status=409
            )

    def _described(self, budgets: Sequence[Budget]) -> list[dict[str, Any]]:
        standings = {s.budget.id: amounts(s) for s in self._asked(lambda: self._overview.of(budgets))}
        return [
            {**shown(budget, configured=budget.id in self._configured), **standings.get(budget.id, {})}
            for budget in budgets
        ]

    def _run(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        return self._asked(lambda: self._control.run(work, writes=writes))

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except (LedgerUnavailable, LedgerNewer) as fault:
            raise GatewayFault(
                "control_unavailable",
                f"the control database does not answer now ({fault}); try again soon",
                status=503,
                retry_after_s=1,
            ) from fault


def invalid(why: str) -> CallerError:
    """Return the refusal of a budget that cannot be used."""
    return CallerError("invalid_budget", f"this budget cannot be used: {why}", status=400)


def _absent(budget_id: str) -> CallerError:
    return CallerError("budget_not_found", f"there is no budget {budget_id[:64]!r}", status=404)
