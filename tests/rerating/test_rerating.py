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
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.assembly import book_of, prices_of
from gateway.billing import Target, bill
from gateway.core.dimensions import DIMENSIONS
from gateway.core.exchange import Exchange
from gateway.core.money import pico_to_usd
from gateway.core.usage import Estimate, OtherUsage, Usage
from gateway.metering.settle import FREE, Ending
from gateway.pricing.selling import Book as RateBook
from gateway.recording.facts import price_facts
from gateway.recording.journaled import journaled
from gateway.recording.revision import rerated
from gateway.recording.span import billing_span
from gateway.rerating import LOCK, AlreadyRerating, Rerating, Selection, rerate, sale_of
from gateway.settings import PricesSettings
from otel.journal import JournalUnavailable
from otel.journal.audit import Logs, audit_folder
from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.lines import spans_of
from otel.journal.reader import Reader
from otel.journal.recovery import retire, scan
from otel.journal.removal import Remover, Retention
from otel.journal.retention import Folder, Policy, Segment, Writer, plan
from otel.journal.segments import MARKS, locked
from otel.journal.turn import Lock
from otel.schema import encode_span, resource_spans_frame
from tests.conftest import ROOT
from tests.journals import Book as Journal
from tests.journals import copy_of
from tests.protocols.test_recorded_usage import readable, usage_of
from tests.recorded import body_of as recorded_body
from tests.recorded import recordings_of
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


def test_another_catalogue_with_the_same_prices_changes_nothing(folder: Path) -> None:
    other = changed(unheard_of="1/2")
    assert other.catalogue.hash != book().catalogue.hash
    assert run(folder, other).total.revised == 0
    assert lines(folder, "R") == []


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


def billed(plain: Exchange, usage: Usage, with_book: RateBook) -> Exchange:
    """Bill other usage of the same request, as the gateway does."""
    identity, attempt = plain.call.identity, plain.attempts[-1]
    return bill(
        prices_of(with_book),
        plain.call,
        Target(
            provider=attempt.provider,
            prices=attempt.provider,
            model=attempt.model,
            key_id=identity.key_id,
            team=identity.team,
        ),
        Ending(outcome="ok"),
        msgspec.structs.replace(plain.reply, usage=usage),
        attempts=plain.attempts,
        ended_unix_ns=plain.ended_unix_ns,
        latency_ns=1,
        time_to_first_chunk_ns=None,
    )


def body_of(made: Exchange, name: str = "cache_write") -> bytes:
    """Return the inside of a settled line's `resourceSpans`."""
    head, tail = resource_spans_frame({"service.name": "spanbill"}, "spanbill", "1")
    return f"{head}{encode_span(billing_span(made, cache_write_name=name))}{tail}".encode()


def rated_twice(made: Exchange, with_book: RateBook, name: str = "cache_write") -> None:
    """Hold that a bill rated from its journaled span has the same lines, byte for byte."""
    again = Rerating(with_book, ALL, {})
    assert again.bill(body_of(made, name)) is None
    assert again.outcome.total.bills == 1
    if made.charge is None or made.status == "unmetered":
        return
    span = journaled(body_of(made, name))
    facts = price_facts(span.attributes, span.ended_unix_ns)
    assert facts is not None
    _, stated = rerated(facts.usage, with_book.charge(sale_of(facts), facts.usage), 1)
    assert "billing.cost.lines" in stated or not made.charge.lines
    for attribute, value in stated.items():
        assert span.attributes[attribute] == value


BOOK = book()
SHIPPED = book_of(PricesSettings())


@settings(max_examples=150, deadline=None)
@given(usages, st.integers(0, 10**6), st.sampled_from(["cache_write", "cache_creation"]))
def test_generated_usage_is_rated_again_to_the_same_lines(usage: Usage, seed: int, name: str) -> None:
    rated_twice(billed(exchange(random.Random(seed)), usage, BOOK), BOOK, name)


def test_recorded_usage_is_rated_again_to_the_same_lines(recordings: Path) -> None:
    chance = random.Random(11)
    rated = 0
    for file, recording in recordings_of(recordings):
        if not readable(file, recording["api"]):
            continue
        usage = usage_of(file, recording, [recorded_body(recording)])
        if usage is not None:
            made = billed(exchange(chance), usage, BOOK)
            rated_twice(made, BOOK)
            rated += made.charge is not None
    assert rated > 500


# another catalogue


