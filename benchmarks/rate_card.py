"""What pricing costs: `rate_card.py ours` or `rate_card.py library` prints microseconds a request and MiB.

Each in a process of its own: the memory is what the process grew by from before the import until a request of
every kind had been priced; the time is the median round over the same requests.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

AT: Final = 1_795_250_000
ROUNDS: Final = 30
CALLS: Final = 1_000
REQUESTS: Final = [
    ("openai", "gpt-4o", {"input": 1_000, "output": 200}),
    ("openai", "gpt-5.4", {"input": 300_000, "cache_read": 200_000, "output": 900, "reasoning": 500}),
    ("anthropic", "claude-opus-5", {"input": 9_000, "cache_read": 5_000, "cache_write": 700, "output": 400}),
    ("openrouter", "google/gemini-2.5-flash", {"input": 1_000, "output": 200}),
]


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def ours() -> list[Callable[[], object]]:
    usage = importlib.import_module("gateway.core.usage").Usage
    catalogue = importlib.import_module("gateway.pricing.catalogue")
    selling = importlib.import_module("gateway.pricing.selling")
    book = selling.Book(catalogue.Catalogue(catalogue.packaged_rates()))

    def request(provider: str, model: str, counts: dict[str, int]) -> Callable[[], object]:
        used = usage(counts=counts, service_tier="default")

        def price() -> object:
            sale = selling.Sale(provider=provider, section=provider, model=model, at_unix_s=AT)
            return book.charge(sale, used).cost_pico_usd

        return price

    return [request(*facts) for facts in REQUESTS]


def library() -> list[Callable[[], object]]:
    prices = importlib.import_module("genai_prices")
    names = {"reasoning": "output_reasoning_tokens"}
    when = datetime.datetime.fromtimestamp(AT, datetime.UTC)

    def request(provider: str, model: str, counts: dict[str, int]) -> Callable[[], object]:
        used = prices.Usage(**{names.get(name, f"{name}_tokens"): units for name, units in counts.items()})
        return lambda: (
            prices.calc_price(used, model, provider_id=provider, genai_request_timestamp=when).total_price
        )

    return [request(*facts) for facts in REQUESTS]


def main() -> None:
    # What a gateway has loaded anyway is not the price list's.
    for name in ("msgspec", "decimal", "pydantic", "hashlib", "yaml"):
        importlib.import_module(name)
    before = rss_mib()
    requests = {"ours": ours, "library": library}[sys.argv[1]]()
    for price in requests:
        price()
    grown = rss_mib() - before
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time_ns()
        for _ in range(CALLS // len(requests)):
            for price in requests:
                price()
        rounds.append((time.process_time_ns() - started) / CALLS / 1_000)
    print(json.dumps({"us": statistics.median(rounds), "mib": grown}))


if __name__ == "__main__":
    main()
