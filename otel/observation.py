"""Observation: one bill in the words of the metrics, and many as a tally that can be kept and added."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import Final

import msgspec

LATENCY_BUCKETS_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
FIRST_CHUNK_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LATENCY_NS: Final = [round(bound * 1e9) for bound in LATENCY_BUCKETS_S]
_FIRST_CHUNK_NS: Final = [round(bound * 1e9) for bound in FIRST_CHUNK_BUCKETS_S]
TO: Final = ">"
"""Between two names of providers, neither of which has it."""

TallyLabels = tuple[str, str, str, str, str, str | None]
"""Key, provider, model, status, status of the bill, and type of the error, as in an `Observation`."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One bill in the words of the metrics.

    Args:
        cost_pico_usd: None where the bill has no cost: it is then counted by status and added nowhere.
        tokens: dimension to count, only what was reported.
        tried: providers, in the order in which they were called.
    """

    api_key_id: str
    provider: str
    model: str
    status: str
    bill_status: str
    latency_ns: int
    error_type: str | None = None
    cost_pico_usd: int | None = None
    tokens: dict[str, int] = {}
    time_to_first_chunk_ns: int | None = None
    tried: tuple[str, ...] = ()


class Tally(msgspec.Struct, kw_only=True):
    """What bills with the same labels come to, for somebody to keep.

    Args:
        cost_pico_usd: None where none of them has a cost.
        latency, first_chunk: counts per bucket.
        fallbacks: by the pair of providers, as `from>to`.
    """

    bills: int = 0
    cost_pico_usd: int | None = None
    tokens: dict[str, int] = {}
    latency: list[int] = msgspec.field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))
    latency_ns: int = 0
    first_chunk: list[int] = msgspec.field(default_factory=lambda: [0] * (len(FIRST_CHUNK_BUCKETS_S) + 1))
    first_chunk_ns: int = 0
    fallbacks: dict[str, int] = {}

    def observe(self, o: Observation) -> None:
        """Add one bill."""
        self.bills += 1
        if o.cost_pico_usd is not None:
            self.cost_pico_usd = (self.cost_pico_usd or 0) + o.cost_pico_usd
        for dimension, units in o.tokens.items():
            self.tokens[dimension] = self.tokens.get(dimension, 0) + units
        self.latency[bisect_left(_LATENCY_NS, o.latency_ns)] += 1
        self.latency_ns += o.latency_ns
        if o.time_to_first_chunk_ns is not None:
            self.first_chunk[bisect_left(_FIRST_CHUNK_NS, o.time_to_first_chunk_ns)] += 1
            self.first_chunk_ns += o.time_to_first_chunk_ns
        for before, after in fallbacks_of(o.tried) if len(o.tried) > 1 else ():
            pair = f"{before}{TO}{after}"
            self.fallbacks[pair] = self.fallbacks.get(pair, 0) + 1

    def add(self, other: Tally) -> None:
        """Add what other bills with these labels come to."""
        self.bills += other.bills
        if other.cost_pico_usd is not None:
            self.cost_pico_usd = (self.cost_pico_usd or 0) + other.cost_pico_usd
        for dimension, units in other.tokens.items():
            self.tokens[dimension] = self.tokens.get(dimension, 0) + units
        self.latency = [a + b for a, b in zip(self.latency, other.latency, strict=True)]
        self.latency_ns += other.latency_ns
        self.first_chunk = [a + b for a, b in zip(self.first_chunk, other.first_chunk, strict=True)]
        self.first_chunk_ns += other.first_chunk_ns
        for pair, count in other.fallbacks.items():
            self.fallbacks[pair] = self.fallbacks.get(pair, 0) + count


def fallbacks_of(tried: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return which provider another one took over from."""
    return [(before, after) for before, after in pairwise(tried) if before != after]


def labels_of(o: Observation) -> TallyLabels:
    """Return under which labels a bill is tallied."""
    return o.api_key_id, o.provider, o.model, o.status, o.bill_status, o.error_type