def test_a_revision_has_old_and_new_cost_and_their_exact_difference(folder: Path) -> None:
    bills_before = lines(folder, "S")
    costs = {
        attributes["billing.record.id"]: attributes.get("billing.cost.usd")
        for attributes in [journaled(spans_of(line[:-1]) or b"").attributes for line in bills_before]
    }
    found = run(folder, NEW)
    made = revisions(folder)
    assert 3 < len(made) == found.total.revised < found.total.bills
    assert lines(folder, "S") == bills_before
    total = Decimal(0)
    for one in made:
        assert one["billing.revision.number"] == 1
        old, new = one.get("billing.revision.old_cost_usd"), one.get("billing.revision.cost_usd")
        assert old == costs[one["billing.revision.of"]]
        delta = Decimal(one["billing.revision.delta_usd"])
        assert delta == Decimal(new or 0) - Decimal(old or 0)
        total += delta
        if new is not None:
            parts = [*one["billing.cost.lines"], *one.get("billing.cost.adjustments", [])]
            assert sum(Decimal(json.loads(part)["usd"]) for part in parts) == Decimal(new)
        assert "billing.record.id" not in one
        assert not [name for name in one if name.startswith("gen_ai.usage.")]
    assert total == Decimal(pico_to_usd(found.total.new_pico_usd - found.total.old_pico_usd))
    for rows in (found.by_model, found.by_user, found.by_day):
        assert sum(row.new_pico_usd for row in rows.values()) == found.total.new_pico_usd
        assert sum(row.bills for row in rows.values()) == 60
    assert len(found.by_user) == len(found.by_day) == 3
    assert {("unpriced", "final"), ("estimated", "final")} & set(found.status)
    assert_sound(folder, len(made))


def test_the_same_journal_and_catalogue_give_the_same_bytes(sound: Path, tmp_path: Path) -> None:
    first, second = copy_of(sound, tmp_path / "a"), copy_of(sound, tmp_path / "b")
    run(first, NEW, boot="r0")
    run(second, changed(sats="5/6", nobody="1/2"), boot="rf")
    assert lines(first, "R") == lines(second, "R")
    assert len(lines(first, "R")) > 3


def test_a_second_run_writes_nothing_and_a_dry_run_never_does(folder: Path) -> None:
    before = files_of(folder)
    dry = run(folder, NEW, boot=None)
    assert files_of(folder) == before
    wet = run(folder, NEW)
    assert dry == wet
    after = files_of(folder)
    again = run(folder, NEW, boot="r1")
    assert files_of(folder) == after
    assert again.total.revised == 0
    assert again.total.old_pico_usd == wet.total.new_pico_usd


def test_revisions_of_a_bill_follow_on_one_another(folder: Path) -> None:
    run(folder, NEW)
    dearer = run(folder, changed(sats="7/8", nobody="1/2"), boot="r1")
    back = run(folder, book(), boot="r2")
    assert dearer.total.revised > 0
    assert back.total.new_pico_usd == run(folder, book(), boot="r3").total.old_pico_usd
    by_bill: dict[str, list[dict[str, Any]]] = {}
    for one in revisions(folder):
        by_bill.setdefault(one["billing.revision.of"], []).append(one)
    longest = max(by_bill.values(), key=len)
    assert [one["billing.revision.number"] for one in longest] == [1, 2, 3]
    assert longest[2].get("billing.revision.cost_usd") == longest[0].get("billing.revision.old_cost_usd")
    first = run(folder, book(), boot=None)
    assert first.total.old_pico_usd == sum(
        exchange.charge.cost_pico_usd for exchange in bills(60) if exchange.charge is not None
    )
    assert_sound(folder, len(revisions(folder)))


def test_a_price_of_last_month_changes_last_month_only(folder: Path) -> None:
    until = FIRST_S + DAY_S
    found = run(folder, NEW, Selection(from_unix_s=FIRST_S, until_unix_s=until))
    assert found.read == 60
    assert found.total.bills == 20
    assert list(found.by_day) == ["2026-11-20"]
    edge = run(folder, NEW, Selection(from_unix_s=FIRST_S + 3, until_unix_s=FIRST_S + 6), boot=None)
    assert edge.total.bills == 1, "from is included, to is not"
    exact = run(folder, NEW, Selection(from_unix_s=FIRST_S + 3, until_unix_s=FIRST_S + 7), boot=None)
    assert exact.total.bills == 2


