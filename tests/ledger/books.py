"""Journals with many kinds of bills, and what a ledger must make of them, counted without one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select

from gateway.core.charge import Charge, Line
from gateway.core.exchange import Exchange, Identity
from gateway.core.usage import Usage
from gateway.ledger import schema
from gateway.ledger.follower import Follower
from gateway.ledger.store import Store
from otel.journal.files import Files
from tests.gateway_process import attributes, journal_lines, spans_in
from tests.journals import Book, exchange

START_NS = 1_790_000_000 * 10**9
USERS = ("alice", "bob", "carol", "dora", "emil")
MODELS = ("gpt-4o", "claude-sonnet", "deepseek-chat")


def mixed(number: int, *, span_ns: int = 3 * 86_400 * 10**9, of: int = 1_000) -> Exchange:
    """Return a bill that follows from its number: all statuses, users, models, dimensions and outcomes."""
    toss = random.Random(number)
    user = toss.choice(USERS)
    identity = Identity(
        key_id=f"key-{user}-{toss.randrange(2)}",
        user_id=user,
        user_name=user.title() if user < "c" else None,
        team=None if user == "emil" else f"team-{user[0] < 'c'}",
        project=toss.choice((None, "apollo")),
        source="key",
        tags=("a", "b") if user == "bob" else (),
    )
    model = toss.choice(MODELS)
    plain = exchange(number)
    ended = START_NS + number * span_ns // of
    call = msgspec.structs.replace(
        plain.call,
        identity=identity,
        model=model,
        alias="best" if toss.random() < 0.2 else None,
        started_unix_ns=ended - toss.randrange(10**9),
        session_id="s\0s" if toss.random() < 0.05 else None,
        client_user=toss.choice((None, "end-user")),
    )
    attempts = tuple(
        msgspec.structs.replace(plain.attempts[0], provider=toss.choice(("openai", "azure")))
        for _ in range(toss.choice((1, 1, 1, 2)))
    )
    failed = toss.random() < 0.1
    counts = {"input": toss.randrange(10_000), "output": toss.randrange(5_000)}
    if toss.random() < 0.4:
        counts["cache_read"] = counts["input"] // 3
    if toss.random() < 0.2:
        counts |= {"cache_write": 90, "cache_write_5m": 60}
    if toss.random() < 0.2:
        counts["reasoning"] = counts["output"] // 2
    status = toss.choice(("final", "final", "final", "estimated", "unpriced", "unmetered"))
    lines = tuple(
        Line(dimension=name, units=1, rate_atto_per_million=1, cost_pico_usd=toss.randrange(10**9))
        for name in counts
        if name != "cache_write"
    )
    return msgspec.structs.replace(
        plain,
        call=call,
        attempts=attempts,
        status=status,
        outcome="upstream_error" if failed else "ok",
        error_type="server_error" if failed else None,
        reply=msgspec.structs.replace(
            plain.reply,
            usage=None if status == "unmetered" else Usage(counts=counts),
            response_model=toss.choice((None, f"{model}-2026")),
        ),
        charge=Charge(lines=lines, price_id=f"p/{model}", catalog="c0ffee", tier=toss.choice((None, "base")))
        if status in ("final", "estimated")
        else None,
        ended_unix_ns=ended,
        latency_ns=toss.randrange(10**10),
        time_to_first_chunk_ns=toss.choice((None, 123_456_789)),
    )


async def write_bills(
    folder: Path,
    numbers: Iterable[int],
    *,
    boot: str = "b0",
    bytes_max: int = 60_000,
    of: int = 1_000,
    at_once: bool = False,
) -> None:
    """Write bills to a journal by a writer that ends in good order.

    Args:
        at_once: all of them are settled in one and the same nanosecond.
    """
    with Book(folder, boot, bytes_max=bytes_max) as book:
        last = 0
        for number in numbers:
            bill = mixed(number, of=of)
            if at_once:
                bill = msgspec.structs.replace(bill, ended_unix_ns=START_NS)
            book.recorder.intent(bill.call)
            last = book.recorder.settle(bill)
        if last:
            await book.durable(last)


def follower(folder: Path, store: Store, **arguments: Any) -> Follower:
    return Follower(folder, store, jitter=lambda: 0.0, pause=lambda: None, **arguments)


def caught_up(folder: Path, store: Store) -> Follower:
    """Return a follower that has taken up all that is there."""
    found = follower(folder, store)
    for _ in range(100):
        if found.step() > 0:
            break
    assert found.stats.last_error is None
    return found


def bills_of(folder: Path) -> list[dict[str, Any]]:
    """Return the bills of a journal as attributes, each id once, read without the product's reader."""
    found: dict[str, dict[str, Any]] = {}
    for line in journal_lines(folder):
        for span in spans_in(line):
            bill = {**attributes(span), "ended": int(span["endTimeUnixNano"])}
            found.setdefault(bill["billing.record.id"], bill)
    return list(found.values())


def pico(bill: dict[str, Any]) -> int:
    """Return a bill's cost in pico-USD; 0 if it has none."""
    whole, _, fraction = str(bill.get("billing.cost.usd", "0")).partition(".")
    return int(whole) * 10**12 + int(fraction.ljust(12, "0"))


def summed(
    bills: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Any]
) -> dict[Any, tuple[int, int]]:
    """Return count and pico-USD by a key."""
    counted: Counter[Any] = Counter()
    cost: Counter[Any] = Counter()
    for bill in bills:
        counted[key(bill)] += 1
        cost[key(bill)] += pico(bill)
    return {name: (counted[name], cost[name]) for name in counted}


def status(bill: dict[str, Any]) -> str:
    return str(bill["billing.status"])


def rows_by_status(store: Store) -> dict[str, tuple[int, int]]:
    """Return count and pico-USD by status, from the rows themselves."""
    bills = schema.bills
    rows = store.run(lambda c: c.execute(select(bills.c.status, bills.c.cost_pico)).all())
    found: dict[str, tuple[int, int]] = {}
    for name, cost in rows:
        count, total = found.get(name, (0, 0))
        found[name] = (count + 1, total + (cost or 0))
    return found


def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of the tables that follow from the journal, in order."""

    def read(connection: Any) -> dict[str, list[tuple[Any, ...]]]:
        tables = (schema.bills, schema.lines, schema.accounts, schema.routes, schema.rates, *schema.ROLLUPS)
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in tables
        }

    return store.run(read)


def assert_each_is_numbered_once(store: Store) -> None:
    """Hold the feed to the rows: each has one number, without a gap, and says what it took the place of."""
    bills, feed, feeds = schema.bills, schema.feed, schema.feeds
    rows = store.run(
        lambda c: c.execute(select(bills.c.gateway_id, bills.c.record_id, bills.c.revision)).all()
    )
    entries = store.run(lambda c: c.execute(select(feed).order_by(feed.c.gateway_id, feed.c.number)).all())
    assert sorted((e.gateway_id, e.record_id, e.revision) for e in entries) == sorted(tuple(r) for r in rows)
    numbered = Counter(entry.gateway_id for entry in entries)
    assert numbered == {
        row.gateway_id: row.last for row in store.run(lambda c: c.execute(select(feeds)).all())
    }
    assert [entry.number for entry in entries] == [
        n + 1 for own in sorted(numbered) for n in range(numbered[own])
    ]
    assert all((entry.replaces is None) == (entry.revision == 0) for entry in entries)


FILES = Files()
