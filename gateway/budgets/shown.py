"""Shown: budgets as people and programs write and read them, and what is wrong with what they wrote."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from gateway.budgets.definitions import FOREVER, Budget, Mode, Scope, Span, checked, limit_of, zone_of
from gateway.budgets.overview import Standing
from gateway.core.money import pico_to_usd
from gateway.ledger.periods import SECOND_NS


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A budget as it is asked for.

    Args:
        payer: `*` for each of the scope apart.
        limit_usd: exact decimal.
    """

    id: str
    scope: Scope
    limit_usd: str
    period: Span
    payer: str = "*"
    time_zone: str = "UTC"
    mode: Mode = "refuse"

    def budget(self) -> Budget:
        """Return the budget.

        Raises:
            ValueError: what about it cannot be used.
        """
        return checked(
            Budget(
                id=self.id,
                scope=self.scope,
                payer=self.payer,
                limit_pico=limit_of(self.limit_usd),
                span=self.period,
                zone=self.time_zone,
                mode=self.mode,
            )
        )


class Changes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change about a budget; what is left out stays. Whose it is cannot change."""

    limit_usd: str | msgspec.UnsetType = msgspec.UNSET
    period: Span | msgspec.UnsetType = msgspec.UNSET
    time_zone: str | msgspec.UnsetType = msgspec.UNSET
    mode: Mode | msgspec.UnsetType = msgspec.UNSET

    def applied(self, budget: Budget) -> Budget:
        """Return the changed budget.

        Raises:
            ValueError: what about it cannot be used.
        """
        limit = budget.limit_pico if self.limit_usd is msgspec.UNSET else limit_of(self.limit_usd)
        return checked(
            msgspec.structs.replace(
                budget,
                limit_pico=limit,
                span=budget.span if self.period is msgspec.UNSET else self.period,
                zone=budget.zone if self.time_zone is msgspec.UNSET else self.time_zone,
                mode=budget.mode if self.mode is msgspec.UNSET else self.mode,
            )
        )


def shown(budget: Budget, *, configured: bool) -> dict[str, Any]:
    """Return a budget as it is defined."""
    return {
        "object": "budget",
        "id": budget.id,
        "scope": budget.scope,
        "payer": budget.payer,
        "limit_usd": pico_to_usd(budget.limit_pico),
        "period": budget.span,
        "time_zone": budget.zone,
        "mode": budget.mode,
        "source": "configuration" if configured else "stored",
    }


def amounts(standing: Standing) -> dict[str, Any]:
    """Return what stands of a budget and payer; amounts that are not known are null."""
    left, spent = standing.left_pico, standing.spent_pico
    endless = standing.period == FOREVER
    zone = zone_of(standing.budget.zone)

    def moment(at_unix_ns: int) -> str | None:
        when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=0 if endless else at_unix_ns // SECOND_NS)
        return None if endless else when.astimezone(zone).isoformat()

    return {
        "payer": standing.payer,
        "spent_usd": None if spent is None else pico_to_usd(spent),
        "reserved_usd": pico_to_usd(standing.reserved_pico),
        "left_usd": None if left is None else pico_to_usd(left),
        "period_start": moment(standing.period.start_ns),
        "period_end": moment(standing.period.end_ns),
    }