def test_model_and_user_choose(folder: Path) -> None:
    one = run(folder, NEW, Selection(from_unix_s=0, until_unix_s=2**33, user="u1"), boot=None)
    assert list(one.by_user) == ["u1"]
    sats = run(folder, NEW, Selection(from_unix_s=0, until_unix_s=2**33, model="sats"), boot=None)
    assert 0 < sats.total.bills < 60
    nobody = run(folder, NEW, Selection(from_unix_s=0, until_unix_s=2**33, model="unheard-of"), boot=None)
    assert nobody.total.bills == 0
    assert nobody.read == 60


def settled(usage: Usage | None, status: str, charge: object, with_book: RateBook) -> Rerating:
    plain = exchange(random.Random(1))
    reply = msgspec.structs.replace(plain.reply, usage=usage)
    made = msgspec.structs.replace(plain, reply=reply, status=status, charge=charge)
    again = Rerating(with_book, ALL, {})
    assert again.bill(body_of(made)) is None
    return again


def test_unmetered_and_free_bills_stay_what_they_are() -> None:
    usage = Usage(counts={"input": 10, "output": 10})
    assert settled(None, "unmetered", None, NEW).outcome.status == {("unmetered", "unmetered"): 1}
    assert settled(usage, "unmetered", None, NEW).outcome.total.without_new == 1
    free = settled(usage, "final", FREE, NEW).outcome
    assert free.status == {("final", "final"): 1}
    assert free.skipped == {"free of charge": 1}


def test_an_estimated_bill_stays_estimated_and_an_unpriced_one_is_priced() -> None:
    chance = random.Random(2)
    seen = set()
    for _ in range(200):
        plain = exchange(chance)
        usage = msgspec.structs.replace(plain.reply.usage, source=chance.choice(["provider", "estimated"]))
        made = billed(plain, usage, SHIPPED)
        again = Rerating(NEW, ALL, {})
        due = again.bill(body_of(made))
        ((old, new),) = again.outcome.status
        if due is not None and new != "unpriced":
            by_fallback = journaled(due[1].encode()).attributes["billing.cost.source"] == "fallback"
            assert (new == "estimated") == (usage.source == "estimated" or by_fallback)
            seen.add((old, new, usage.source))
    assert {("unpriced", "final", "provider"), ("unpriced", "estimated", "estimated")} <= seen, seen


# interruptions and others on the folder

KILLED = """
import os, sys
from pathlib import Path
from otel.journal import JournalWriter
from tests.rerating.rated_journals import changed, run
left = int(sys.argv[2])
append = JournalWriter.append
def dying(self, *record):
    global left
    if not left:
        os._exit(9)
    left -= 1
    return append(self, *record)
JournalWriter.append = dying
run(Path(sys.argv[1]), changed(sats="5/6", nobody="1/2"))
"""


@pytest.mark.parametrize("written", [0, 1, 4])
def test_killed_and_run_again_it_writes_what_lacks_and_no_more(
    sound: Path, tmp_path: Path, written: int
) -> None:
    whole, killed = copy_of(sound, tmp_path / "whole"), copy_of(sound, tmp_path / "killed")
    run(whole, NEW)
    command = [sys.executable, "-c", KILLED, str(killed), str(written)]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert ended.returncode == 9
    assert len(lines(killed, "R")) == written
    run(killed, NEW, boot="r1")
    spans = [sorted(spans_of(line[:-1]) or b"" for line in lines(path, "R")) for path in (whole, killed)]
    assert spans[0] == spans[1]
    assert_sound(killed, len(lines(whole, "R")))


def test_a_disk_that_refuses_leaves_what_was_written_and_says_so(folder: Path) -> None:
    make = writer_of(folder)

    def full() -> Any:
        writer = make()
        append = writer.append

        def refusing(kind: str, record_id: str, body: str) -> int:
            if writer.number == 2:
                raise JournalUnavailable("the disk is full")
            return int(append(kind, record_id, body))

        writer.append = refusing
        return writer

    with pytest.raises(JournalUnavailable, match="full"):
        asyncio.run(rerate(folder, NEW, ALL, full))
    assert len(lines(folder, "R")) == 2
    left = run(folder, NEW, boot="r1")
    assert left.total.revised > 0
    assert_sound(folder, len(revisions(folder)))


def test_two_at_a_time_exclude_one_another_and_a_dry_run_does_not_wait(folder: Path) -> None:
    lock = Lock(folder / LOCK)
    assert lock.take()
    with pytest.raises(AlreadyRerating):
        run(folder, NEW)
    assert lines(folder, "R") == []
    assert run(folder, NEW, boot=None).total.revised > 0
    lock.release()
    assert run(folder, NEW).total.revised > 0


