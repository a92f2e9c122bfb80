"""The audit says of a sound journal that it is, and of a spoiled one what is wrong and where."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.errors import GatewayFault
from otel.journal import JournalUnavailable
from otel.journal.audit import KINDS, Report, audit_folder
from otel.journal.audit import folder as folder_module
from otel.journal.audit.findings import SHOWN_MAX
from otel.journal.audit.scan import WriterFile, in_order, lines_of
from otel.journal.audit.sequence import RING
from otel.journal.files import Files
from otel.journal.lines import GENESIS, LINE_BYTES_MAX, chain, encode_line, parse
from otel.journal.policy import UNDURABLE_MAX
from otel.journal.recovery import retire, scan
from otel.journal.segments import mark_path
from tests.journals import (
    CRC_BYTES,
    DEAD,
    LAST,
    NOON_NS,
    Book,
    Laid,
    Row,
    append,
    append_bill,
    body_of,
    copy_of,
    header_of,
    lay_out,
    make_journal,
    manifest_line,
    names,
    record_id,
    reheader,
    remove,
    replace,
    resealed,
    rows,
)

Where = tuple[str, int | None]
Plant = Callable[[Path], Where]
"""Spoils a folder and returns the place (segment, offset) that the audit must name."""

REPEATED = 7
"""The record of the dead writer whose sync failed, and which was written again."""
FAULTS: dict[str, tuple[Plant, str, set[str]]] = {}


def fault(kind: str, *others: str) -> Callable[[Plant], Plant]:
    """Register a fault: the kind that must be found at its place, and what else it must cause."""

    def register(plant: Plant) -> Plant:
        FAULTS[plant.__name__] = (plant, kind, {kind, *others})
        return plant

    return register


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_journal(tmp_path_factory.mktemp("sound") / "journal")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return copy_of(sound, tmp_path / "journal")


def breaches(report: Report) -> set[str]:
    return {kind for kind in report.counts if KINDS[kind].verdict != "note"}


def place(row: Row) -> Where:
    return row.segment, row.offset


def row_of(folder: Path, number: int, kind: str) -> Row:
    return next(row for row in rows(folder) if row.id == record_id(number) and row.kind == kind)


def in_writer(folder: Path, number: int, writer: str = DEAD) -> Row:
    """Return the line with a number."""
    return next(row for row in rows(folder, writer) if row.n == number)


# damage, lines taken out, put in, altered


@fault("damage", "gap", "open_intent")
def a_byte_of_a_bill_flipped(folder: Path) -> Where:
    row = row_of(folder, 5, "S")
    replace(folder, row, row.raw[:400] + bytes([row.raw[400] ^ 1]) + row.raw[401:])
    return place(row)


@fault("damage")
def the_second_copy_of_a_line_damaged(folder: Path) -> Where:
    first, second = (row for row in rows(folder, DEAD) if row.n == REPEATED)
    assert first.raw == second.raw
    replace(folder, second, second.raw[:300] + bytes([second.raw[300] ^ 1]) + second.raw[301:])
    return place(second)


@fault("order")
def the_second_copy_of_a_line_deleted(folder: Path) -> Where:
    _, second = (row for row in rows(folder, DEAD) if row.n == REPEATED)
    replace(folder, second)
    return place(second)


@fault("damage")
def a_line_of_garbage_put_in(folder: Path) -> Where:
    row = in_writer(folder, 5)
    replace(folder, row, b"garbage\n", row.raw)
    return place(row)


@fault("damage")
def the_last_newline_of_the_journal_altered(folder: Path) -> Where:
    row = rows(folder, LAST)[-1]
    replace(folder, row, row.raw[:-1] + b"?")
    return place(row)


@fault("damage")
def a_stretch_without_newlines_longer_than_any_line(folder: Path) -> Where:
    row = rows(folder, LAST)[-1]
    with (folder / row.segment).open("ab") as file:
        file.write(b"x" * (LINE_BYTES_MAX + 2_000_000) + b"\n")
    return row.segment, row.offset + len(row.raw)


@fault("damage")
def a_header_damaged(folder: Path) -> Where:
    row = header_of(folder, names(folder, DEAD)[3])
    replace(folder, row, row.raw.replace(b'"boot"', b'"boof"'))
    return place(row)


@fault("gap")
def a_progress_line_deleted(folder: Path) -> Where:
    row, after = in_writer(folder, 5), in_writer(folder, 6)
    assert row.kind == "P"
    replace(folder, row)
    return after.segment, after.offset - len(row.raw)


@fault("gap", "open_intent")
def a_bill_deleted(folder: Path) -> Where:
    row, after = in_writer(folder, 6), in_writer(folder, 7)
    assert row.kind == "S"
    replace(folder, row)
    return after.segment, after.offset - len(row.raw)


@fault("bill_without_intent", "gap", "progress_without_intent")
def an_intent_deleted(folder: Path) -> Where:
    row = in_writer(folder, 4)
    assert row.kind == "I"
    replace(folder, row)
    after = in_writer(folder, 6)
    return place(after)


@fault("chain")
def a_bill_altered_with_a_new_checksum(folder: Path) -> Where:
    row = row_of(folder, 5, "S")
    replace(folder, row, resealed(row.raw, b'"service.name"', b'"service.nome"'))
    return place(row)


@fault("chain")
def the_last_line_of_a_segment_altered_with_a_new_checksum(folder: Path) -> Where:
    row = [row for row in rows(folder, DEAD) if row.segment == names(folder, DEAD)[3]][-1]
    replace(folder, row, resealed(row.raw, b'"service.name"', b'"service.nome"'))
    return place(row)


@fault("head")
def the_last_line_of_a_dead_writer_altered_with_a_new_checksum(folder: Path) -> Where:
    row = rows(folder, DEAD)[-1]
    replace(folder, row, resealed(row.raw, b'"service.name"', b'"service.nome"'))
    return row.segment, None


@fault("head")
def a_record_added_to_a_dead_writer(folder: Path) -> Where:
    last = rows(folder, DEAD)[-1]
    with (folder / last.segment).open("ab") as file:
        body = json.dumps({"record_id": record_id(0)})
        file.write(encode_line("P", record_id(21), last.n + 1, chain(last.raw), body))
    header = header_of(folder, names(folder, LAST)[0])
    return place(header)


@fault("duplicate")
def a_line_twice_in_a_row(folder: Path) -> Where:
    row = in_writer(folder, 5)
    replace(folder, row, row.raw, row.raw)
    return row.segment, row.offset + len(row.raw)


@fault("duplicate")
def a_line_copied_into_a_later_segment(folder: Path) -> Where:
    row, later = in_writer(folder, 5), in_writer(folder, 52)
    replace(folder, later, later.raw, row.raw)
    return later.segment, later.offset + len(later.raw)


@fault("rewrite", "conflict", "chain")
def a_second_line_with_the_number_of_another(folder: Path) -> Where:
    row = in_writer(folder, 6)
    replace(folder, row, resealed(row.raw, b'"service.name"', b'"service.nome"'), row.raw)
    added = len(resealed(row.raw, b'"service.name"', b'"service.nome"'))
    return row.segment, row.offset + added


@fault("rewrite", "intent_twice", "chain")
def a_line_rewritten_differently_after_a_failed_sync(folder: Path) -> Where:
    again = [row for row in rows(folder, DEAD) if row.n == REPEATED]
    assert len(again) == 2
    replace(folder, again[1], resealed(again[1].raw, b'"alice"', b'"mallo"'))
    return place(again[1])


@fault("order")
def two_lines_swapped(folder: Path) -> Where:
    first, second = in_writer(folder, 5), in_writer(folder, 6)
    replace(folder, first, second.raw)
    path = folder / first.segment
    data = path.read_bytes()
    at = first.offset + len(second.raw)
    path.write_bytes(data[:at] + first.raw + data[at + len(second.raw) :])
    return first.segment, first.offset + len(second.raw)


# segments


@fault("segment_missing")
def a_segment_deleted(folder: Path) -> Where:
    gone, after = names(folder, LAST)[1:3]
    (folder / gone).unlink()
    return place(header_of(folder, after))


@fault("tail_missing", "bill_without_intent")
def the_last_segment_of_a_dead_writer_deleted(folder: Path) -> Where:
    (folder / names(folder, DEAD)[-1]).unlink()
    return place(header_of(folder, names(folder, LAST)[0]))


@fault("tail_missing", "bill_without_intent")
def a_whole_dead_writer_deleted(folder: Path) -> Where:
    for name in names(folder, DEAD):
        (folder / name).unlink()
    return place(header_of(folder, names(folder, LAST)[0]))


@fault("tail_missing", "open_intent")
def a_dead_writers_last_line_cut_off(folder: Path) -> Where:
    replace(folder, rows(folder, DEAD)[-1])
    return place(header_of(folder, names(folder, LAST)[0]))


@fault("gap", "open_intent")
def a_segment_cut_within_a_line(folder: Path) -> Where:
    name, after = names(folder, DEAD)[3:5]
    path = folder / name
    path.write_bytes(path.read_bytes()[:-700])
    return place(header_of(folder, after))


@fault("tail_missing")
def less_than_a_writer_said_was_durable(folder: Path) -> Where:
    name = names(folder, LAST)[-1]
    size = (folder / name).stat().st_size
    watermark(folder, LAST, len(names(folder, LAST)), size + 10)
    return name, size


@fault("segment_missing")
def the_segment_missing_that_a_writer_said_was_durable(folder: Path) -> Where:
    watermark(folder, LAST, len(names(folder, LAST)) + 1, 10)
    return f"writers/{LAST}", None


@fault("header")
def a_segment_renamed(folder: Path) -> Where:
    name = names(folder, LAST)[-1]
    to = name.replace("000005", "000006")
    (folder / name).rename(folder / to)
    return to, 0


@fault("header")
def a_segment_moved_to_another_day(folder: Path) -> Where:
    name = names(folder, LAST)[-1]
    to = "2024-10-05/" + name.partition("/")[2]
    (folder / "2024-10-05").mkdir()
    (folder / name).rename(folder / to)
    return to, 0


@fault("segment_twice")
def a_segment_copied_to_another_day(folder: Path) -> Where:
    name = names(folder, DEAD)[2]
    to = "2024-10-05/" + name.partition("/")[2]
    (folder / "2024-10-05").mkdir()
    shutil.copyfile(folder / name, folder / to)
    return to, None


@fault("stray")
def a_file_of_another_name(folder: Path) -> Where:
    name = names(folder, DEAD)[2]
    shutil.copyfile(folder / name, (folder / name).parent / "copy of segment 3.jsonl")
    return name.partition("/")[0] + "/copy of segment 3.jsonl", None


@fault("unreadable", "segment_missing")
def a_segment_that_cannot_be_read(folder: Path) -> Where:
    name = names(folder, LAST)[1]
    (folder / name).unlink()
    (folder / name).mkdir()
    return name, None


@fault("header")
def a_segment_without_its_header(folder: Path) -> Where:
    row = header_of(folder, names(folder, DEAD)[3])
    replace(folder, row)
    return row.segment, 0


@fault("damage", "gap")
def the_beginning_of_a_segment_damaged(folder: Path) -> Where:
    path = folder / names(folder, DEAD)[3]
    lines = path.read_bytes().splitlines(keepends=True)
    lost = sum(map(len, lines[:4]))
    path.write_bytes(b"x" * (lost - 1) + b"\n" + b"".join(lines[4:]))
    return names(folder, DEAD)[3], 0


@fault("header")
def a_header_in_the_midst_of_a_segment(folder: Path) -> Where:
    row, header = in_writer(folder, 52), header_of(folder, names(folder, DEAD)[3])
    replace(folder, row, header.raw, row.raw)
    return place(row)


@fault("header")
def a_header_that_hides_its_predecessors(folder: Path) -> Where:
    return place(reheader(folder, header_of(folder, names(folder, DEAD)[3]), previous_segment=None))


@fault("header")
def a_header_that_follows_an_older_segment(folder: Path) -> Where:
    older = names(folder, DEAD)[0].partition("/")[2]
    return place(reheader(folder, header_of(folder, names(folder, DEAD)[3]), previous_segment=older))


@fault("header")
def a_header_that_skips_a_number(folder: Path) -> Where:
    header = header_of(folder, names(folder, DEAD)[3])
    return place(reheader(folder, header, n=header_number(folder, header) + 1))


@fault("header")
def a_header_with_another_chain(folder: Path) -> Where:
    header = header_of(folder, names(folder, DEAD)[3])
    return place(reheader(folder, header, p="1" * 16))


@fault("header")
def a_header_of_another_format(folder: Path) -> Where:
    return place(reheader(folder, header_of(folder, names(folder, DEAD)[3]), v=2))


@fault("header")
def a_header_that_calls_durable_what_comes_later(folder: Path) -> Where:
    reheader(folder, header_of(folder, names(folder, DEAD)[2]), durable=10**6)
    return place(header_of(folder, names(folder, DEAD)[2]))


@fault("header", "order")
def a_segment_passed_over_that_was_durable(folder: Path) -> Where:
    before, passed, after = names(folder, DEAD)[1:4]
    return place(pass_over(folder, before, passed, after))


@fault("gap", "open_intent", "order")
def a_bill_deleted_in_a_segment_that_claims_to_be_passed_over(folder: Path) -> Where:
    before, passed, after = names(folder, DEAD)[1:4]
    first = header_number(folder, header_of(folder, passed))
    bill = next(row for row in rows(folder, DEAD) if row.segment == passed and row.kind == "S")
    replace(folder, bill)
    for name in (passed, after):
        reheader(folder, header_of(folder, name), durable=first - 1)
    pass_over(folder, before, passed, after)
    return place(in_writer(folder, bill.n + 1))


# bills and intents


@fault("bill_without_intent")
def a_bill_that_nobody_asked_for(folder: Path) -> Where:
    return place(append(folder, "S", 500, body_of(folder, 30).replace(record_id(30), record_id(500))))


@fault("conflict", "bill_without_intent")
def two_bills_that_nobody_asked_for(folder: Path) -> Where:
    text = body_of(folder, 30).replace(record_id(30), record_id(500))
    append(folder, "S", 500, text)
    return place(append(folder, "S", 500, text.replace('"alice"', '"mallory"')))


@fault("progress_without_intent")
def progress_of_nothing(folder: Path) -> Where:
    return place(append(folder, "P", 500, "{}"))


@fault("order")
def progress_behind_the_bill(folder: Path) -> Where:
    return place(append(folder, "P", 30, "{}"))


@fault("intent_twice")
def an_intent_for_what_is_billed(folder: Path) -> Where:
    return place(append(folder, "I", 30, "{}"))


@fault("intent_twice")
def a_second_intent_before_the_bill(folder: Path) -> Where:
    append(folder, "I", 500, "{}")
    return place(append(folder, "I", 500, "{}"))


@fault("order")
def a_bill_before_its_intent(folder: Path) -> Where:
    append(folder, "S", 500, body_of(folder, 30).replace(record_id(30), record_id(500)))
    return place(append(folder, "I", 500, "{}"))


@fault("bill_twice")
def the_same_bill_a_second_time(folder: Path) -> Where:
    return place(append(folder, "S", 5, body_of(folder, 5)))


@fault("conflict")
def another_bill_for_one_id(folder: Path) -> Where:
    return place(append(folder, "S", 5, body_of(folder, 5).replace('"alice"', '"mallory"')))


@fault("conflict")
def another_bill_for_a_recovered_id(folder: Path) -> Where:
    return place(append(folder, "S", 8, body_of(folder, 8).replace('"alice"', '"mallory"')))


@fault("other_ids")
def a_bill_in_another_trace_than_its_intent(folder: Path) -> Where:
    return place(append_bill(folder, 1, lambda text: text.replace('"traceId":"0', '"traceId":"f')))


@fault("record_id")
def a_span_of_another_bill(folder: Path) -> Where:
    return place(append_bill(folder, 1, lambda text: text.replace(record_id(1001), record_id(7))))


@fault("record_id")
def an_intent_of_another_call(folder: Path) -> Where:
    append(folder, "I", 500, json.dumps({"record_id": record_id(501)}))
    return place(rows(folder, LAST)[-1])


@fault("unknown_kind")
def a_record_of_an_unknown_kind(folder: Path) -> Where:
    return place(append(folder, "X", 500, "{}"))


@fault("not_a_record")
def a_line_with_a_good_checksum_that_is_no_record(folder: Path) -> Where:
    last = rows(folder, LAST)[-1]
    data = b'{"resourceSpans":[]'
    with (folder / last.segment).open("ab") as file:
        file.write(b'%b,"crc":"%08x"}\n' % (data, crc32(data)))
    return last.segment, last.offset + len(last.raw)


@fault("not_otlp")
def two_spans_in_one_bill(folder: Path) -> Where:
    return place(append_bill(folder, 1, lambda text: f"{text},{text}"))


@fault("not_otlp")
def a_bill_without_a_span(folder: Path) -> Where:
    append(folder, "I", 500, "{}")
    return place(append(folder, "S", 500, ""))


@fault("not_otlp")
def an_intent_that_a_collector_would_bill(folder: Path) -> Where:
    row = append(folder, "I", 500, "{}")
    spans = b',"resourceSpans":[' + body_of(folder, 30).encode() + b"]"
    data = row.raw[: -CRC_BYTES - 1] + spans
    path = folder / row.segment
    path.write_bytes(path.read_bytes()[: row.offset] + b'%b,"crc":"%08x"}\n' % (data, crc32(data)))
    return place(row)


@fault("not_otlp")
def a_member_that_otlp_does_not_know(folder: Path) -> Where:
    return place(append_bill(folder, 1, lambda text: text.replace('"kind":3', '"kind":3,"prompt":"hello"')))


@fault("not_otlp")
def a_count_that_is_a_json_number(folder: Path) -> Where:
    return place(append_bill(folder, 1, lambda text: text.replace('"intValue":"130"', '"intValue":130')))


@fault("not_otlp")
def an_attribute_twice(folder: Path) -> Where:
    pair = '{"key":"billing.outcome","value":{"stringValue":"ok"}}'
    return place(append_bill(folder, 1, lambda text: text.replace(pair, f"{pair},{pair}")))


@fault("not_otlp")
def an_end_before_the_start(folder: Path) -> Where:
    return place(
        append_bill(folder, 1, lambda text: text.replace('endTimeUnixNano":"1', 'endTimeUnixNano":"0'))
    )


@fault("amount")
def a_negative_count(folder: Path) -> Where:
    return place(append_bill(folder, 1, lambda text: text.replace('"intValue":"130"', '"intValue":"-130"')))


# sums


COST, LINE = "0.00003000030", "0.00003000009"


def sum_of(text: str, name: str) -> str:
    """Return the string value of a cost attribute."""
    key = f'{{"key":"{name}","value":{{"stringValue":"'
    start = text.index(key) + len(key)
    return text[start : text.index('"', start)]


def with_amount(name: str, change: Callable[[str], str]) -> Callable[[str], str]:
    def alter(text: str) -> str:
        amount = sum_of(text, name)
        key = f'{{"key":"{name}","value":{{"stringValue":"'
        return text.replace(f'{key}{amount}"', f'{key}{change(amount)}"')

    return alter


@fault("sum")
def a_line_one_pico_too_dear(folder: Path) -> Where:
    dearer = with_amount("billing.cost.input_usd", lambda amount: f"{amount:0<14}"[:-1] + "1")
    return place(append_bill(folder, 1, dearer))


@fault("sum", "double")
def a_cost_that_is_not_the_sum_of_its_lines(folder: Path) -> Where:
    return place(append_bill(folder, 1, with_amount("billing.cost.usd", lambda amount: "1" + amount[1:])))


@fault("amount", "sum")
def an_amount_in_scientific_notation(folder: Path) -> Where:
    return place(append_bill(folder, 1, with_amount("billing.cost.input_usd", lambda _: "3e-5")))


@fault("amount", "sum")
def a_negative_line(folder: Path) -> Where:
    return place(append_bill(folder, 1, with_amount("billing.cost.input_usd", lambda amount: "-" + amount)))


@fault("amount")
def a_cost_finer_than_a_pico_dollar(folder: Path) -> Where:
    return place(append_bill(folder, 1, with_amount("billing.cost.usd", lambda amount: f"{amount:0<14}1")))


@fault("double")
def a_double_that_is_not_the_nearest(folder: Path) -> Where:
    def next_double(text: str) -> str:
        key = '"gen_ai.usage.cost","value":{"doubleValue":'
        start = text.index(key) + len(key)
        end = text.index("}", start)
        value = float(text[start:end])
        return f"{text[:start]}{value * (1 + 2**-52)!r}{text[end:]}"

    return place(append_bill(folder, 1, next_double))


@fault("double")
def a_cost_without_its_double(folder: Path) -> Where:
    return place(
        append_bill(folder, 1, lambda text: text.replace('"gen_ai.usage.cost"', '"gen_ai.usage.coat"'))
    )


@fault("status")
def an_unmetered_bill_with_a_cost(folder: Path) -> Where:
    return place(append_bill(folder, 1, lambda text: text.replace('"final"', '"unmetered"')))


@fault("status")
def an_unpriced_bill_with_a_cost(folder: Path) -> Where:
    return place(append_bill(folder, 1, lambda text: text.replace('"final"', '"unpriced"')))


@fault("status")
def a_status_that_does_not_exist(folder: Path) -> Where:
    return place(append_bill(folder, 1, lambda text: text.replace('"final"', '"paid"')))


@fault("status", "sum")
def a_final_bill_without_a_cost(folder: Path) -> Where:
    alter = '"billing.cost.usd"', '"billing.coat.usd"'
    return place(append_bill(folder, 1, lambda text: text.replace(*alter)))


# retention


def write_manifest(folder: Path, *entries: object) -> None:
    (folder / "removed.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@fault("manifest")
def a_manifest_line_that_cannot_be_read(folder: Path) -> Where:
    write_manifest(folder, {"segment": 7})
    return "removed.jsonl", 0


@fault("manifest")
def a_manifest_that_knows_another_last_record(folder: Path) -> Where:
    gone, after = names(folder, DEAD)[:2]
    entry = manifest_line(folder, names(folder, DEAD)[3])
    remove(folder, *names(folder, DEAD)[:3])
    lines = [json.loads(line) for line in (folder / "removed.jsonl").read_text().splitlines()]
    lines[-1]["hash"] = "1" * 16
    write_manifest(folder, *lines)
    assert entry["first"] == lines[-1]["last"] + 1
    assert gone < after
    return place(header_of(folder, names(folder, DEAD)[0]))


@fault("manifest")
def a_segment_removed_twice_with_different_contents(folder: Path) -> Where:
    remove(folder, names(folder, DEAD)[0])
    entry = json.loads((folder / "removed.jsonl").read_text())
    write_manifest(folder, entry, {**entry, "bills": 1000})
    return "removed.jsonl", len(json.dumps(entry)) + 1


@fault("manifest")
def a_segment_noted_as_removed_that_is_here_and_differs(folder: Path) -> Where:
    write_manifest(folder, {**manifest_line(folder, names(folder, DEAD)[0]), "hash": "1" * 16})
    return "removed.jsonl", None


@fault("gap")
def a_manifest_whose_last_segment_ends_too_early(folder: Path) -> Where:
    remove(folder, *names(folder, DEAD)[:3])
    lines = [json.loads(line) for line in (folder / "removed.jsonl").read_text().splitlines()]
    write_manifest(folder, *lines[:-1], {**lines[-1], "last": lines[-1]["last"] - 1})
    return place(header_of(folder, names(folder, DEAD)[0]))


@fault("gap")
def a_segment_taken_out_of_the_manifest(folder: Path) -> Where:
    remove(folder, *names(folder, DEAD)[:4])
    lines = (folder / "removed.jsonl").read_text().splitlines(keepends=True)
    (folder / "removed.jsonl").write_text("".join(lines[:2] + lines[3:]))
    return "removed.jsonl", None


@fault("segment_missing")
def a_segment_removed_but_not_noted(folder: Path) -> Where:
    remove(folder, *names(folder, DEAD)[:3])
    lines = (folder / "removed.jsonl").read_text().splitlines(keepends=True)
    (folder / "removed.jsonl").write_text("".join(lines[:2]))
    return place(header_of(folder, names(folder, DEAD)[0]))


def watermark(folder: Path, writer: str, segment: int, offset: int) -> Path:
    path = folder / "writers" / writer
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((segment << 40 | offset).to_bytes(8, "little") * 2)
    return path


def header_number(folder: Path, header: Row) -> int:
    return next(row.n for row in rows(folder) if row.segment == header.segment)


def pass_over(folder: Path, before: str, passed: str, after: str) -> Row:
    """Let a segment's header claim that the one before it failed and is written again."""
    start = parse(header_of(folder, passed).raw)
    named = before.partition("/")[2]
    return reheader(folder, header_of(folder, after), previous_segment=named, n=start.n, p=start.p)


