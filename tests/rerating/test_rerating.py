"""A re-rating revises what comes out otherwise, exactly, once, and nothing else; bills are never touched."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.dimensions import DIMENSIONS
from gateway.core.money import pico_to_usd
from gateway.core.usage import Estimate, OtherUsage, Usage
from gateway.pricing.selling import Book
from gateway.recording.journaled import journaled
from gateway.recording.span import billing_span
from gateway.rerating import LOCK, AlreadyRerating, Rerating, Selection, rerate
from otel.journal import JournalUnavailable
from otel.journal.audit import audit_folder
from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.lines import spans_of
from otel.journal.reader import Reader
from otel.journal.recovery import retire, scan
from otel.journal.removal import Remover, Retention
from otel.journal.segments import MARKS, locked
from otel.journal.turn import Lock
from otel.schema import encode_span
from tests.conftest import ROOT
from tests.journals import Book as Journal
from tests.journals import copy_of
from tests.recording.test_facts import exchange
from tests.rerating.rated_journals import (
    ALL,
    DAY_S,
    FIRST_S,
    bills,
    book,
    changed,
    lines,
    make_rated,
    revisions,
    run,
    writer_of,
)

NEW = changed(sats="5/6", nobody="1/2")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rated") / "journal"
    make_rated(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return copy_of(sound, tmp_path / "journal")


def assert_sound(folder: Path, revised: int) -> None:
    report = audit_folder(folder)
    assert report.findings == []
    assert report.facts.revisions == revised


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# the same catalogue


def test_the_same_catalogue_changes_nothing(folder: Path) -> None:
    before = files_of(folder)
    found = run(folder, book())
    assert found.read == found.total.bills == 60
    assert found.total.revised == 0
    assert found.total.old_pico_usd == found.total.new_pico_usd > 0
    after = files_of(folder)
    assert after.pop(str(folder / LOCK)) == b""
    assert after == before


counts = st.dictionaries(st.sampled_from(sorted(DIMENSIONS)), st.integers(0, 10**7), min_size=1, max_size=8)
words = st.sampled_from(["default", "flex", "batch", "priority"])
usages = st.builds(
    Usage,
    counts=counts.map(lambda found: {"input": 7, "output": 3} | found),
    source=st.sampled_from(["provider", "drained", "estimated"]),
    service_tier=st.none() | words,
    reported_cost_usd=st.none() | st.just("0.000191999999"),
    estimate=st.none() | st.just(Estimate(method="m", bounds={"output": (1, 2)})),
    others=st.lists(
        st.builds(OtherUsage, model=st.just("gpt-4o"), reason=st.just("advisor"), counts=counts), max_size=2
    ).map(tuple),
    qualifiers=st.dictionaries(
        st.sampled_from(["speed", "inference_geo", "cache_hit"]), st.sampled_from(["fast", "us", "true"])
    ),
)


def settled_again(usage: Usage, with_book: Book, seed: int, name: str) -> tuple[object, Rerating]:
    """Bill the usage, write the bill, read it back and rate it again."""
    chance = random.Random(seed)
    plain = exchange(chance)
    priced = with_book.charge
    made = _billed(plain, usage, with_book)
    assert priced == with_book.charge
    body = '{"resource":{},"scopeSpans":[{"spans":[' + encode_span(billing_span(made, cache_write_name=name)) + "]}]}"
    again = Rerating(with_book, ALL, {})
    return again.bill(body.encode()), again


def _billed(plain: Any, usage: Usage, with_book: Book) -> Any:
    from_facts = msgspec.structs.replace(plain, reply=msgspec.structs.replace(plain.reply, usage=usage))
    return rebill(from_facts, with_book)
