"""`make bench`, third part: how long the cost doors of a running gateway take over a million records.

The gateway is a process of its own; what it answers over HTTP is held to the sum of the bills before times
count. SQLite always; PostgreSQL too where Debian's package is.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.ledger import DAYS, START_NS, ZONES, fill, opened  # noqa: E402  # after the path is set
from gateway.core.money import pico_to_usd  # noqa: E402
from tests.gateway_process import Gateway  # noqa: E402
from tests.ledger.servers import programs, running_postgres  # noqa: E402

ADMIN: Final = "adm-5f1d9a7c3b2e4f60aa91"
DAY_S: Final = 86_400
GROUPINGS: Final = ("api_key", "user", "model", "team", "provider", "project", "day", "all")
ANSWER_S: Final = 60.0
BROKEN_OFF: Final = 503
Params = dict[str, str]


def questions(toss: random.Random) -> Iterator[tuple[str, str, Params]]:
    """Yield what a cost page asks for: name, door and parameters."""
    while True:  # ends with whoever asks
        for name in GROUPINGS:
            for length in (DAYS, 1, 7, 30):
                params = {"tz": toss.choice(ZONES)}
                if name != "all":
                    params["group_by"] = name
                if length != DAYS:
                    start = START_NS // 10**9 + toss.randrange((DAYS - length) * DAY_S)
                    params["start"] = f"{datetime.fromtimestamp(start, UTC):%Y-%m-%dT%H:%M:%SZ}"
                    end = datetime.fromtimestamp(start + length * DAY_S, UTC)
                    params["end"] = f"{end:%Y-%m-%dT%H:%M:%SZ}"
                if toss.random() < 0.3:
                    params["user"] = f"user-{toss.randrange(5):03}"
                yield f"by {name}", "/v1/costs", params
        day = datetime.fromtimestamp(START_NS // 10**9 + toss.randrange(DAYS) * DAY_S, UTC)
        page = {"start": f"{day:%Y-%m-%d}", "user": f"user-{toss.randrange(50):03}", "limit": "100"}
        yield "a page of records", "/v1/costs/records", page


def measure(client: httpx.Client, by_key: dict[str, int], count: int) -> dict[str, list[float]]:
    """Return milliseconds by question, once the answers are right."""
    for zone in ZONES:
        answer = client.get("/v1/costs", params={"tz": zone}).raise_for_status().json()
        found = {group["name"]: group["cost_usd"] for group in answer["by_api_key"]}
        if found != {name: pico_to_usd(pico) for name, pico in by_key.items()}:
            raise SystemExit("the sums by key are not those of the records")
        if answer["total"]["cost_usd"] != pico_to_usd(sum(by_key.values())):
            raise SystemExit("the total is not that of the records")
    took: dict[str, list[float]] = {}
    for name, path, params in itertools.islice(questions(random.Random(3)), count):
        began = time.perf_counter()
        answer = client.get(path, params=params)
        if answer.status_code != BROKEN_OFF:  # it took too long, and is in the figures with all of that time
            answer.raise_for_status()
        took.setdefault(name, []).append((time.perf_counter() - began) * 1e3)
    return took


def export_rate(client: httpx.Client, kind: str) -> float:
    """Return how many records a second a whole export streams."""
    began, lines = time.perf_counter(), 0
    params = {"format": kind, "user": "user-000", "order": "oldest"}
    with client.stream("GET", "/v1/costs/records", params=params) as answer:
        for chunk in answer.iter_bytes():
            lines += chunk.count(b"\n")
    return lines / (time.perf_counter() - began)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small ledger")
    quick = parser.parse_args().quick
    size, asked = (20_000, 99) if quick else (1_000_000, 660)
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="spanbill-doors-")))
        urls = {"SQLite": f"sqlite:///{folder}/ledger.db"}
        if programs() is not None:
            urls["PostgreSQL"] = held.enter_context(running_postgres()).database()
        for database, url in urls.items():
            table = Table(title=f"{database}: cost doors over {size:,} records, in ms", title_justify="left")
            for column in ("question", "asked", "median", "p95", "most"):
                table.add_column(column, justify="left" if column == "question" else "right")
            store = opened(url, folder)
            by_key = fill(store, size)
            store.close()
            environment: dict[str, Any] = {"SPANBILL_ADMIN__KEY": ADMIN, "SPANBILL_LEDGER__URL": url}
            headers = {"authorization": f"Bearer {ADMIN}"}
            with (
                Gateway(folder / database, **environment) as gateway,
                httpx.Client(base_url=gateway.url, headers=headers, timeout=ANSWER_S) as client,
            ):
                took = measure(client, by_key, asked)
                rates = {kind: export_rate(client, kind) for kind in ("jsonl", "csv")}
                gateway.stop()
            costs = [ms for name, times in took.items() if name.startswith("by ") for ms in times]
            for name, times in [*took.items(), ("all of /v1/costs", costs)]:
                p95 = (
                    statistics.quantiles(times, n=20, method="inclusive")[-1] if len(times) > 1 else times[0]
                )
                figures = (statistics.median(times), p95, max(times))
                table.add_row(name, str(len(times)), *[f"{ms:.1f}" for ms in figures])
            for kind, rate in rates.items():
                table.add_row(f"export as {kind}", "1", f"{rate:,.0f} a second", "", "")
            Console(width=110).print(table)


if __name__ == "__main__":
    main()