def test_a_sound_folder_is_complete_and_intact_without_a_word(sound: Path) -> None:
    report = audit_folder(sound)
    assert report.counts == {}
    assert report.complete
    assert report.intact
    own = rows(sound)
    facts = report.facts
    assert facts.segments == len(names(sound)) == 11
    assert facts.records == len(own)
    assert facts.again == len(own) - len({row.raw for row in own}) == 1
    assert facts.bills == facts.intents == 42
    assert sum(facts.bills_by_status.values()) == 42


def test_at_least_25_kinds_of_fault_are_planted() -> None:
    assert len(FAULTS) >= 60
    assert len({kind for _, kind, _ in FAULTS.values()}) >= 25


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named_with_its_place(name: str, folder: Path) -> None:
    plant, kind, kinds = FAULTS[name]
    segment, offset = plant(folder)
    report = audit_folder(folder)
    found = [(finding.kind, finding.segment, finding.offset) for finding in report.findings]
    assert (kind, segment, offset) in found, found
    assert breaches(report) == kinds, found
    verdicts = {KINDS[one].verdict for one in kinds}
    assert report.complete is ("completeness" not in verdicts)
    assert report.intact is ("integrity" not in verdicts)


# any damage at all


def spoiled(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of(sound, tmp_path_factory.mktemp("spoiled") / "journal")


FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(data=st.data())
def test_any_flipped_byte_is_reported_in_its_segment(
    data: st.DataObject, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = spoiled(sound, tmp_path_factory)
    name = data.draw(st.sampled_from(names(folder)))
    content = bytearray((folder / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    report = audit_folder(folder)
    assert not report.intact or "damage_healed" in report.counts
    damage = [finding for finding in report.findings if finding.kind in ("damage", "damage_healed")]
    assert [f for f in damage if f.segment == name and f.offset <= at < f.offset + f.length]  # type: ignore[operator]


@FEW
@given(data=st.data(), what=st.sampled_from(["delete", "double", "swap"]))
def test_any_line_deleted_doubled_or_swapped_is_reported(
    data: st.DataObject, what: str, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = spoiled(sound, tmp_path_factory)
    own = rows(folder, DEAD, headers=True)  # its end is known to the other's header
    index = data.draw(st.integers(0, len(own) - 2))
    row, after = own[index], own[index + 1]
    if what == "delete":
        replace(folder, row)
    elif what == "double":
        replace(folder, row, row.raw, row.raw)
    elif row.segment == after.segment:
        path = folder / row.segment
        content = path.read_bytes()
        end = row.offset + len(row.raw) + len(after.raw)
        path.write_bytes(content[: row.offset] + after.raw + row.raw + content[end:])
    else:
        return
    report = audit_folder(folder)
    if what == "delete" and sum(one.raw == row.raw for one in own) == 2:
        return  # a line that was written again stands elsewhere: nothing is lost
    assert not (report.complete and report.intact)


@FEW
@given(data=st.data())
def test_any_cut_segment_of_a_writer_whose_end_is_known_is_reported(
    data: st.DataObject, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = spoiled(sound, tmp_path_factory)
    name = data.draw(st.sampled_from(names(folder, DEAD)))
    content = (folder / name).read_bytes()
    repeated = next(row for row in rows(folder, DEAD) if row.n == REPEATED)
    kept = data.draw(st.integers(0, len(content) - 1))
    if name == repeated.segment and kept >= repeated.offset:
        return  # only the line that was written again is cut: nothing is lost
    (folder / name).write_bytes(content[:kept])
    report = audit_folder(folder)
    assert not report.complete


@FEW
@given(data=st.data())
def test_any_deleted_segment_of_a_writer_whose_end_is_known_is_reported(
    data: st.DataObject, sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = spoiled(sound, tmp_path_factory)
    gone = data.draw(st.sets(st.sampled_from(names(folder, DEAD)), min_size=1))
    for name in gone:
        (folder / name).unlink()
    report = audit_folder(folder)
    assert not report.complete


# what is no breach


class FlakyFiles(Files):
    """A disk that fails by a seed: short writes, refused writes and syncs; creations if told to."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.failing_creates = 0
        self.failed: Counter[str] = Counter()

    def _fails(self, what: str, odds: float) -> bool:
        fails = self._chance.random() < odds
        self.failed[what] += fails
        return fails

    def create(self, path: Path) -> int:
        if self.failing_creates:
            self.failing_creates -= 1
            self.failed["create"] += 1
            raise OSError(errno.ENOSPC, "full")
        return super().create(path)

    def write(self, fd: int, data: bytes) -> int:
        if data.startswith(b'{"j":{"k":"H"'):
            return super().write(fd, data)  # a rotation that fails is a case of its own, below
        if self._fails("short", 0.03):
            return super().write(fd, data[: self._chance.randrange(len(data))])
        if self._fails("write", 0.03):
            raise OSError(errno.EIO, "bad disk")
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        if self._fails("sync", 0.1):
            raise OSError(errno.EIO, "bad disk")
        super().sync(fd)


async def one_boot(folder: Path, boot: str, chance: random.Random, files: FlakyFiles, first: int) -> int:
    """Serve on a bad disk, then die; return the number after the last one used."""
    found = scan(folder, files)
    now = itertools.count(NOON_NS, 10**9)
    book = Book(folder, boot, files=files, bytes_max=10_000, now_ns=lambda: next(now))
    for _ in range(50):
        try:
            book.writer.open(found.heads)
            break
        except OSError:
            continue
    numbers = {intent.record_id: int(intent.record_id[-12:], 16) for intent in found.open_intents}
    last = 0
    for number in numbers.values():
        last = book.bill(number, recovered=True)
    recovered = not numbers or await durable(book, last)
    if recovered:
        retire(folder, found.dead, files)
    waiting: list[int] = []
    for number in range(first, first + 25):
        with contextlib.suppress(JournalUnavailable, GatewayFault):
            intent = book.intent(number)
            waiting.append(number)
            await durable(book, intent)
        if waiting and chance.random() < 0.8:
            await durable(book, book.bill(waiting.pop(chance.randrange(len(waiting)))))
        report = audit_folder(folder)
        assert set(report.counts) <= {"torn_tail", "never_begun", "awaiting_recovery", "open_intent"}, (
            report.findings
        )
        assert report.counts.get("open_intent", 0) == 0
    book.writer.close()
    return first + 25


async def durable(book: Book, number: int) -> bool:
    for _ in range(50):
        try:
            await book.durable(number)
        except (JournalUnavailable, GatewayFault):
            book.writer.tend()
            continue
        return True
    return False


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_the_disk_does_to_a_writer_its_folder_has_no_breach(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    files = FlakyFiles(chance)
    first = 0
    for boot in range(4):
        first = await one_boot(tmp_path / "journal", f"b{boot}", chance, files, first)
    assert min(files.failed[what] for what in ("short", "write", "sync")) > 0


class GoodFiles(FlakyFiles):
    def _fails(self, what: str, odds: float) -> bool:
        return False


async def test_a_rotation_that_fails_leaves_mark_and_headers_at_the_segment_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    files = GoodFiles(random.Random(0))
    with Book(folder, "b0", files=files, bytes_max=3000) as book:
        await book.durable(book.writer.append("I", record_id(1), json.dumps({"record_id": record_id(1)})))
        large = json.dumps({"record_id": record_id(2), "model": "x" * 2500})
        files.failing_creates = 1
        with pytest.raises(JournalUnavailable):
            book.writer.append("I", record_id(2), large)
        assert files.failed["create"] == 1
        book.writer.tend()
        await book.durable(book.writer.append("I", record_id(3), json.dumps({"record_id": record_id(3)})))
        await book.durable(book.bill(1))
        in_use = audit_folder(folder)
        await book.durable(book.writer.append("I", record_id(2), large))
    found = scan(folder, files)
    assert (
        in_use.counts,
        {intent.record_id for intent in found.open_intents},
    ) == ({}, {record_id(2), record_id(3)})


def notes(report: Report) -> dict[str, int]:
    assert report.complete, report.findings
    assert report.intact, report.findings
    return report.counts


@given(st.integers(1, 500))
@FEW
def test_a_torn_end_whose_record_was_never_promised_is_only_a_note(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, kept: int
) -> None:
    folder = spoiled(sound, tmp_path_factory)
    last = rows(folder, LAST)[-1]
    with (folder / last.segment).open("ab") as file:
        file.write(
            encode_line("I", record_id(99), last.n + 1, chain(last.raw), '{"x":"' + "y" * 500 + '"}')[:kept]
        )
    assert notes(audit_folder(folder)) == {"torn_tail": 1}


def test_a_torn_line_that_the_next_segment_writes_again_is_only_a_note(folder: Path) -> None:
    row = next(row for row in rows(folder, DEAD) if row.n == REPEATED)
    path = folder / row.segment
    path.write_bytes(path.read_bytes()[: row.offset + 100])
    assert notes(audit_folder(folder)) == {"torn_tail": 1}


def test_a_segment_whose_header_never_reached_the_disk_is_only_a_note(folder: Path) -> None:
    name = names(folder, LAST)[-1]
    for end, content in ((6, b""), (7, b'{"j":{"k":"H"')):
        (folder / name.replace("000005", f"{end:06d}")).write_bytes(content)
    assert notes(audit_folder(folder)) == {"never_begun": 2, "torn_tail": 1}


def test_an_intent_of_a_dead_writer_waits_for_recovery_unless_strict(folder: Path) -> None:
    row = append(folder, "I", 500, "{}")
    report = audit_folder(folder)
    assert notes(report) == {"awaiting_recovery": 1}
    assert report.facts.awaiting_recovery == 1
    strict = audit_folder(folder, strict=True)
    assert not strict.complete
    assert strict.intact
    assert [(f.kind, f.segment, f.offset) for f in strict.findings] == [("open_intent", *place(row))]


def test_damage_of_a_failed_sync_is_healed_by_what_was_written_again(folder: Path) -> None:
    first, _ = (row for row in rows(folder, DEAD) if row.n == REPEATED)
    replace(folder, first, first.raw[:300] + bytes([first.raw[300] ^ 1]) + first.raw[301:])
    report = audit_folder(folder)
    assert notes(report) == {"damage_healed": 1}
    assert [(f.segment, f.offset) for f in report.findings] == [place(first)]


def test_records_read_behind_the_damage_may_come_before_those_that_heal_it(folder: Path) -> None:
    """A failed sync can leave a bill and take its intent, which then stands in the next segment only."""
    first = next(row for row in rows(folder, DEAD) if row.n == REPEATED)
    assert first.kind == "I"
    broken = first.raw[:40] + bytes([first.raw[40] ^ 1]) + first.raw[41:]
    behind = [row.raw for row in rows(folder, DEAD) if row.n in (REPEATED + 1, REPEATED + 2)]
    assert len(behind) == 2
    replace(folder, first, broken, *behind)
    *_, again = (row for row in rows(folder, DEAD) if row.n == REPEATED)
    assert again.segment > first.segment
    assert notes(audit_folder(folder)) == {"damage_healed": 1}


async def recovered(folder: Path, *, durable: int | None = None) -> Path:
    """Return a folder of a writer that lost record 2 in a power loss and of one that recovered it."""
    with Book(folder, "z", bytes_max=2100) as book:
        for number in range(1, 5):
            await book.durable(book.intent(number))
    first, second = names(folder)[:2]
    lost = [row for row in rows(folder, "z") if row.segment == first][-1]
    replace(folder, lost)
    if durable is not None:
        reheader(folder, header_of(folder, second), durable=durable)
        for name in names(folder)[2:]:
            (folder / name).unlink()
    watermark(folder, "z-0", 0, 0)
    found = scan(folder, Files())
    book = Book(folder, "a")
    book.sealed = found.heads
    with book:
        for intent in found.open_intents:
            await book.durable(book.bill(int(intent.record_id[-4:], 16), recovered=True))
        retire(folder, found.dead, Files())
    (folder / "writers" / "a-0").unlink()
    return folder


async def test_what_a_power_loss_took_before_it_was_promised_is_only_a_note(tmp_path: Path) -> None:
    assert notes(audit_folder(await recovered(tmp_path / "journal", durable=0))) == {"lost_unpromised": 1}


async def test_what_lacks_though_it_was_durable_is_a_gap_whatever_recovery_saw(tmp_path: Path) -> None:
    report = audit_folder(await recovered(tmp_path / "journal"))
    assert breaches(report) == {"gap"}


async def test_a_bill_by_recovery_may_be_read_before_the_dead_writers_progress(tmp_path: Path) -> None:
    """Names of writers are random: half of all recoveries sort before the writer that they recovered."""
    folder = tmp_path / "journal"
    with Book(folder, "z") as book:
        await book.durable(book.intent(1))
        await book.durable(book.progress(1))
    with Book(folder, "a") as book:
        await book.durable(book.bill(1, recovered=True))
    retire(folder, scan(folder, Files()).dead, Files())
    assert notes(audit_folder(folder)) == {}


async def book_of(folder: Path, *kinds: str) -> None:
    """Write records: I1 is the intent of request 1, S1 its bill."""
    with Book(folder, "z", bytes_max=100_000) as book:
        for kind in kinds:
            write = book.intent if kind[0] == "I" else book.bill
            await book.durable(write(int(kind[1:])))
    watermark(folder, "z-0", 0, 0)


async def recover(folder: Path) -> dict[str, tuple[int, str]]:
    """Bill what "z" left open, and forget it; return the heads that were seen."""
    found = scan(folder, Files())
    book = Book(folder, "a")
    book.sealed = found.heads
    with book:
        for intent in found.open_intents:
            await book.durable(book.bill(int(intent.record_id[-4:], 16), recovered=True))
        retire(folder, found.dead, Files())
    (folder / "writers" / "a-0").unlink()
    return found.heads


async def test_a_segment_that_was_passed_over_may_still_be_here_after_a_power_loss(tmp_path: Path) -> None:
    """Its removal was lost, and so was a record before it; what came before that is written again."""
    folder = tmp_path / "journal"
    await book_of(folder, "I1", "I2", "S1", "S2", "I3", "S3", "I4", "S4", "I5", "I6")
    lay_out(
        folder,
        "z",
        Laid(1, 1, range(1, 8)),
        Laid(2, 9, (9, 10), follows=1, durable=4),
        Laid(3, 5, (5, 6, 7), follows=1, durable=4),
    )
    await recover(folder)
    report = audit_folder(folder)
    assert notes(report) == {"lost_unpromised": 1}
    assert report.facts.again == 3
    assert report.facts.bills == 6


async def with_a_lost_segment(folder: Path) -> Path:
    """Lay out records 5 and 6 lost, passed by a header, and written again behind another."""
    await book_of(folder, "I1", "I2", "S1", "I3", "I4", "S3", "S4", "S2")
    lay_out(
        folder,
        "z",
        Laid(1, 1, range(1, 5)),
        Laid(2, 5, ()),
        Laid(3, 7, (7,), follows=2, durable=4),
        Laid(4, 5, range(5, 9), follows=3, durable=4),
    )
    (folder / names(folder, "z")[1]).write_bytes(b"")
    return folder


async def test_what_a_header_has_passed_may_all_come_again_behind_a_later_one(tmp_path: Path) -> None:
    """The last record before the header is known by its hash only, until it comes."""
    folder = await with_a_lost_segment(tmp_path / "journal")
    await recover(folder)
    report = audit_folder(folder)
    assert notes(report) == {"never_begun": 1}
    assert report.facts.bills == 4


async def test_what_a_header_has_passed_may_not_come_again_differently(tmp_path: Path) -> None:
    folder = await with_a_lost_segment(tmp_path / "journal")
    await recover(folder)
    bill = in_writer(folder, 6, "z")
    assert bill.kind == "S"
    replace(folder, bill, resealed(bill.raw, b'"service.name"', b'"service.nome"'))
    report = audit_folder(folder)
    assert ("rewrite", *place(bill)) in [(f.kind, f.segment, f.offset) for f in report.findings]
    assert breaches(report) == {"rewrite", "chain", "gap"}


async def test_what_retention_removed_may_come_again_behind_a_later_header(tmp_path: Path) -> None:
    """The segment whose sync failed was removed; the next one had begun before all was written again."""
    folder = tmp_path / "journal"
    await book_of(folder, "I1", "I2", "S1", "I3", "I4", "S3", "S4", "S2")
    lay_out(
        folder,
        "z",
        Laid(1, 1, range(1, 5)),
        Laid(2, 5, (5, 6), follows=1, durable=4),
        Laid(3, 7, (7,), follows=2, durable=4),
        Laid(4, 5, range(5, 9), follows=3, durable=4),
    )
    remove(folder, *names(folder, "z")[:2])
    await recover(folder)
    assert notes(audit_folder(folder)) == {"intent_removed": 2}


@pytest.mark.parametrize(
    ("laid", "lost", "removed", "head"),
    [
        ([Laid(1, 1, ()), Laid(2, 3, (), follows=1)], None, None, 0),
        ([Laid(1, 1, ()), Laid(2, 3, (), follows=1)], 0, None, 0),
        ([Laid(1, 1, range(1, 5)), Laid(2, 5, ()), Laid(3, 7, (), 2, 4, oldest_open=2)], 1, None, 4),
        ([Laid(1, 1, range(1, 5)), Laid(2, 5, ()), Laid(3, 7, (), 2, 4, oldest_open=2)], 1, 0, 4),
    ],
    ids=["the first records", "the first segment", "the oldest open one", "the oldest one that is left"],
)
async def test_recovery_sees_a_writer_end_where_its_first_unpromised_record_was_lost(
    tmp_path: Path, laid: list[Laid], lost: int | None, removed: int | None, head: int
) -> None:
    """A later header names a higher number; what it follows was never promised, and is not there."""
    folder = tmp_path / "journal"
    await book_of(folder, "I1", "S1", "I2", "S2", "I3", "S3", "I4")
    lay_out(folder, "z", *laid)
    own = names(folder, "z")
    digest = chain(rows(folder, "z")[-1].raw) if head and removed is None else GENESIS
    if removed is not None:
        remove(folder, own[removed])
    if lost is not None:
        (folder / own[lost]).write_bytes(b"")
    assert await recover(folder) == {"z-0": (head, digest)}
    found = notes(audit_folder(folder))
    assert found == {"lost_unpromised": 1, **({"never_begun": 1} if lost is not None else {})}


class Stubborn(Files):
    """A disk that refuses one record, and removes nothing."""

    refused = 0

    def write(self, fd: int, data: bytes) -> int:
        if not self.refused and b'"n":2,' in data[:80] and not data.startswith(b'{"j":{"k":"H"'):
            self.refused += 1
            raise OSError(errno.EIO, "bad disk")
        return super().write(fd, data)

    def remove(self, path: Path) -> None:
        raise OSError(errno.EIO, "bad disk")


@pytest.mark.parametrize("left", [None, b"x" * 20], ids=["readable", "garbage"])
async def test_a_header_may_pass_over_a_segment_whose_records_are_all_written_again(
    tmp_path: Path, left: bytes | None
) -> None:
    folder, files = tmp_path / "journal", Stubborn()
    with Book(folder, "b", files=files) as book:
        book.intent(1)
        await book.durable(book.intent(2))
    assert files.refused == 1
    first, second = names(folder)
    assert json.loads(header_of(folder, second).raw)["j"]["d"]["previous_segment"] is None
    if left is not None:
        (folder / first).write_bytes(left)
    report = audit_folder(folder)
    report.counts.pop("torn_tail", None)
    assert notes(report) == {"awaiting_recovery": 2, **({"never_begun": 1} if left else {})}


def test_what_retention_removed_and_noted_is_not_missing(folder: Path) -> None:
    removed = names(folder, DEAD)[:4]
    bills = len({row.raw for row in rows(folder, DEAD) if row.segment in removed and row.kind == "S"})
    remove(folder, *removed)
    report = audit_folder(folder)
    assert set(notes(report)) <= {"intent_removed"}
    assert report.facts.removed_segments == 4
    assert report.facts.removed_bills == bills > 0
    assert report.facts.segments == 7


def test_a_whole_dead_writer_that_retention_removed_is_not_missing(folder: Path) -> None:
    remove(folder, *names(folder, DEAD))
    report = audit_folder(folder)
    assert notes(report) == {"intent_removed": 2}
    assert report.facts.writers == 1


def test_retention_that_was_killed_between_note_and_removal_is_no_breach(folder: Path) -> None:
    write_manifest(folder, manifest_line(folder, names(folder, DEAD)[0]))
    report = audit_folder(folder)
    assert notes(report) == {}
    assert report.facts.removed_segments == 0


def test_a_bill_without_intent_is_no_retention_if_no_removed_intent_was_open(folder: Path) -> None:
    for name in names(folder, DEAD):
        (folder / name).unlink()
    reheader(folder, header_of(folder, names(folder, LAST)[0]), sealed={})
    for number, name in enumerate(names(folder, LAST), 1):
        reheader(folder, header_of(folder, name), oldest_open=number)
    last = names(folder, LAST)
    remove(folder, *last[:2])
    append(folder, "S", 500, body_of(folder, 41).replace(record_id(41), record_id(500)))
    report = audit_folder(folder)
    assert breaches(report) == {"bill_without_intent"}


def test_a_bill_may_have_its_intent_in_a_removed_segment_if_one_was_open_there(folder: Path) -> None:
    for name in names(folder, DEAD):
        (folder / name).unlink()
    reheader(folder, header_of(folder, names(folder, LAST)[0]), sealed={})
    for number, name in enumerate(names(folder, LAST), 1):
        reheader(folder, header_of(folder, name), oldest_open=1 if number == 3 else number)
    remove(folder, *names(folder, LAST)[:2])
    append(folder, "S", 500, body_of(folder, 41).replace(record_id(41), record_id(500)))
    assert notes(audit_folder(folder)) == {"intent_removed": 1}


def test_a_mark_torn_by_the_death_of_its_writer_is_not_believed(folder: Path) -> None:
    path = watermark(folder, LAST, 77, 5)
    path.write_bytes(path.read_bytes()[:8] + bytes(8))
    assert notes(audit_folder(folder)) == {}


def test_a_header_may_pass_over_a_segment_that_never_held_a_record(folder: Path) -> None:
    """The disk failed between the header and the first record, and nothing could be removed either."""
    last = names(folder, LAST)[-1]
    header = header_of(folder, last)
    bare = last.replace("000005", "000006")
    facts = json.loads(header.raw)["j"]["d"]
    own = [row for row in rows(folder, LAST) if row.segment == last]
    body = {**facts, "segment": 6, "previous_segment": last.partition("/")[2]}
    first, before = own[-1].n + 1, chain(own[-1].raw)
    (folder / bare).write_bytes(encode_line("H", "x", first, before, json.dumps(body)))
    after = encode_line("H", "y", first, before, json.dumps({**body, "segment": 7}))
    (folder / last.replace("000005", "000007")).write_bytes(after)
    assert notes(audit_folder(folder)) == {}


# a folder in use


@pytest.fixture
def held(folder: Path) -> Iterator[Path]:
    """A folder whose last writer lives: somebody holds its file."""
    path = watermark(folder, LAST, 0, 0)
    with holding(path):
        yield folder


class holding:  # noqa: N801  # reads as a verb
    """Hold a writer's file in a process of its own, as a gateway does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        code = "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f, 2); print(1, flush=True); input()"
        assert fcntl.LOCK_EX == 2
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(self._path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"1\n"

    def __exit__(self, *_: object) -> None:
        self._process.communicate(b"\n", timeout=10)


def test_of_a_live_writer_only_what_is_durable_is_read(held: Path) -> None:
    *_, before, last = [row for row in rows(held, LAST) if row.segment == names(held, LAST)[-2]]
    assert (before.kind, last.kind) == ("I", "S")
    watermark(held, LAST, 4, last.offset)
    unread = len([row for row in rows(held, LAST) if row.segment == names(held, LAST)[-1]]) + 1
    readable = len(rows(held)) - unread
    with (held / names(held, LAST)[-1]).open("ab") as file:
        file.write(b"garbage")
    report = audit_folder(held)
    assert notes(report) == {}
    assert report.facts.live_writers == 1
    assert report.facts.records == readable
    assert report.facts.in_flight == 1
    watermark(held, LAST, 4, last.offset + len(last.raw))
    report = audit_folder(held)
    assert notes(report) == {}
    assert report.facts.in_flight == 0


def test_a_watermark_within_a_line_is_reported(held: Path) -> None:
    last = rows(held, LAST)[-1]
    watermark(held, LAST, 5, last.offset + 10)
    report = audit_folder(held)
    assert [(f.kind, f.segment, f.offset) for f in report.findings] == [("watermark", *place(last))]
    assert not report.intact


def test_everything_written_may_be_read_where_the_writer_says_so(held: Path) -> None:
    (held / "writers" / LAST).write_bytes(b"\xff" * 16)
    written = len(rows(held))
    with (held / names(held, LAST)[-1]).open("ab") as file:
        file.write(b'{"j":')
    report = audit_folder(held)
    assert notes(report) == {}
    assert report.facts.records == written


def test_a_bill_by_another_writer_while_the_intents_own_lives_is_reported(folder: Path) -> None:
    path = watermark(folder, DEAD, 2**20, 0)
    with holding(path):
        report = audit_folder(folder)
    found = [(f.kind, f.segment, f.offset) for f in report.findings if f.kind == "foreign_bill"]
    assert found == [("foreign_bill", *place(row_of(folder, number, "S"))) for number in (8, 21)]


def test_the_lock_of_a_writer_is_given_back(folder: Path) -> None:
    path = watermark(folder, LAST, 0, 0)
    audit_folder(folder)
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


async def test_a_folder_that_is_being_written_is_sound_at_every_moment(tmp_path: Path) -> None:
    """The real writer appends in one thread, with a syncing disk, while the audit reads in another."""
    folder = tmp_path / "journal"
    done = threading.Event()
    reports: list[Report] = []

    def read() -> None:
        while not done.is_set() or len(reports) < 3:  # ends with the writing, below
            reports.append(audit_folder(folder))
        reports.append(audit_folder(folder))

    with Book(folder, "b7", bytes_max=30_000) as book:
        reader = asyncio.create_task(asyncio.to_thread(read))
        try:
            for number in range(300):
                await book.durable(book.intent(number))
                settled = book.bill(number)
                if number % 3:
                    await book.durable(settled)
        finally:
            done.set()
        await asyncio.wait_for(reader, 60)
    assert all(report.counts == {} for report in reports), [report.findings for report in reports]
    assert len({report.facts.records for report in reports}) > 1
    assert all(report.facts.live_writers == 1 for report in reports)
    assert reports[-1].facts.bills == 300


# bounds


def test_findings_of_one_kind_are_counted_and_the_first_hundred_kept(folder: Path) -> None:
    last = rows(folder, LAST)[-1]
    with (folder / last.segment).open("ab") as file:
        file.write(b"not a line\n" * 250)
    report = audit_folder(folder)
    assert report.counts == {"damage": 250}
    assert len(report.findings) == SHOWN_MAX == 100


def test_the_audit_remembers_more_hashes_than_a_writer_holds_back() -> None:
    assert RING > UNDURABLE_MAX


@given(
    st.lists(st.sampled_from([b"a\n", b"bb\n", b"\n", b"x" * (LINE_BYTES_MAX + 5) + b"\n"])),
    st.integers(1, 9),
)
@FEW
def test_lines_are_the_same_in_blocks_of_any_size(lines: list[bytes], cuts: int) -> None:
    data = b"".join(lines)
    size = max(1, len(data) // cuts)
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    found = list(lines_of(blocks))
    assert [length for _, _, length in found] == [len(line) for line in lines]
    assert [offset for offset, _, _ in found] == list(itertools.accumulate(map(len, lines), initial=0))[:-1]
    for (_, raw, _), line in zip(found, lines, strict=True):
        assert raw == line or (raw is None and len(line) > LINE_BYTES_MAX)


def test_segments_are_read_writer_by_writer_in_the_order_of_their_numbers() -> None:
    assert in_order(
        ["2024-01-02/b-0-000002.jsonl", "2024-01-02/a-1-000001.jsonl", "2024-01-01/b-0-000003.jsonl"]
    ) == [
        "2024-01-02/b-0-000002.jsonl",
        "2024-01-01/b-0-000003.jsonl",
        "2024-01-02/a-1-000001.jsonl",
    ]


def test_the_page_explains_every_kind_of_finding() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"`{kind}`" in page, kind


async def test_a_recovery_that_ends_while_marks_are_read_is_no_breach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first writer's mark is read before the bill is durable there, the dead one's when it has gone."""
    with Book(tmp_path, "z0") as dead:
        await dead.durable(dead.intent(1))
    gone = mark_path(tmp_path, dead.writer.name)
    with Book(tmp_path, "a0") as living:
        await living.durable(living.intent(2))
        read = folder_module._writer_file
        before = read(mark_path(tmp_path, living.writer.name))
        await living.durable(living.bill(1, recovered=True))

        def reading(path: Path) -> WriterFile:
            if path == gone:
                path.unlink()
            return before if gone.exists() else read(path)

        monkeypatch.setattr(folder_module, "_writer_file", reading)
        report = audit_folder(tmp_path)
    assert not gone.exists(), "the fault did not fire"
    assert (notes(report), report.facts.in_flight) == ({}, 1)
