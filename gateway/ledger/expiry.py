"""Expiry: rows of old bills go, and the roll-ups keep their sums, so that every day still says what it cost.

A gateway's horizon is the beginning of a UTC day: before it there are roll-ups and no rows, from it on there
are both. It is written down before the first row goes, and only ever moves on; whoever sums rows (`verify`,
a day that begins within an hour, a revision) asks for it first. Rows go in small steps, and only while the
ledger has all of the journal: a bill that stands there twice must find its row, or it would count twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from sqlalchemy import Connection, delete, func, select

from gateway.ledger import schema
from gateway.ledger.feed import trim
from gateway.ledger.projection import Row
from gateway.ledger.schema import DAY_NS
from gateway.ledger.store import Store
from gateway.ledger.upserting import upsert_for

ROWS_A_STEP: Final = 200
"""Bills that go in one transaction: some milliseconds."""
_COLUMN: Final = {name: at for at, name in enumerate(schema.bills.c.keys())}
_ENDED: Final = _COLUMN["ended_unix_ns"]
_GATEWAY: Final = _COLUMN["gateway_id"]


class Expiry:
    """Lets old rows of one gateway go.

    Args:
        days: bills of the last so many days besides today are kept as rows.
        now_ns: wall clock in Unix nanoseconds.
    """

    def __init__(self, days: int, now_ns: Callable[[], int]) -> None:
        self.expired = 0
        self._days = days
        self._now_ns = now_ns
        self._done: tuple[object, int] | None = None

    def step(self, store: Store, gateway_id: int, opened: object) -> bool:
        """Let some rows go, of a ledger that has all of the journal; say whether there may be more.

        Args:
            opened: another object whenever the ledger may be another one.

        Raises:
            LedgerUnavailable, LedgerBroken: nothing was changed in this step.
        """
        before_ns = max(0, (self._now_ns() // DAY_NS - self._days) * DAY_NS)
        if self._done is not None and self._done[0] is opened and self._done[1] == before_ns:
            return False  # it is asked five times a second, and a day comes once a day
        gone = store.run(lambda c: expire(c, gateway_id, before_ns, ROWS_A_STEP), writes=True)
        self.expired += gone
        if gone < ROWS_A_STEP:
            self._done = (opened, before_ns)
            return False
        return True


def expire(connection: Connection, gateway_id: int, before_ns: int, count_max: int) -> int:
    """Move a gateway's horizon on to `before_ns`, and let at most `count_max` bills go; return how many."""
    bills = schema.bills
    horizon_ns = horizon_of(connection, gateway_id)
    old = (bills.c.gateway_id == gateway_id, bills.c.ended_unix_ns < max(horizon_ns, before_ns))
    chosen = select(bills.c.record_id).where(*old).distinct().limit(count_max)
    ids = list(connection.execute(chosen).scalars())
    if not ids:
        return 0
    if before_ns > horizon_ns:
        row = {"gateway_id": gateway_id, "before_unix_ns": before_ns}
        connection.execute(upsert_for(connection, schema.horizons, {"before_unix_ns": before_ns}), [row])
    connection.execute(delete(bills).where(bills.c.record_id.in_(ids)))
    trim(connection, gateway_id, 2 * count_max)
    return len(ids)


def horizon_of(connection: Connection, gateway_id: int | None = None) -> int:
    """Return since when there are rows of a gateway, or of all, in Unix nanoseconds; 0 if none ever went."""
    horizons = schema.horizons
    chosen = select(func.max(horizons.c.before_unix_ns))
    if gateway_id is not None:
        chosen = chosen.where(horizons.c.gateway_id == gateway_id)
    return int(connection.execute(chosen).scalar() or 0)


def with_rows(connection: Connection, bills: Iterable[Row]) -> list[Row]:
    """Return those of some bills whose sums can be made again from rows: none from before the horizon."""
    found: list[Any] = list(bills)
    horizons = {gateway_id: horizon_of(connection, gateway_id) for gateway_id in {b[_GATEWAY] for b in found}}
    return [bill for bill in found if bill[_ENDED] >= horizons[bill[_GATEWAY]]]
