"""A line of the journal, and exactly one row."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.dimensions import DIMENSIONS
from gateway.core.usage import Usage
from gateway.ledger import schema
from gateway.ledger.packing import unpacked
from gateway.ledger.projection import INT64_MAX, Projector, Refused, Rows, _pico, id_of
from gateway.ledger.schema import split, total_pico
from gateway.recording.span import billing_span
from otel.schema import encode_span, resource_spans_frame
from tests.journals import exchange
from tests.ledger.books import mixed

HEAD, TAIL = resource_spans_frame({"service.name": "spanbill"}, "spanbill", "0")


def inner(bill: Any) -> bytes:
    return (HEAD + encode_span(billing_span(bill)) + TAIL).encode()


def projected(data: bytes) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    rows = Rows()
    Projector(7).add(rows, [data])
    assert rows.refused == []
    row = dict(zip(schema.bills.c.keys(), rows.bills[0], strict=True))
    return row, list(unpacked(row["cost_lines"]))  # type: ignore[arg-type]  # a text


def refused(data: bytes) -> str:
    rows = Rows()
    Projector(7).add(rows, [data], first=3)
    ((place, why),) = rows.refused
    assert (place, rows.bills) == (3, [])
    return why


def test_a_row_has_a_place_for_each_column() -> None:
    rows = Rows()
    Projector(7).add(rows, [inner(mixed(number)) for number in range(50)])
    assert {len(bill) for bill in rows.bills} == {len(schema.bills.c)}
    for table, shared in (
        (schema.accounts, rows.accounts),
        (schema.routes, rows.routes),
        (schema.rates, rows.rates),
    ):
        assert {len(row) + 1 for row in shared.values()} == {len(table.c)}
        assert all(key == id_of(row) for key, row in shared.items())


def test_what_is_not_said_is_null_and_what_is_0_is_0() -> None:
    bare = exchange(4)  # unmetered
    row, lines = projected(inner(bare))
    assert row["status"] == "unmetered"
    assert [row[f"{name}_tokens"] for name in schema.TOKENS] == [None] * len(schema.TOKENS)
    assert (row["cost_pico"], row["rate_id"], lines) == (None, None, [])
    reply = msgspec.structs.replace(exchange(0).reply, usage=Usage(counts={"input": 0}))
    row, _ = projected(inner(msgspec.structs.replace(exchange(0), reply=reply)))
    assert (row["input_tokens"], row["output_tokens"]) == (0, None)


def _strings(items: list[str]) -> str:
    return ",".join(f'{{"stringValue":{msgspec.json.encode(item).decode()}}}' for item in items)


def test_lines_are_taken_as_the_span_states_them() -> None:
    text = inner(exchange(1)).decode()
    at = text.index('{"key":"billing.cost.lines"')
    end = text.index("]}}}", at) + len("]}}}")
    stated = [
        '{"dimension":"input","units":101,"rate":"2.5","times":"1/2","usd":"0.000001000003"}',
        '{"dimension":"output","units":3,"rate":"10","model":"m-mini","price":"p/m-mini","usd":"0.000000000018"}',
    ]
    discount = '{"id":"deal","kind":"discount","percent":"-10","usd":"-0.00000000001"}'
    ours = ",".join(
        f'{{"key":"billing.cost.{name}","value":{{"arrayValue":{{"values":[{_strings(items)}]}}}}}}'
        for name, items in (("lines", stated), ("adjustments", [discount]))
    )
    _, lines = projected((text[:at] + ours + text[end:]).encode())
    assert lines == [
        ("charge", "input", None, 101, "2.5 x 1/2", 1_000_003),
        ("charge", "output", "m-mini", 3, "10", 18),
        ("discount", "deal", None, None, "-10%", -10),
    ]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"stringValue":"0.000001000011"', '"stringValue":"0.000001000012"', "add up"),
        ('"stringValue":"0.000001000011"', '"stringValue":"1e-3"', "exact amount"),
        ('"stringValue":"0.000001000011"', '"stringValue":"9223372.1"', "more than a ledger holds"),
        ('"intValue":"101"', '"intValue":"-1"', "whole number"),
        ('"billing.record.id"', '"billing.record.ix"', "billing.record.id"),
        ('"stringValue":"final"', '"stringValue":"paid"', "status"),
        ('"scopeSpans":[{', '"scopeSpans":[{},{', "spans"),
    ],
)
def test_a_bill_that_no_ledger_can_hold_says_why(old: str, new: str, why: str) -> None:
    text = inner(exchange(1)).decode()
    assert old in text
    assert why in refused(text.replace(old, new).encode())


def test_the_same_line_gives_the_same_row_in_any_company() -> None:
    lines = [inner(mixed(number)) for number in range(40)]
    together, alone = Rows(), []
    Projector(7).add(together, lines)
    for line in lines:
        one = Rows()
        Projector(7).add(one, [line])
        alone += one.bills
    assert together.bills == alone


def test_a_bill_has_the_counts_that_it_says_whatever_was_read_before_it() -> None:
    names = [name for name, dimension in DIMENSIONS.items() if dimension.attribute]
    for counts in [{}, *({name: 7} for name in names), dict.fromkeys(names, 7), {"output": 7, names[-1]: 7}]:
        reply = msgspec.structs.replace(exchange(0).reply, usage=Usage(counts=counts))
        row, lines = projected(inner(msgspec.structs.replace(exchange(0), reply=reply, charge=None)))
        found = {name: row[f"{name}_tokens"] for name in schema.TOKENS if row[f"{name}_tokens"] is not None}
        assert found | {line[1]: line[3] for line in lines} == counts


def test_what_a_newer_version_says_besides_changes_no_row() -> None:
    text = inner(exchange(1)).decode()
    known = '{"key":"billing.record.id"'
    assert known in text
    for value in ('{"stringValue":"x"}', '{"bytesValue":"AA=="}', '{"kvlistValue":{"values":[]}}'):
        more = f'{{"key":"billing.newer","value":{value}}},{known}'
        assert projected(text.replace(known, more).encode()) == projected(text.encode())


@pytest.mark.parametrize(
    ("said", "held"), [("\\u0000", "\ufffd"), ("a\\\\b\\u0000c\\u0000", "a\\b\ufffdc\ufffd")]
)
def test_what_postgresql_has_not_is_replaced_wherever_it_stands(said: str, held: str) -> None:
    text = inner(exchange(1)).decode()
    assert '"stringValue":"ok"' in text
    row, _ = projected(text.replace('"stringValue":"ok"', f'"stringValue":"{said}"').encode())
    assert row["outcome"] == held


def test_amounts_in_two_parts_are_the_amount() -> None:
    for pico in (0, 1, -1, 10**9, 10**9 - 1, -(10**9) - 1, INT64_MAX, -INT64_MAX):
        assert total_pico(*split(pico)) == pico


@given(
    st.from_regex(r"-?[0-9]{0,25}\.?[0-9]{0,14}", fullmatch=True) | st.text("0123456789.-eE+ ²٣", max_size=8)
)
@example("0.0000000000001")
@example(".5")
@example("5.")
@example("1.²")
@example("999999.999999999999")
@example("9223372.036854775808")
def test_an_amount_is_read_exactly_or_refused(usd: str) -> None:
    exact = re.fullmatch(r"-?[0-9]+(\.[0-9]{1,12})?", usd, re.ASCII)
    expected = int(Fraction(usd) * 10**12) if exact is not None else None
    if expected is None or abs(expected) > INT64_MAX:
        with pytest.raises(Refused):
            _pico(usd)
    else:
        assert _pico(usd) == expected
