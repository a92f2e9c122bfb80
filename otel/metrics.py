"""Metrics: what `/metrics` says, as folds of the bills; exact, bounded, and cheap to add to.

Money is kept in integers of 10^-12 USD and becomes a float only on the page, so no sum drifts. Labels are
bounded: keys, providers and models come from the configuration and the catalogue; a name beyond
`SERIES_MAX` per metric is counted under `other`, so a caller cannot create series at will.

A `State` is all of it as values: states of several processes add up exactly (`otel.shared_metrics`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from otel.observation import (
    FIRST_CHUNK_BUCKETS_S,
    LATENCY_BUCKETS_S,
    TO,
    Observation,
    Tally,
    TallyLabels,
    fallbacks_of,
)

SERIES_MAX: Final = 20_000
"""Label sets per metric; one more is counted under `other`."""
MODELS_MAX: Final = 2_000
PICO_PER_USD: Final = 10**12
OTHER: Final = "other"

Labels = tuple[str, ...]


class Histogram:
    """Counts per bucket and an exact sum, in nanoseconds."""

    __slots__ = ("bounds_ns", "counts", "sum_ns")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_ns = [round(bound * 1e9) for bound in bounds_s]
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_ns = 0

    def observe(self, value_ns: int) -> None:
        """Count one value; a value on a bound belongs to the bucket that the bound closes."""
        self.counts[bisect_left(self.bounds_ns, value_ns)] += 1
        self.sum_ns += value_ns

    def cumulative(self) -> list[tuple[str, float]]:
        """Return `(le, count)` pairs as Prometheus wants them."""
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip([*self.bounds_ns, None], self.counts, strict=True):
            total += count
            rows.append(("+Inf" if bound is None else repr(bound / 1e9), total))
        return rows


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One unlabelled figure on a process's own health.

    Args:
        least, most: of several processes the least or the greatest counts, not the sum.
    """

    kind: Literal["counter", "gauge"]
    name: str
    text: str
    value: float
    least: bool = False
    most: bool = False


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All that a `Metrics` has counted.

    Args:
        sums: the series of each counter with labels.
        distributions: of each histogram, by labels: counts per bucket and the sum in nanoseconds.
    """

    sums: tuple[dict[Labels, int], ...]
    distributions: tuple[dict[Labels, tuple[tuple[int, ...], int]], ...]
    readings: tuple[Reading, ...]


class Metrics(Collector):
    """The counters of one process, and a `prometheus_client` collector over them."""

    def __init__(self, readings: Callable[[], Iterable[Reading]] = tuple) -> None:
        self._own_readings = readings
        self._other_readings: dict[str, Reading] = {}
        self._requests: dict[Labels, int] = {}
        self._errors: dict[Labels, int] = {}
        self._cost: dict[Labels, int] = {}
        self._records: dict[Labels, int] = {}
        self._tokens: dict[Labels, int] = {}
        self._refused: dict[Labels, int] = {}
        self._fallbacks: dict[Labels, int] = {}
        self._limited: dict[Labels, int] = {}
        self._reloads: dict[Labels, int] = {}
        self._latency: dict[Labels, Histogram] = {}
        self._first_chunk: dict[Labels, Histogram] = {}
        self._models: set[Labels] = set()

    def observe(self, o: Observation) -> None:
        """Fold one bill in."""
        key, provider = o.api_key_id, o.provider
        model = self._bounded_model(provider, o.model)
        _add(self._requests, (key, provider, o.status), 1)
        _add(self._records, (o.bill_status,), 1)
        if o.error_type is not None:
            _add(self._errors, (key, provider, o.error_type), 1)
        if o.cost_pico_usd is not None:
            _add(self._cost, (key, provider, model), o.cost_pico_usd)
        for dimension, units in o.tokens.items():
            _add(self._tokens, (key, provider, model, dimension), units)
        for before, after in fallbacks_of(o.tried):
            _add(self._fallbacks, (key, before, after), 1)
        labels = (key, provider)
        histogram = self._latency.get(labels)
        if histogram is None:
            histogram = self._latency.setdefault(labels, Histogram(LATENCY_BUCKETS_S))
        histogram.observe(o.latency_ns)
        if o.time_to_first_chunk_ns is not None:
            histogram = self._first_chunk.get(labels)
            if histogram is None:
                histogram = self._first_chunk.setdefault(labels, Histogram(FIRST_CHUNK_BUCKETS_S))
            histogram.observe(o.time_to_first_chunk_ns)

    def take(self, labels: TallyLabels, tally: Tally) -> None:
        """Fold bills in that were tallied elsewhere."""
        key, provider, name, status, bill_status, error_type = labels
        model = self._bounded_model(provider, name)
        _add(self._requests, (key, provider, status), tally.bills)
        _add(self._records, (bill_status,), tally.bills)
        if error_type is not None:
            _add(self._errors, (key, provider, error_type), tally.bills)
        if tally.cost_pico_usd is not None:
            _add(self._cost, (key, provider, model), tally.cost_pico_usd)
        for dimension, units in tally.tokens.items():
            _add(self._tokens, (key, provider, model, dimension), units)
        for pair, count in tally.fallbacks.items():
            before, _, after = pair.partition(TO)
            _add(self._fallbacks, (key, before, after), count)
        self._distribute(self._latency, LATENCY_BUCKETS_S, (key, provider), tally.latency, tally.latency_ns)
        if any(tally.first_chunk):
            counts, sum_ns = tally.first_chunk, tally.first_chunk_ns
            self._distribute(self._first_chunk, FIRST_CHUNK_BUCKETS_S, (key, provider), counts, sum_ns)

    def bills(self) -> tuple[int, int]:
        """Return how many bills were counted, and their cost in pico-USD."""
        return sum(self._records.values()), sum(self._cost.values())

    def refuse(self, code: str) -> None:
        """Count a request that was refused before any provider was called."""
        _add(self._refused, (code,), 1)

    def limit(self, rule: str, unit: str) -> None:
        """Count a request that was refused because a limit had no room for it."""
        _add(self._limited, (rule, unit), 1)

    def reload(self, result: str) -> None:
        """Count a configuration that was read while requests are served."""
        _add(self._reloads, (result,), 1)

    def state(self) -> State:
        """Return a copy of all counts, and the readings of now."""
        return State(
            sums=tuple(dict(series) for series in self._sums()),
            distributions=tuple(
                {labels: (tuple(found.counts), found.sum_ns) for labels, found in series.items()}
                for series, _ in self._distributions()
            ),
            readings=tuple(self._readings()),
        )

    def add(self, state: State, *, gauges: bool) -> None:
        """Add the counts of another process, or of one before this.

        Args:
            gauges: its gauges count, too: it lives.
        """
        for mine, theirs in zip(self._sums(), state.sums, strict=True):
            for labels, amount in theirs.items():
                _add(mine, labels, amount)
        for (series, bounds_s), others in zip(self._distributions(), state.distributions, strict=True):
            for labels, (counts, sum_ns) in others.items():
                self._distribute(series, bounds_s, labels, counts, sum_ns)
        self._models.update((provider, model) for _, provider, model in state.sums[_COST])
        for reading in state.readings:
            if gauges or reading.kind == "counter":
                self._other_readings[reading.name] = _folded(reading, self._other_readings.get(reading.name))

    @staticmethod
    def _distribute(
        series: dict[Labels, Histogram],
        bounds_s: tuple[float, ...],
        labels: Labels,
        counts: Iterable[int],
        sum_ns: int,
    ) -> None:
        histogram = series.get(labels)
        if histogram is None:
            histogram = series.setdefault(labels, Histogram(bounds_s))
        histogram.counts = [a + b for a, b in zip(histogram.counts, counts, strict=True)]
        histogram.sum_ns += sum_ns

    def _sums(self) -> tuple[dict[Labels, int], ...]:
        """Return all series; those of bills stand first."""
        return (
            self._requests,
            self._errors,
            self._cost,
            self._records,
            self._tokens,
            self._fallbacks,
            self._refused,
            self._limited,
            self._reloads,
        )

    def _distributions(self) -> tuple[tuple[dict[Labels, Histogram], tuple[float, ...]], ...]:
        return (self._latency, LATENCY_BUCKETS_S), (self._first_chunk, FIRST_CHUNK_BUCKETS_S)

    def _readings(self) -> Iterable[Reading]:
        others = dict(self._other_readings)
        for reading in self._own_readings():
            yield _folded(reading, others.pop(reading.name, None))
        yield from others.values()

    def _bounded_model(self, provider: str, model: str) -> str:
        label = (provider, model)
        if label in self._models:
            return model
        if len(self._models) >= MODELS_MAX:
            return OTHER
        self._models.add(label)
        return model

    def collect(self) -> Iterable[Metric]:
        """Yield every family; called by the registry when the page is read."""
        by_key = ["api_key_id", "provider"]
        yield _counter(
            "llm_gateway_requests",
            "Bills, by the provider's HTTP status, or where it did not answer, by the one that says so.",
            [*by_key, "status"],
            self._requests,
        )
        yield _counter("llm_gateway_errors", "Bills with an error.", [*by_key, "error_type"], self._errors)
        yield _counter(
            "llm_gateway_fallbacks",
            "Requests that another provider took over.",
            ["api_key_id", "from_provider", "to_provider"],
            self._fallbacks,
        )
        yield _counter(
            "llm_gateway_cost",
            "Cost in USD of bills that have one; `llm_gateway_records_total` counts those of each status.",
            [*by_key, "model"],
            self._cost,
            PICO_PER_USD,
        )
        yield _counter(
            "llm_gateway_tokens",
            "Units as reported, wholes and parts.",
            [*by_key, "model", "type"],
            self._tokens,
        )
        yield _counter(
            "llm_gateway_records", "Bills by how far they can be trusted.", ["status"], self._records
        )
        yield _counter(
            "llm_gateway_refused", "Requests refused before a provider was called.", ["code"], self._refused
        )
        yield _counter(
            "llm_gateway_limited",
            "Requests refused for want of room, by the rule that said so.",
            ["rule", "kind"],
            self._limited,
        )
        yield _counter(
            "llm_gateway_config_reloads",
            "Configurations read while requests are served: `taken` or `refused`.",
            ["result"],
            self._reloads,
        )
        yield _histogram(
            "llm_gateway_latency_seconds", "From admission to the settled bill.", by_key, self._latency
        )
        yield _histogram(
            "llm_gateway_time_to_first_chunk_seconds",
            "From admission to a stream's first byte.",
            by_key,
            self._first_chunk,
        )
        for reading in self._readings():
            yield _family(reading)


def without_bills(state: State) -> State:
    """Return what a state counts besides bills: refusals and readings."""
    nothing: tuple[dict[Labels, int], ...] = tuple({} for _ in range(_BILL_SUMS))
    return msgspec.structs.replace(
        state,
        sums=(*nothing, *state.sums[_BILL_SUMS:]),
        distributions=tuple({} for _ in state.distributions),
    )


def bills_only(state: State) -> State:
    """Return what a state counts of bills."""
    others: tuple[dict[Labels, int], ...] = tuple({} for _ in state.sums[_BILL_SUMS:])
    return msgspec.structs.replace(state, sums=(*state.sums[:_BILL_SUMS], *others), readings=())


_BILL_SUMS: Final = 6
"""So many of `State.sums`, which stand first, count bills."""
_COST: Final = 2
"""Where the cost stands in `State.sums`; its labels name every model that was counted."""


def _add(series: dict[Labels, int], labels: Labels, amount: int) -> None:
    value = series.get(labels)
    if value is not None:
        series[labels] = value + amount
    elif len(series) < SERIES_MAX:
        series[labels] = amount
    else:
        other = tuple(OTHER for _ in labels)
        series[other] = series.get(other, 0) + amount


def _counter(name: str, text: str, labels: list[str], series: dict[Labels, int], divisor: int = 1) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, amount in list(series.items()):
        family.add_metric(list(values), amount / divisor)
    return family


def _histogram(name: str, text: str, labels: list[str], series: dict[Labels, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in list(series.items()):
        family.add_metric(list(values), histogram.cumulative(), histogram.sum_ns / 1e9)
    return family


def _folded(reading: Reading, other: Reading | None) -> Reading:
    if other is None:
        return reading
    fold = min if reading.least else max if reading.most else sum
    return msgspec.structs.replace(reading, value=fold((reading.value, other.value)))


def _family(reading: Reading) -> Metric:
    if reading.kind == "gauge":
        return GaugeMetricFamily(reading.name, reading.text, value=reading.value)
    return CounterMetricFamily(reading.name, reading.text, value=reading.value)


def gauge(name: str, text: str, value: float, *, least: bool = False, most: bool = False) -> Reading:
    """Return one unlabelled gauge; of several processes it is the sum, the `least` or the `most`."""
    return Reading(kind="gauge", name=name, text=text, value=value, least=least, most=most)


def counter(name: str, text: str, value: float) -> Reading:
    """Return one unlabelled counter."""
    return Reading(kind="counter", name=name, text=text, value=value)
