"""The billing span says what was reported, and nothing else."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.charge import Charge, Line
from gateway.core.dimensions import DIMENSIONS
from gateway.core.exchange import Attempt, Call, Exchange, Identity, Reply
from gateway.core.usage import Usage
from gateway.recording.span import billing_span
from otel.schema import ATTRIBUTES, encode_attribute, encode_span

IDENTITY = Identity(key_id="k1", user_id="alice", source="key")


def exchange(usage: Usage | None = None, charge: Charge | None = None, **call: object) -> Exchange:
    return Exchange(
        call=Call(
            **{  # type: ignore[arg-type]
                "record_id": "r",
                "trace_id": "a" * 32,
                "span_id": "b" * 16,
                "server_span_id": "c" * 16,
                "protocol": "messages",
                "operation": "chat",
                "model": "m",
                "stream": False,
                "identity": IDENTITY,
                "started_unix_ns": 1,
                **call,
            }
        ),
        attempts=(
            Attempt(
                span_id="d" * 16,
                provider="p",
                model="m",
                host="h",
                port=443,
                path="/",
                started_unix_ns=1,
                ended_unix_ns=2,
                status=200,
            ),
        ),
        reply=Reply(usage=usage, complete=True),
        outcome="ok",
        status="final",
        ended_unix_ns=2,
        latency_ns=1,
        charge=charge,
    )


@given(st.dictionaries(st.sampled_from(list(DIMENSIONS)), st.integers(0, 2**53 - 1)))
def test_a_count_stands_on_the_span_exactly_if_it_was_reported(counts: dict[str, int]) -> None:
    attributes = billing_span(exchange(Usage(counts=counts))).attributes
    for name, dimension in DIMENSIONS.items():
        assert attributes.get(dimension.attribute) == counts.get(name)
    assert ("billing.cache_hit" in attributes) is ("cache_read" in counts)
    assert ("billing.cache_write" in attributes) is ("cache_write" in counts)
    assert attributes.get("billing.cache_hit") == (
        counts["cache_read"] > 0 if "cache_read" in counts else None
    )


@pytest.mark.parametrize("said", [True, False])
def test_a_hit_or_a_write_said_without_a_count_is_on_the_span(said: bool) -> None:
    word = "true" if said else "false"
    usage = Usage(counts={"input": 1}, qualifiers={"cache_hit": word, "cache_write": word})
    attributes = billing_span(exchange(usage)).attributes
    assert (attributes["billing.cache_hit"], attributes["billing.cache_write"]) == (said, said)
    assert "gen_ai.usage.cache_read.input_tokens" not in attributes


def test_without_usage_and_charge_there_is_neither_count_nor_cost() -> None:
    attributes = billing_span(exchange()).attributes
    assert not [name for name in attributes if "usage" in name or "cost" in name or "cache" in name]


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=5))
def test_lines_add_up_to_the_cost_and_the_double_is_the_nearest(costs: list[int]) -> None:
    names = list(DIMENSIONS)[: len(costs)]
    lines = tuple(
        Line(dimension=name, units=1, rate_atto_per_million=1, cost_pico_usd=cost)
        for name, cost in zip(names, costs, strict=True)
    )
    attributes = billing_span(exchange(charge=Charge(lines=lines, price_id="x", catalog="y"))).attributes
    total = Decimal(str(attributes["billing.cost.usd"]))
    parts = [Decimal(str(attributes[f"billing.cost.{name}_usd"])) for name in names]
    assert sum(parts) == total == Decimal(sum(costs)) / 10**12
    assert attributes["gen_ai.usage.cost"] == float(total)


def test_the_older_name_of_cache_writes_replaces_the_newer_one() -> None:
    usage = Usage(counts={"cache_write": 7})
    attributes = billing_span(exchange(usage), cache_write_name="cache_creation").attributes
    assert attributes["gen_ai.usage.cache_creation.input_tokens"] == 7
    assert "gen_ai.usage.cache_write.input_tokens" not in attributes


def test_every_dimension_has_its_count_and_its_line_in_the_schema() -> None:
    names = {a.name for a in ATTRIBUTES}
    for name, dimension in DIMENSIONS.items():
        assert {dimension.attribute, f"billing.cost.{name}_usd"} <= names


def test_no_other_integer_stands_under_gen_ai_usage() -> None:
    """Langfuse adds up every integer there."""
    known = {d.attribute for d in DIMENSIONS.values()} | {"gen_ai.usage.cache_creation.input_tokens"}
    assert {a.name for a in ATTRIBUTES if a.name.startswith("gen_ai.usage.") and a.kind == "int"} <= known


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("billing.attempts", "1"),
        ("billing.attempts", True),
        ("billing.attempts", 2**63),
        ("billing.cost.usd", 1),
        ("gen_ai.usage.cost", float("nan")),
        ("gen_ai.usage.cost", 1),
        ("billing.cache_hit", 1),
        ("billing.tags", ["a"]),
    ],
)
def test_a_bent_value_cannot_be_written(name: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_attribute(name, value)  # type: ignore[arg-type]


def test_an_unknown_name_cannot_be_written() -> None:
    with pytest.raises(KeyError):
        encode_attribute("billing.nonsense", "x")


@given(st.text())
def test_any_text_is_written_as_json(text: str) -> None:
    line = encode_span(billing_span(exchange(client_user=text or "x")))
    assert "\n" not in line
