"""Rolling: how each target did over the last minutes, in bounded memory.

Slices of the window, each with counts and histograms whose buckets grow by an eighth of a doubling: a
quantile is right within 9 %. A slice costs no more than its numbers, however many requests are in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log2
from typing import Final

import msgspec

WINDOW_S: Final = 300.0
SLICES: Final = 30
"""A window's slices; what is older than the window leaves by whole slices."""
STEPS: Final = 8
"""Buckets for each doubling."""
BUCKETS: Final = 23 * STEPS
"""From one millisecond to over two hours."""
UNIT_NS: Final = 1_000_000


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt showed.

    Args:
        ok: it brought an answer.
        latency_ns, first_chunk_ns: of a whole answer, and until its first byte.
        output_tokens, cost_pico_usd, tokens: None where they are not known; `tokens` are all of the bill.
    """

    ok: bool
    latency_ns: int
    first_chunk_ns: int | None = None
    output_tokens: int | None = None
    tokens: int | None = None
    cost_pico_usd: int | None = None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a target did over the window; None is where nothing is known.

    Args:
        success: share of attempts that brought an answer.
        latency_s: p50 and p95 of whole answers; first_chunk_s: p50.
        tokens_per_s: output, while answers were being made.
        usd_per_million: cost for each million tokens, over bills that have one.
    """

    requests: int = 0
    failures: int = 0
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    first_chunk_p50_s: float | None = None
    tokens_per_s: float | None = None
    usd_per_million: float | None = None

    @property
    def success(self) -> float | None:
        """Return the share of attempts that brought an answer."""
        return None if self.requests == 0 else 1 - self.failures / self.requests


class _Slice:
    __slots__ = (
        "cost_pico_usd",
        "failures",
        "first",
        "latency",
        "made_ns",
        "number",
        "output_tokens",
        "priced_tokens",
        "requests",
    )

    def __init__(self) -> None:
        self.clear(-1)

    def clear(self, number: int) -> None:
        self.number = number
        self.requests = 0
        self.failures = 0
        self.latency: dict[int, int] = {}
        self.first: dict[int, int] = {}
        self.output_tokens = 0
        self.made_ns = 0
        self.cost_pico_usd = 0
        self.priced_tokens = 0


class Rolling:
    """The window of one target.

    Args:
        window_s: how far back it looks.
    """

    __slots__ = ("_slice_ns", "_slices")

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._slice_ns = max(1, round(window_s * 1e9 / SLICES))
        self._slices = [_Slice() for _ in range(SLICES)]

    def add(self, sample: Sample, now_ns: int) -> None:
        """Take an attempt that ended now."""
        number = now_ns // self._slice_ns
        into = self._slices[number % SLICES]
        if into.number != number:
            into.clear(number)
        into.requests += 1
        if not sample.ok:
            into.failures += 1
            return
        bucket = _bucket(sample.latency_ns)
        into.latency[bucket] = into.latency.get(bucket, 0) + 1
        if sample.first_chunk_ns is not None:
            bucket = _bucket(sample.first_chunk_ns)
            into.first[bucket] = into.first.get(bucket, 0) + 1
        if sample.output_tokens is not None:
            into.output_tokens += sample.output_tokens
            into.made_ns += sample.latency_ns
        if sample.cost_pico_usd is not None and sample.tokens is not None:
            into.cost_pico_usd += sample.cost_pico_usd
            into.priced_tokens += sample.tokens

    def requests(self, now_ns: int) -> int:
        """Return how many attempts are in the window that ends now; cheap, where there are many windows."""
        newest = now_ns // self._slice_ns
        return sum(part.requests for part in self._slices if newest - SLICES < part.number <= newest)

    def standing(self, now_ns: int) -> Standing:
        """Return how the target did over the window that ends now."""
        newest = now_ns // self._slice_ns
        live = [part for part in self._slices if newest - SLICES < part.number <= newest and part.requests]
        made_ns = sum(part.made_ns for part in live)
        tokens = sum(part.priced_tokens for part in live)
        output = sum(part.output_tokens for part in live)
        p50, p95 = _quantiles([part.latency for part in live], (0.5, 0.95))
        (first,) = _quantiles([part.first for part in live], (0.5,))
        return Standing(
            requests=sum(part.requests for part in live),
            failures=sum(part.failures for part in live),
            latency_p50_s=p50,
            latency_p95_s=p95,
            first_chunk_p50_s=first,
            tokens_per_s=output * 1e9 / made_ns if made_ns else None,
            usd_per_million=sum(part.cost_pico_usd for part in live) / 1e6 / tokens if tokens else None,
        )


def _bucket(duration_ns: int) -> int:
    steps = int(log2(max(1.0, duration_ns / UNIT_NS)) * STEPS)
    return min(BUCKETS - 1, steps)


def _quantiles(histograms: Sequence[dict[int, int]], shares: Iterable[float]) -> list[float | None]:
    """Return quantiles in seconds, each as the middle of its bucket; None of nothing."""
    merged: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in list(histogram.items()):  # pages are read by a thread
            merged[bucket] = merged.get(bucket, 0) + count
    total = sum(merged.values())
    found: list[float | None] = []
    for share in shares:
        below = 0
        value: float | None = None
        for bucket in sorted(merged):
            below += merged[bucket]
            if below >= share * total:
                value = UNIT_NS * 2.0 ** ((bucket + 0.5) / STEPS) / 1e9
                break
        found.append(value)
    return found
