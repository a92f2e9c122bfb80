"""Guard: no provider is called for a request that a budget has no room for.

What a request may cost at most is reserved in all its purses at once, or in none; the bill takes the
reservation's place. In the usual case the room is there, and nothing is awaited. Where it is not, the store
is asked, for at most WAIT_S: money of a process that died, or that lies idle with another one, comes back
within that time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

from gateway.admission.guards import NOTHING_HELD, Aim, Header, Hold
from gateway.budgets.keeper import Keeper
from gateway.budgets.purse import Purse
from gateway.budgets.refusals import exceeded, unknown, unpriced
from gateway.budgets.spending import Unknown
from gateway.core.exchange import Call, Exchange

WAIT_S: Final = 2.0
POLL_S: Final = 0.05
REFUSED_S: Final = 0.1
"""After a refusal no more is asked of the store for so long: who knocks often costs nothing."""

Policy = Literal["refuse", "admit"]
Reserve = Callable[[Call, Sequence[Aim]], int | None]


class Held:
    """A reservation; see `gateway.admission.guards.Hold`."""

    __slots__ = ("_amount_pico", "_guard", "_purses")

    headers: Sequence[Header] = ()

    def __init__(self, guard: BudgetGuard, purses: tuple[Purse, ...], amount_pico: int) -> None:
        self._guard = guard
        self._purses = purses
        self._amount_pico = amount_pico

    def settle(self, exchange: Exchange) -> None:
        """Put the bill in the place of the reservation; without a cost it takes nothing."""
        cost = 0 if exchange.charge is None else exchange.charge.cost_pico_usd
        self._guard.settle(self._purses, self._amount_pico, cost)

    def release(self) -> None:
        """Give all of it back."""
        for purse in self._purses:
            purse.release(self._amount_pico)


class BudgetGuard:
    """See the module.

    Args:
        reserve: the most that a request can cost, in pico-USD; None where that has no bound.
        number: the number of the newest record in the journal: at `settle`, the bill's.
        when_unknown: what happens to requests with a budget while what was spent cannot be known.
        when_unpriced: and to those whose cost has no bound.
    """

    def __init__(
        self,
        keeper: Keeper,
        reserve: Reserve,
        number: Callable[[], int],
        *,
        when_unknown: Policy = "refuse",
        when_unpriced: Policy = "refuse",
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._keeper = keeper
        self._reserve = reserve
        self._number = number
        self._when_unknown = when_unknown
        self._when_unpriced = when_unpriced
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._sleep = sleep

    async def admit(self, call: Call, aims: Sequence[Aim]) -> Hold:
        """Reserve what a request may cost; see `Guard.admit`."""
        purses = self._keeper.purses_of(call.identity)
        if not purses:
            return NOTHING_HELD
        amount = self._reserve(call, aims)
        if amount is None:
            if self._when_unpriced == "refuse" and any(purse.budget.mode == "refuse" for purse in purses):
                self._keeper.refused += 1
                raise unpriced()
            amount = 1  # a budget that is used up is, for this model too
        now = self._now_ns()
        if amount and _lacking(purses, amount, now):
            await self._wait_for_room(purses, amount)
            now = self._now_ns()
        for purse in purses:
            purse.reserve(amount, now)
        return Held(self, purses, amount)

    def settle(self, purses: tuple[Purse, ...], amount_pico: int, cost_pico: int) -> None:
        """Put a bill in the place of a reservation."""
        number, now = self._number(), self._now_ns()
        for purse in purses:
            purse.settle(amount_pico, cost_pico, number, now)
        if cost_pico > amount_pico:
            self._keeper.overdrawn_pico += cost_pico - amount_pico

    async def _wait_for_room(self, purses: tuple[Purse, ...], amount_pico: int) -> None:
        """Return when there is room in all; nothing is awaited between that and the return.

        Raises:
            SpanbillError: there will be none soon.
        """
        until = self._monotonic() + WAIT_S
        for purse in purses:
            purse.held += 1
        try:
            while lacking := _lacking(purses, amount_pico, self._now_ns()):  # ends after WAIT_S
                late = self._monotonic() >= until
                try:
                    await self._ask(lacking, amount_pico, late=late)
                except Unknown as fault:
                    if not late and self._monotonic() - self._keeper.fault_since < WAIT_S:
                        await self._sleep(POLL_S)
                        continue
                    if self._when_unknown == "admit":
                        return
                    self._keeper.refused += 1
                    raise unknown(str(fault)) from fault
        finally:
            for purse in purses:
                purse.held -= 1

    async def _ask(self, lacking: Sequence[Purse], amount_pico: int, *, late: bool) -> None:
        """Ask the store once, and wait a little where that may help."""
        self._refuse_again(lacking, amount_pico)
        for purse in lacking:
            purse.want(amount_pico)
        try:
            await self._keeper.more(lacking)
        finally:
            for purse in lacking:
                purse.want_no_more(amount_pico)
        short = _lacking(lacking, amount_pico, self._now_ns())
        if not short:
            return
        for purse in short:
            if late or not _may_come(purse, amount_pico):
                purse.refused_at = self._monotonic()
                purse.refused_pico = amount_pico
                self._refuse(purse, amount_pico)
        await self._sleep(POLL_S)

    def _refuse_again(self, lacking: Sequence[Purse], amount_pico: int) -> None:
        for purse in lacking:
            if amount_pico >= purse.refused_pico and self._monotonic() - purse.refused_at < REFUSED_S:
                self._refuse(purse, amount_pico)

    def _refuse(self, purse: Purse, amount_pico: int) -> None:
        self._keeper.refused += 1
        error = exceeded(purse, amount_pico, self._now_ns())
        if error.code == "budget_exceeded" and amount_pico <= purse.budget.limit_pico:
            purse.exhausted = purse.changed = True
        raise error


def _lacking(purses: Sequence[Purse], amount_pico: int, at_unix_ns: int) -> list[Purse]:
    return [
        purse for purse in purses if purse.budget.mode == "refuse" and not purse.fits(amount_pico, at_unix_ns)
    ]


def _may_come(purse: Purse, amount_pico: int) -> bool:
    """Say whether waiting can help: others have room to give back, or died and are being recovered."""
    standing = purse.standing
    if standing is None:
        return True
    settled = purse.settled_pico(standing.period)
    left = purse.budget.limit_pico - standing.spent_pico - settled - purse.open_pico
    if standing.recovering:
        return amount_pico <= left
    return amount_pico <= left - (standing.others_pico - standing.others_room_pico)