async def test_beside_a_running_gateway_only_its_durable_bills_are_revised(folder: Path) -> None:
    late = list(bills(63))[60:]
    sats = [one for one in bills(400, seed=9) if one.call.model == "sats" and one.charge is not None][:2]
    assert len(sats) == 2
    first, second = [
        msgspec.structs.replace(
            one,
            call=msgspec.structs.replace(
                one.call,
                record_id=found.call.record_id,
                trace_id=found.call.trace_id,
                span_id=found.call.span_id,
            ),
        )
        for one, found in zip(sats, late, strict=False)
    ]
    with locked(folder), Journal(folder, "b2") as gateway:
        gateway.recorder.intent(first.call)
        await gateway.durable(gateway.recorder.settle(first))
        found = await rerate(folder, NEW, ALL, writer_of(folder))
        assert found.read == 61
        assert first.call.record_id in {one["billing.revision.of"] for one in revisions(folder)}
        # the gateway finds a dead writer with nothing open, and forgets it like any other
        left = scan(folder, Files())
        assert "r0-0" in left.dead
        assert not left.open_intents
        gateway.writer.take_over(left.heads)
        retire(folder, left.dead, Files())
        gateway.recorder.intent(second.call)
        await gateway.durable(gateway.recorder.settle(second))
        again = await rerate(folder, NEW, ALL, writer_of(folder, "r1"))
        assert again.read == 62
        assert audit_folder(folder).findings == []
    assert_sound(folder, len(revisions(folder)))


# readers


def delivered(folder: Path) -> Iterator[bytes]:
    cursor = Cursor(folder / "cursors" / "otlp.json")
    for batch in Reader(folder, cursor).batches(100, 1 << 20):
        yield from batch.spans
        cursor.move(batch.segment, batch.end, batch.writer, batch.seen)
    cursor.save()


def test_a_revision_is_shipped_once_behind_a_cursor_that_has_passed_its_bill(folder: Path) -> None:
    assert len(list(delivered(folder))) == 60
    run(folder, NEW)
    new = list(delivered(folder))
    assert new == [spans_of(line[:-1]) for line in lines(folder, "R")]
    assert list(delivered(folder)) == []


def test_retention_takes_bills_before_their_revisions_and_says_what_was_not_touched(folder: Path) -> None:
    run(folder, NEW)
    list(delivered(folder))
    left = scan(folder, Files())
    retire(folder, left.dead, Files())
    first = min(path.stat().st_size for path in folder.glob("*-*-*/b*.jsonl"))
    whole = sum(path.stat().st_size for path in folder.glob("*-*-*/*.jsonl"))
    remover = Remover(
        folder,
        Retention(bytes_max=whole - first),
        consumers=frozenset(),
        now_ns=lambda: 2**62,
        pause=lambda: None,
    )
    assert remover.run() == 1
    removed = json.loads((folder / "removed.jsonl").read_text())
    assert removed["segment"].partition("/")[2].startswith("b")
    assert removed["bills"] > 0
    report = audit_folder(folder)
    assert report.complete
    assert report.intact
    assert "revision_kept" in report.counts
    day = removed["segment"].partition("/")[0]
    # the folder's days are those of the writer's clock, which stands apart from the bills' here
    found = run(folder, book(), Selection(from_unix_s=0, until_unix_s=2**33), boot="r1")
    assert found.removed == removed["bills"], day
    assert found.read == 60 - removed["bills"]
    report = audit_folder(folder)
    assert report.complete
    assert report.intact


@given(
    st.lists(st.tuples(st.sampled_from(["b0-0", "b1-0", "r0-0", "r1-0"]), st.integers(1, 9)), max_size=12),
    st.integers(0, 12),
    st.sets(st.integers(0, 11), max_size=2),
)
def test_no_segment_of_revisions_goes_before_one_of_bills_of_its_day_or_earlier(
    made: list[tuple[str, int]], count: int, stay: set[int]
) -> None:
    segments = tuple(
        Segment(name=f"2026-11-0{day}/{writer}-{number:06d}.jsonl", writer=writer, number=number, bytes=1)
        for number, (writer, day) in enumerate(sorted(made, key=lambda pair: pair[1]))
    )
    folder = Folder(
        segments=segments,
        writers={name: Writer(retired=True, oldest_open=None) for name, _ in made},
        consumers={"otlp": {segment.name: 1 for segment in segments}},
        quarantined=frozenset(segment.name for segment in segments if segment.number in stay),
    )
    gone = plan(folder, Policy(bytes_max=0), count).remove
    assert stay or len(gone) == min(count, len(segments))
    for place, segment in enumerate(gone):
        if segment.writer.startswith("r"):
            left = set(segments) - set(gone[: place + 1])
            assert not [s for s in left if s.writer.startswith("b") and s.day <= segment.day]


