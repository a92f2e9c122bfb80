"""Refusals: what a caller is told whom a budget keeps out, and when it may come again.

402   the request alone is above the limit, or the budget never begins anew
429   the period's money is spent: `Retry-After` is the period's end, and SDKs are told not to try again
429   what is left is reserved by requests under way: SDKs try again soon
503   what was spent cannot be known now
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from gateway.budgets.definitions import zone_of
from gateway.budgets.purse import Purse
from gateway.core.errors import CallerError, GatewayFault, SpanbillError
from gateway.core.money import pico_to_usd
from gateway.ledger.periods import SECOND_NS

SOON_S: Final = 1
NO_RETRY: Final = ((b"x-should-retry", b"false"),)
"""The official SDKs of OpenAI and Anthropic keep to it; on their own they try a 429 again."""


def exceeded(purse: Purse, amount_pico: int, at_unix_ns: int) -> SpanbillError:
    """Return the refusal of a request that a purse has no room for."""
    budget, standing = purse.budget, purse.standing
    spent = purse.settled_pico(budget.period_at(at_unix_ns))
    spent += 0 if standing is None else standing.spent_pico
    reserved = (0 if standing is None else standing.others_pico) + purse.open_pico
    what = (
        f"the budget {budget.id} of {budget.scope} {purse.payer}, {pico_to_usd(budget.limit_pico)} USD"
        f"{'' if budget.span == 'total' else ' a ' + budget.span}"
    )
    cost = f"this request may cost up to {pico_to_usd(amount_pico)} USD"
    sums = (
        f"{pico_to_usd(spent)} USD are spent, {pico_to_usd(reserved)} USD are reserved by requests under way"
    )
    if amount_pico > budget.limit_pico:
        return _final(
            "budget_exceeded", f"{what}, is too small: {cost}; ask for fewer tokens (max_tokens)", 402
        )
    if amount_pico <= budget.limit_pico - spent:
        return CallerError(
            "budget_in_use",
            f"{what}, has no room now: {sums}, and {cost}; try again soon, or ask for fewer tokens "
            "(max_tokens)",
            status=429,
            retry_after_s=SOON_S,
        )
    if budget.span == "total":
        return _final(
            "budget_exceeded", f"{what}, is used up: {sums}, and {cost}; ask its owner to raise it", 402
        )
    end_ns = budget.period_at(at_unix_ns).end_ns
    begins = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=end_ns // SECOND_NS)
    error = _final(
        "budget_exceeded",
        f"{what}, is used up: {sums}, and {cost}; it begins anew at "
        f"{begins.astimezone(zone_of(budget.zone)).isoformat()}",
        429,
    )
    error.retry_after_s = max(SOON_S, -(-(end_ns - at_unix_ns) // SECOND_NS))
    return error


def _final(code: str, message: str, status: int) -> SpanbillError:
    error = CallerError(code, message, status=status)
    error.headers = NO_RETRY
    return error


def unpriced() -> SpanbillError:
    """Return the refusal of a request whose cost nobody can bound."""
    return _final(
        "model_unpriced",
        "there is no rate for this model, so it cannot be held against the budget of this key; name another "
        "model, or ask the operator to add its price",
        402,
    )


def unknown(why: str) -> SpanbillError:
    """Return the refusal while what was spent cannot be known."""
    return GatewayFault(
        "budget_unknown",
        f"what was spent of this key's budget cannot be known now ({why}); try again soon",
        status=503,
        retry_after_s=SOON_S,
    )
