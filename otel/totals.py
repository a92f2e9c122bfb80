"""Totals: what bills of writers that are gone come to, so that counters go on where an earlier run ended.

A bill is counted by the process that wrote it, and once that is gone by whoever has its bills in a ledger:
the writers that the totals name are counted there and nowhere else. So no bill is counted twice or left out;
until the totals are there counts are too low, and they never fall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from otel.metrics import Metrics, State, without_bills


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted of writers that are gone.

    Args:
        writers: all of whose bills are in it, and nobody else's.
        bills: how many bills that is.
    """

    writers: frozenset[str]
    bills: int
    state: State


class WithTotals(Collector):
    """The metrics of a gateway that is one process, with what was counted before it.

    Args:
        writer: the name of its journal writer.
        totals: None while they are not known.
    """

    def __init__(self, metrics: Metrics, writer: str, totals: Callable[[], Totals | None]) -> None:
        self._metrics = metrics
        self._writer = writer
        self._totals = totals

    def whole(self) -> Metrics:
        """Return the sum of both, as it is now."""
        whole = Metrics()
        totals = self._totals()
        state = self._metrics.state()
        if totals is not None:
            whole.add(totals.state, gauges=False)
            if self._writer in totals.writers:  # it has ended, and its process is about to
                state = without_bills(state)
        whole.add(state, gauges=True)
        return whole

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        yield from self.whole().collect()