# verify


def spoil(folder: Path, old: bytes, new: bytes) -> dict[str, int]:
    """Alter the first revision that has `old`, well chained and summed; return what verify finds."""
    run(folder, NEW, boot="r0")
    made = lines(folder, "R")
    target = next(line for line in made if old in line)
    (number,) = [n for n, line in enumerate(made) if line == target]
    bodies = [(json.loads(line)["j"]["id"], (spans_of(line[:-1]) or b"").decode()) for line in made]
    record_id, body = bodies[number]
    assert body.count(old.decode()) >= 1
    bodies[number] = record_id, body.replace(old.decode(), new.decode(), 1)
    for path in folder.glob("*-*-*/r0-*"):
        path.unlink()
    (folder / MARKS / "r0-0").unlink()
    write(folder, bodies)
    return audit_folder(folder).counts


def write(folder: Path, bodies: list[tuple[str, str]]) -> None:
    async def append() -> None:
        writer = writer_of(folder, "rx")()
        writer.open()
        for record_id, body in bodies:
            writer.append("R", record_id, body)
        await writer.durable(writer.number)
        writer.close()

    asyncio.run(append())


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (
            b'"billing.revision.delta_usd","value":{"stringValue":"',
            b'"billing.revision.delta_usd","value":{"stringValue":"9',
            "revision",
        ),
        (
            b'"billing.revision.number","value":{"intValue":"1"',
            b'"billing.revision.number","value":{"intValue":"2"',
            "revision",
        ),
        (b'"links":[{"traceId":"', b'"links":[{"traceId":"f', "revision"),
        (
            b'"billing.revision.old_status","value":{"stringValue":"estimated"',
            b'"billing.revision.old_status","value":{"stringValue":"final"',
            "revision",
        ),
        (
            b'"billing.revision.cost_usd","value":{"stringValue":"',
            b'"billing.revision.cost_usd","value":{"stringValue":"7',
            "sum",
        ),
        (b'"billing.revision.old_catalog"', b'"billing.record.id"', "revision"),
        (
            b'"billing.revision.of","value":{"stringValue":"0189',
            b'"billing.revision.of","value":{"stringValue":"0188',
            "record_id",
        ),
        (
            b'"billing.status","value":{"stringValue":"final"',
            b'"billing.status","value":{"stringValue":"unpriced"',
            "status",
        ),
    ],
)
def test_verify_finds_a_revision_that_contradicts_itself_or_its_bill(
    folder: Path, old: bytes, new: bytes, kind: str
) -> None:
    assert kind in spoil(folder, old, new)


def test_verify_finds_a_revision_that_stands_twice_and_one_without_a_bill(folder: Path) -> None:
    run(folder, NEW)
    first = lines(folder, "R")[0]
    record_id, body = json.loads(first)["j"]["id"], (spans_of(first[:-1]) or b"").decode()
    other = "0" * len(record_id)
    write(folder, [(record_id, body), (other, body.replace(record_id, other))])
    report = audit_folder(folder)
    assert report.counts == {"revision": 1, "revision_without_bill": 1}
    assert not report.complete
    assert not report.intact


def test_a_collector_s_log_is_held_to_the_revisions_of_the_journal(folder: Path, tmp_path: Path) -> None:
    run(folder, NEW)
    log = tmp_path / "bills.jsonl"
    whole = [b'{"resourceSpans":[%b]}' % spans for spans in delivered(folder)]

    def counts_with(kept: list[bytes]) -> dict[str, int]:
        log.write_bytes(b"".join(line + b"\n" for line in kept))
        return audit_folder(folder, logs=Logs(collector=log)).counts

    assert counts_with(whole) == {}
    (first, *_) = [line for line in whole if b"billing.revision.of" in line]
    assert counts_with([line for line in whole if line != first]) == {"collector_missing": 1}
    altered = first.replace(
        b'"billing.revision.number","value":{"intValue":"1"',
        b'"billing.revision.number","value":{"intValue":"2"',
    )
    assert altered != first
    assert counts_with([altered if line == first else line for line in whole]) == {"collector_differs": 1}
    assert counts_with([*whole, first]) == {"collector_again": 1}
