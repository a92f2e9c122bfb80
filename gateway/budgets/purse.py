"""Purse: the money that one process holds of one budget and payer; all arithmetic, no I/O.

    lease = room + open + unprojected          what the store has given this process, and counts as taken

      room          free for the next request
      open          reserved by requests that have no bill yet
      unprojected   billed, and not yet in the ledger

Only a grant makes the lease larger. A bill that has come into the ledger leaves it, because it is in
`spent` from then on: so at every moment spent + all leases <= limit, though nobody asks anybody for each
request. A bill above its reservation makes the room negative: the provider took more than the request could
be told to.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from gateway.budgets.definitions import Budget
from gateway.ledger.periods import Period

NOTHING: Final = Period(0, 0)
NEVER_PICO: Final = 2**63
"""More than any request: what was never refused."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a purse says of itself to the store, as it is at one moment.

    Args:
        base_pico: its lease.
        room_pico: what of it is free, which stays in it.
        wanted_pico: what it needs more, for requests that wait; 0 only to tell.
        least_pico: the smallest grant that helps one of them.
        bills: number and cost of the bills that are in the lease, and when they were settled, oldest first.
        exhausted: a request was refused because what is left is too little.
    """

    budget: Budget
    payer: str
    period: Period
    base_pico: int
    room_pico: int
    wanted_pico: int
    least_pico: int
    bills: tuple[tuple[int, int, int], ...]
    exhausted: bool


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the store answered.

    Args:
        spent_pico: in the ledger, in this period.
        granted_pico: what came to the lease.
        over_pico: by how much spent and leases are above the limit, because it was lowered, bills were above
            their reservations, or a bill is counted in both: what becomes free makes up for that first.
        projected: how many of the bills were in the ledger.
        others_pico: leases of other processes.
        others_room_pico: what they can give back of them.
        recovering: some of them are of processes that died, and will be free soon.
        wanted_elsewhere: another process lacks room.
    """

    period: Period
    spent_pico: int
    granted_pico: int
    over_pico: int
    projected: int
    others_pico: int
    others_room_pico: int
    recovering: bool
    wanted_elsewhere: bool


class Purse:
    """See the module; it belongs to one event loop.

    Attributes:
        standing: what the store answered last, None if never, or not of the budget as it is now.
        changed: the store does not know it as it is.
        held: requests that know it, open or waiting.
        exhausted: see `Ask`.
        refused_at, refused_pico: the last refusal, in monotonic seconds, and of how much.
    """

    __slots__ = (
        "at_ns",
        "bills",
        "budget",
        "changed",
        "exhausted",
        "held",
        "least_pico",
        "open_pico",
        "over_pico",
        "payer",
        "period",
        "refused_at",
        "refused_pico",
        "room_pico",
        "standing",
        "unprojected_pico",
        "wanted_pico",
    )

    def __init__(self, budget: Budget, payer: str) -> None:
        self.budget = budget
        self.payer = payer
        self.period = NOTHING
        self.room_pico = 0
        self.open_pico = 0
        self.unprojected_pico = 0
        self.wanted_pico = 0
        self.least_pico = 0
        self.bills: deque[tuple[int, int, int]] = deque()
        self.standing: Standing | None = None
        self.changed = True
        self.over_pico = 0
        self.exhausted = False
        self.held = 0
        self.refused_at = 0.0
        self.refused_pico = NEVER_PICO
        self.at_ns = 0

    @property
    def lease_pico(self) -> int:
        """What it holds in all."""
        return self.room_pico + self.open_pico + self.unprojected_pico

    def settled_pico(self, period: Period) -> int:
        """Return what of the bills that are not in the ledger belongs to a period."""
        return sum([cost for _, cost, at in self.bills if period.start_ns <= at < period.end_ns])

    def fits(self, amount_pico: int, at_unix_ns: int) -> bool:
        """Say whether a request may be let in without asking anybody."""
        period = self.period
        return (
            amount_pico <= self.room_pico - self.over_pico and period.start_ns <= at_unix_ns < period.end_ns
        )

    def reserve(self, amount_pico: int, at_unix_ns: int) -> None:
        """Take a request in; it `fits`, or the operator wants it in all the same."""
        self.room_pico -= amount_pico
        self.open_pico += amount_pico
        self.at_ns = at_unix_ns
        self.held += 1

    def release(self, amount_pico: int) -> None:
        """Take a reservation back: there is no bill."""
        self.open_pico -= amount_pico
        self.room_pico += amount_pico
        self.held -= 1
        self.changed = True

    def settle(self, amount_pico: int, cost_pico: int, number: int, at_unix_ns: int) -> None:
        """Put a bill in the place of its reservation.

        Args:
            number: of its record in the journal.
            at_unix_ns: when it was settled.
        """
        self.open_pico -= amount_pico
        self.room_pico += amount_pico - cost_pico
        self.held -= 1
        self.changed = True
        if cost_pico:
            self.unprojected_pico += cost_pico
            self.bills.append((number, cost_pico, at_unix_ns))

    def want(self, amount_pico: int) -> None:
        """Note a request that waits."""
        self.wanted_pico += amount_pico
        self.least_pico = min(self.least_pico or amount_pico, amount_pico)

    def want_no_more(self, amount_pico: int) -> None:
        """Note that it does not wait any more."""
        self.wanted_pico -= amount_pico
        self.changed = True  # the store believes that it does
        if not self.wanted_pico:
            self.least_pico = 0

    def give_up_room(self) -> None:
        """Let go of what is free; the store hears of it with the next `ask`."""
        self.room_pico = min(0, self.room_pico)
        self.changed = True

    def ask(self, at_unix_ns: int) -> Ask:
        """Return what to tell the store. A lease that bills have outgrown is taken for what they are."""
        period = self.budget.period_at(at_unix_ns)
        if period != self.period:  # what is free was granted with another period's spending in view
            self.room_pico = min(0, self.room_pico)
        self.room_pico -= min(max(0, self.room_pico), self.over_pico)
        self.room_pico = max(0, self.room_pico)
        self.changed = False
        exhausted, self.exhausted = self.exhausted, False
        return Ask(
            budget=self.budget,
            payer=self.payer,
            period=period,
            base_pico=self.lease_pico,
            room_pico=self.room_pico,
            wanted_pico=self.wanted_pico,
            least_pico=self.least_pico,
            bills=tuple(self.bills),
            exhausted=exhausted,
        )

    def hear(self, standing: Standing) -> None:
        """Take over what the store answered to the newest `ask`."""
        for _ in range(standing.projected):
            self.unprojected_pico -= self.bills.popleft()[1]
        self.room_pico += standing.granted_pico
        self.over_pico = standing.over_pico
        self.period = standing.period
        self.standing = standing
