"""Journals of generated bills, for re-rating: many models, tiers, adjustments and statuses."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from gateway.assembly import book_of
from gateway.core.exchange import Exchange
from gateway.pricing.selling import Book
from gateway.rerating import Outcome, Selection, rerate
from gateway.settings import PricesSettings
from otel.journal import Bounds, JournalWriter
from otel.journal.lines import kind_of
from tests.gateway_process import attributes, spans_in
from tests.journals import Book as Journal
from tests.recording.test_facts import SETTINGS, exchange

DAY_S = 86_400
FIRST_S = 1_795_200_000 - 1_795_200_000 % DAY_S
"""The bills end on this day and the two after it."""
ALL = Selection(from_unix_s=0, until_unix_s=2**33)


def bills(count: int, seed: int = 3) -> Iterator[Exchange]:
    chance = random.Random(seed)
    for number in range(count):
        found = exchange(chance)
        call = msgspec.structs.replace(
            found.call,
            record_id=f"01890000-0000-7000-8000-{number:012x}",
            trace_id=f"{number + 1:032x}",
            span_id=f"{number + 1:016x}",
            identity=msgspec.structs.replace(found.call.identity, user_id=f"u{number % 3}"),
        )
        ended = (FIRST_S + (number % 3) * DAY_S + number) * 10**9
        call = msgspec.structs.replace(call, started_unix_ns=ended - 10**9)
        yield msgspec.structs.replace(found, call=call, ended_unix_ns=ended)


def make_rated(folder: Path, count: int = 60, *, bytes_max: int = 40_000, seed: int = 3) -> list[Exchange]:
    """Write intents and bills of two writers; return the bills."""
    made = list(bills(count, seed))

    async def write() -> None:
        for boot, part in (("b0", made[: count // 2]), ("b1", made[count // 2 :])):
            with Journal(folder, boot, bytes_max=bytes_max) as journal:
                number = 0
                for one in part:
                    journal.recorder.intent(one.call)
                    number = journal.recorder.settle(one)
                    if number % 20_000 < 2:
                        await journal.durable(number)
                await journal.durable(number)

    asyncio.run(write())
    return made


def book(catalog: Path | None = None, **more: Any) -> Book:
    """Return the book that the bills were made with, and what is changed."""
    return book_of(SETTINGS.model_copy(update={"catalog": catalog, **more}))


def changed(**prices: str) -> Book:
    """Return that book with another rate for `sats` or `nobody`, as `input/output`."""
    overrides: dict[str, dict[str, str | int]] = {**SETTINGS.overrides}
    for model, rates in prices.items():
        first, _, second = rates.partition("/")
        overrides[f"openai/{model}"] = {"input": first, "output": second}
    return book_of(PricesSettings.model_validate({**SETTINGS.model_dump(), "overrides": overrides}))


def writer_of(folder: Path, boot: str = "r0", bytes_max: int = 40_000) -> Any:
    ids = iter(range(10**6))

    def make() -> JournalWriter:
        return JournalWriter(
            folder,
            boot=boot,
            now_ns=lambda: (FIRST_S + 40 * DAY_S) * 10**9,
            segment_id=lambda: f"{boot}{next(ids):030x}",
            bounds=Bounds(segment_bytes_max=bytes_max),
        )

    return make


def run(folder: Path, with_book: Book, selection: Selection = ALL, *, boot: str | None = "r0") -> Outcome:
    """Rerate; nothing is written where `boot` is None."""
    make = None if boot is None else writer_of(folder, boot)
    return asyncio.run(rerate(folder, with_book, selection, make))


def lines(folder: Path, kind: str) -> list[bytes]:
    """Return the lines of a kind, in the order of segments' names."""
    return [
        line
        for path in sorted(folder.glob("*-*-*/*.jsonl"))
        for line in path.read_bytes().splitlines(keepends=True)
        if kind_of(line) == kind
    ]


def revisions(folder: Path) -> list[dict[str, Any]]:
    """Return the attributes of every revision."""
    return [attributes(span) for line in lines(folder, "R") for span in spans_in(json.loads(line))]
