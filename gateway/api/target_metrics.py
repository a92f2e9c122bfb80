"""Target metrics: in `/metrics`, how targets did over the window, as the process that answers saw it.

Of several workers each chooses by what it saw itself, and so each tells of that. Quantiles of several windows
cannot be added up; sums over time that can are in the counters of bills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.api.providers import Standings, busiest
from gateway.routing.rolling import Standing

FIGURES: Final[dict[str, tuple[str, Callable[[Standing], float | None]]]] = {
    "requests": ("Attempts in the window.", lambda one: one.requests),
    "failures": ("Attempts in the window that brought no answer.", lambda one: one.failures),
    "latency_p50_seconds": ("Of whole answers in the window.", lambda one: one.latency_p50_s),
    "latency_p95_seconds": ("Of whole answers in the window.", lambda one: one.latency_p95_s),
    "first_chunk_p50_seconds": ("Until a stream's first byte.", lambda one: one.first_chunk_p50_s),
    "tokens_per_second": ("Output, while answers were being made.", lambda one: one.tokens_per_s),
    "usd_per_million_tokens": ("Over bills that have a cost.", lambda one: one.usd_per_million),
}
"""Name behind `llm_gateway_target_`, text, and what is read; a figure that is not known has no series."""


class TargetCollector(Collector):
    """Gauges of the busiest targets, at most `SHOWN_MAX`.

    Args:
        standings: see `Chooser.standings`.
    """

    def __init__(self, standings: Callable[[], Standings]) -> None:
        self._standings = standings

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        labels = ["provider", "model"]
        found = busiest(self._standings())
        for name, (text, read) in FIGURES.items():
            family = GaugeMetricFamily(f"llm_gateway_target_{name}", text, labels=labels)
            for target, (standing, *_) in found:
                value = read(standing)
                if value is not None:
                    family.add_metric([target.provider, target.model], value)
            yield family
        cooling = GaugeMetricFamily(
            "llm_gateway_target_cooling", "1 while left alone, and while on probation.", labels=labels
        )
        for target, (_, state, *_) in found:
            cooling.add_metric([target.provider, target.model], state != "warm")
        yield cooling
