"""`make bench`, second part: how fast a ledger is rebuilt, and how fast a million records are summed up.

The journal is written by the product's own recorder, the ledger is rebuilt by the product's own command, and
every answer is held to the sum of the bills before its time counts. SQLite always; PostgreSQL too where
Debian's package is.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import resource
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Select

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway.core.charge import Charge, Line  # noqa: E402  # after the path is set
from gateway.core.exchange import Attempt, Call, Exchange, Identity, Reply  # noqa: E402
from gateway.core.usage import Usage  # noqa: E402
from gateway.ledger import schema  # noqa: E402
from gateway.ledger.opening import store_at  # noqa: E402
from gateway.ledger.periods import Period  # noqa: E402
from gateway.ledger.projection import Projector, Rows  # noqa: E402
from gateway.ledger.queries import Dimension, Filters, costs, records  # noqa: E402
from gateway.ledger.rebuilding import rebuild  # noqa: E402
from gateway.ledger.store import Store  # noqa: E402
from gateway.ledger.writing import Stretch, defer_sums, enrol, refill, write  # noqa: E402
from gateway.recorder import JournalRecorder  # noqa: E402
from gateway.recording.span import billing_span  # noqa: E402
from otel.journal import Bounds, JournalWriter  # noqa: E402
from otel.schema import encode_span, resource_spans_frame  # noqa: E402
from tests.ledger.servers import programs, running_postgres  # noqa: E402

START_NS: Final = 1_767_225_600 * 10**9
DAYS: Final = 90
SPAN_NS: Final = DAYS * 86_400 * 10**9
KEYS: Final = 200
MODELS: Final = 20
PROVIDERS: Final = ("openai", "anthropic", "deepseek", "azure")
SHAPES: Final = 2_000
"""Different bills that the million rows are made of; ids, times and costs differ in each."""
ZONES: Final = ("UTC", "America/Los_Angeles", "Asia/Kolkata")
PROCESSES: Final = min(4, os.cpu_count() or 1)
console: Final = Console(width=110)


def bill(number: int, total: int, toss: random.Random) -> Exchange:
    """Return a usual bill: a priced reply with three lines, now and then one without a price."""
    who = min(int(toss.paretovariate(0.7)), KEYS) - 1
    model = f"model-{min(int(toss.paretovariate(0.9)), MODELS)}"
    provider = PROVIDERS[len(model) * who % len(PROVIDERS)]
    ended = START_NS + number * SPAN_NS // total
    counts = {"input": toss.randrange(100, 9_000), "cache_read": 64, "output": toss.randrange(10, 2_000)}
    status = toss.choices(("final", "estimated", "unpriced"), (95, 4, 1))[0]
    lines = tuple(
        Line(dimension=name, units=units, rate_atto_per_million=1, cost_pico_usd=units * 2_500_000)
        for name, units in counts.items()
    )
    return Exchange(
        call=Call(
            record_id=f"019b{number:08x}-7000-8000-{toss.getrandbits(48):012x}"[:36],
            trace_id=f"{toss.getrandbits(128):032x}",
            span_id=f"{toss.getrandbits(64):016x}",
            server_span_id=f"{toss.getrandbits(64):016x}",
            protocol="chat_completions",
            operation="chat",
            model=model,
            stream=True,
            identity=Identity(
                key_id=f"key-{who:03}",
                user_id=f"user-{who // 2:03}",
                user_name=f"User {who // 2}",
                team=f"team-{who % 10}",
                project=f"project-{who % 20}",
                source="key",
            ),
            started_unix_ns=ended - 800_000_000,
            client_address="192.0.2.1",
            input_summary={"messages": 4, "bytes": 9_000},
        ),
        attempts=(
            Attempt(
                span_id=f"{toss.getrandbits(64):016x}",
                provider=provider,
                model=model,
                host=f"api.{provider}.example",
                port=443,
                path="/v1/chat/completions",
                started_unix_ns=ended,
                ended_unix_ns=ended,
                status=200,
                provider_request_id=f"req_{toss.getrandbits(96):024x}",
            ),
        ),
        reply=Reply(
            response_id=f"chatcmpl-{toss.getrandbits(96):024x}",
            response_model=f"{model}-2026-01-01",
            finish_reasons=("stop",),
            usage=Usage(counts=counts),
            complete=True,
            output_summary={"events": 80, "bytes": 20_000},
        ),
        outcome="ok",
        status=status,  # type: ignore[arg-type]
        ended_unix_ns=ended,
        latency_ns=800_000_000,
        time_to_first_chunk_ns=300_000_000,
        charge=Charge(lines=lines, price_id=f"{provider}/{model}", catalog="c0ffee00c0ffee00")
        if status != "unpriced"
        else None,
    )


async def write_journal(folder: Path, count: int) -> None:
    """Write a journal of so many requests."""
    ids = itertools.count()
    writer = JournalWriter(
        folder,
        boot=secrets.token_hex(8),
        now_ns=time.time_ns,
        segment_id=lambda: f"{next(ids):032x}",
        durability="process",
        bounds=Bounds(),
    )
    recorder = JournalRecorder(writer, {"service.name": "spanbill"}, "cache_write")
    toss = random.Random(1)
    writer.open({})
    for number in range(count):
        one = bill(number, count, toss)
        recorder.intent(one.call)
        recorder.settle(one)
    writer.close()


class Rebuild(NamedTuple):
    """What a rebuild took, sums included; processor time, of the writer and of others, a bill."""

    bills_a_second: float
    writer_us: float
    others_us: float
    bytes_a_bill: float


def measure_rebuild(folder: Path, store: Store, processes: int) -> Rebuild:
    """Measure one rebuild."""
    before = store.bytes()
    own, others = time.process_time(), _of_children()
    done = rebuild(folder, store, processes=processes)
    if done.conflicts or done.refused or done.lost:
        raise SystemExit(f"the rebuilt ledger is not the journal: {done}")
    own, others = time.process_time() - own, _of_children() - others
    return Rebuild(
        done.bills / done.seconds,
        own / done.bills * 1e6,
        others / done.bills * 1e6,
        (store.bytes() - before) / done.bills,
    )


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fill(store: Store, count: int) -> dict[str, int]:
    """Put so many records in, and return their cost by key."""
    head, tail = resource_spans_frame({"service.name": "spanbill"}, "spanbill", "0")
    gateway_id = store.run(lambda c: enrol(c, f"benchmark-{count}"), writes=True)
    store.run(lambda c: defer_sums(c, gateway_id), writes=True)
    toss = random.Random(2)
    shapes = Rows()
    spans = [(head + encode_span(billing_span(bill(n, SHAPES, toss))) + tail).encode() for n in range(SHAPES)]
    Projector(gateway_id).add(shapes, spans)
    key_of = {account: str(row[0]) for account, row in shapes.accounts.items()}
    columns = list(schema.bills.c.keys())
    ended, account, cost = (columns.index(n) for n in ("ended_unix_ns", "account_id", "cost_pico"))
    by_key: dict[str, int] = {}
    for at in range(0, count, SHAPES):
        rows = Rows(accounts=shapes.accounts, routes=shapes.routes, rates=shapes.rates)
        for number in range(at, min(at + SHAPES, count)):
            shape = toss.randrange(SHAPES)
            record_id = f"019b{number:08x}-7000-8000-000000000000"
            own = list(shapes.bills[shape])
            own[0], own[ended] = record_id, START_NS + number * SPAN_NS // count
            rows.bills.append(tuple(own))
            rows.places.append(len(rows.places))
            pico: Any = own[cost]
            name = key_of[own[account]]  # type: ignore[index]  # an id
            by_key[name] = by_key.get(name, 0) + (pico or 0)
        stretch = Stretch(segment="s", writer="w", start=at, end=at + SHAPES, seen=0, spans=(), ends=())
        store.run(partial(_written, gateway_id=gateway_id, rows=rows, stretch=stretch), writes=True)
    store.run(lambda c: refill(c, gateway_id), writes=True)
    return by_key


def _written(connection: Connection, gateway_id: int, rows: Rows, stretch: Stretch) -> None:
    write(connection, gateway_id, rows, stretch, now_unix_ns=0, sums=False)


def questions(toss: random.Random) -> Iterator[tuple[str, list[Dimension], Filters, Period, ZoneInfo]]:
    """Yield what a cost page asks for: each grouping, over all and over ranges, with and without filters."""
    groupings: list[list[Dimension]] = [["key"], ["user"], ["model"], ["team"], ["provider"], ["day"], []]
    while True:  # ends with whoever asks
        for group_by in groupings:
            zone = ZoneInfo(toss.choice(ZONES))
            start = START_NS + toss.randrange(SPAN_NS // 2)
            length = toss.choice((SPAN_NS, 86_400 * 10**9, 7 * 86_400 * 10**9, 30 * 86_400 * 10**9))
            if length == SPAN_NS:
                start = START_NS
            period = Period(start, start + length)
            user = Filters(user=(f"user-{toss.randrange(5):03}",))
            for filters in (Filters(), user, Filters(status=("final",))):
                yield "+".join(group_by) or "total", group_by, filters, period, zone


def ask(store: Store, group_by: list[Dimension], filters: Filters, period: Period, zone: ZoneInfo) -> Any:
    """Return the groups of one question."""
    question = costs(group_by, filters, period, zone)
    return question.fold(
        store.run(lambda c: [tuple(row) for s in question.statements for row in c.execute(s)])
    )


def measure_questions(store: Store, by_key: dict[str, int], count: int) -> dict[str, list[float]]:
    """Return milliseconds by grouping, once the answers are right."""
    whole = Period(START_NS, START_NS + SPAN_NS)
    found = {g.values[0]: g.total.cost_pico for g in ask(store, ["key"], Filters(), whole, ZoneInfo("UTC"))}
    if found != by_key:
        raise SystemExit("the sums by key are not those of the records")
    for name in ZONES:
        days = ask(store, ["day"], Filters(), whole, ZoneInfo(name))
        if sum(day.total.cost_pico for day in days) != sum(by_key.values()):
            raise SystemExit(f"the days of {name} do not add up")
    took: dict[str, list[float]] = {}
    asked = itertools.islice(questions(random.Random(3)), count)
    for name, group_by, filters, period, zone in asked:
        took.setdefault(name, []).append(_milliseconds(partial(ask, store, group_by, filters, period, zone)))
    toss = random.Random(4)
    for _ in range(count // 10):
        start = START_NS + toss.randrange(SPAN_NS)
        user = Filters(user=(f"user-{toss.randrange(50):03}",))
        page = records(user, Period(start, START_NS + SPAN_NS), count=100)
        took.setdefault("a page of records", []).append(_milliseconds(partial(_page, store, page)))
    return took


def _page(store: Store, page: Select[Any]) -> list[Any]:
    return list(store.run(lambda c: c.execute(page).all()))


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small journal and a small ledger")
    quick = parser.parse_args().quick
    journal_size, ledger_size, asked = (3_000, 20_000, 60) if quick else (1_000_000, 1_000_000, 420)
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="spanbill-ledger-")))
        databases = ["SQLite"]
        if programs() is not None:
            server = held.enter_context(running_postgres())
            databases.append("PostgreSQL")
        asyncio.run(write_journal(folder / "journal", journal_size))
        table = Table(title=f"Rebuild of {journal_size:,} bills, sums included", title_justify="left")
        columns = ("database", "processes", "bills a second", "writer us", "others us", "bytes a bill")
        for column in columns:
            table.add_column(column, justify="right" if column != "database" else "left")
        answers = Table(title=f"Questions to {ledger_size:,} records, in ms", title_justify="left")
        for column in ("database", "question", "asked", "median", "p95", "most"):
            answers.add_column(column, justify="right" if column not in ("database", "question") else "left")
        for name in databases:
            for processes in (1, PROCESSES):
                url = f"sqlite:///{folder}/r{processes}.db" if name == "SQLite" else server.database()
                store = opened(url, folder)
                took_all = measure_rebuild(folder / "journal", store, processes)
                table.add_row(name, str(processes), *[f"{figure:,.0f}" for figure in took_all])
                store.close()
            url = f"sqlite:///{folder}/q.db" if name == "SQLite" else server.database()
            store = opened(url, folder)
            took = measure_questions(store, fill(store, ledger_size), asked)
            everything = [ms for times in took.values() for ms in times]
            for question, times in [*took.items(), ("all", everything)]:
                p95 = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
                figures = (statistics.median(times), p95, max(times))
                answers.add_row(name, question, str(len(times)), *[f"{ms:.1f}" for ms in figures])
            store.close()
        console.print(table)
        console.print(answers)
        shutil.rmtree(folder / "journal")


def opened(url: str, folder: Path) -> Store:
    """Return an open, empty ledger."""
    store = store_at(url, folder / "journal")
    store.open()
    return store


if __name__ == "__main__":
    main()
