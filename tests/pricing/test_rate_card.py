"""The rate card is cheap: loose bounds here, exact figures in `make bench`."""

from __future__ import annotations

import time
import tracemalloc

from gateway.core.charge import Charge
from gateway.core.usage import Usage
from gateway.pricing.catalogue import MEMO_MAX, Catalogue, packaged_rates
from gateway.pricing.selling import Book, Sale

US_MAX = 40
"""Four times the aim: other processes may take the core's caches."""
MIB_MAX = 10
CALLS = 2_000


def test_pricing_a_request_takes_microseconds() -> None:
    book = Book(Catalogue(packaged_rates()))
    usage = Usage(counts={"input": 10_000, "cache_read": 4_000, "output": 500}, service_tier="default")
    sale = Sale(provider="openai", section="openai", model="gpt-4o", at_unix_s=1_795_250_000)
    assert isinstance(book.charge(sale, usage), Charge)
    best_ns = min(_timed(book, sale, usage) for _ in range(5))
    assert best_ns / CALLS < US_MAX * 1_000


def _timed(book: Book, sale: Sale, usage: Usage) -> int:
    started_ns = time.process_time_ns()
    for _ in range(CALLS):
        book.charge(sale, usage)
    return time.process_time_ns() - started_ns


def test_a_rate_card_with_every_model_used_and_a_full_memo_stays_small() -> None:
    tracemalloc.start()
    try:
        catalogue = Catalogue(packaged_rates())
        for section, entry in catalogue.entries():
            catalogue.card("", section, entry.model.id, 1_795_250_000)
        for number in range(MEMO_MAX + 10):
            catalogue.card("", "openai", f"gpt-4o-{number}", 1_795_250_000)
            assert len(catalogue._memo) <= MEMO_MAX
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < MIB_MAX * 2**20, used
