"""A bill rated again from its own span comes out the same, line by line."""

from __future__ import annotations

import json
import random
from decimal import Decimal

import msgspec
import pytest

from gateway.assembly import book_of, prices_of
from gateway.billing import Target, bill
from gateway.core.charge import Charge
from gateway.core.exchange import Attempt, Call, Exchange, Identity, Reply
from gateway.core.money import pico_to_usd, usd_to_pico
from gateway.core.usage import OtherUsage, Usage
from gateway.metering.settle import Ending
from gateway.pricing.selling import Book, Sale
from gateway.recording.facts import price_facts
from gateway.recording.span import billing_span
from gateway.rerating import sale_of
from gateway.settings import PricesSettings
from otel.journal.audit.bills import Span, read_bill
from otel.schema import encode_span
from tests.conftest import ROOT

SETTINGS = PricesSettings.model_validate(
    {
        "overrides": {"openai/sats": {"input": "3 sat/1k", "output": "0.00001"}},
        "exchange": {"sat": "0.00065"},
        "fallback": {"input": "1", "output": "2"},
        "adjustments": [
            {"id": "off", "kind": "discount", "percent": "12.5", "provider": "anthropic"},
            {"id": "red", "kind": "markup", "percent": "7", "team": "red"},
            {"id": "k9", "kind": "markup", "percent": "1", "key": "k9"},
            {"id": "base", "kind": "fee", "amount": "2 sat", "until": "2027-01-01"},
        ],
    }
)
BOOK = book_of(SETTINGS)
SECTIONS = {
    "openai": ["gpt-4o", "gpt-5.4", "sats", "nobody", "gpt-4o-mini-2024-07-18"],
    "anthropic": ["claude-opus-5", "claude-sonnet-4-5"],
}


def exchange(chance: random.Random) -> Exchange:
    provider = chance.choice(list(SECTIONS))
    asked, served = chance.choice(SECTIONS[provider]), chance.choice(SECTIONS[provider])
    size = chance.choice([0, 12, 300_000])
    counts = {"input": size, "output": chance.randrange(10_000)}
    if chance.random() < 0.5:
        counts |= {"cache_read": chance.randrange(size + 1), "web_search": chance.randrange(2)}
    others = ()
    if chance.random() < 0.3:
        model = chance.choice(SECTIONS[provider])
        others = (OtherUsage(model=model, reason="advisor", counts={"input": 10**6, "output": 3}),)
    usage = Usage(
        counts=counts,
        others=others,
        service_tier=chance.choice([None, "default", "flex", "batch"]),
        qualifiers=chance.choice([{}, {"inference_geo": "us", "speed": "fast"}, {"speed": "standard"}]),
        reported_cost_usd=chance.choice([None, "0", "0.00019199999999999998"]),
    )
    call = Call(
        record_id="r",
        trace_id="a" * 32,
        span_id="b" * 16,
        server_span_id="c" * 16,
        protocol="messages",
        operation="chat",
        model=asked,
        stream=False,
        identity=Identity(
            key_id=chance.choice(["k1", "k9"]), user_id="u", source="key", team=chance.choice([None, "red"])
        ),
        started_unix_ns=1_795_250_000 * 10**9,
    )
    attempt = Attempt(
        span_id="d" * 16,
        provider=provider,
        model=asked,
        host="h",
        port=443,
        path="/",
        started_unix_ns=1,
        ended_unix_ns=2,
        status=200,
    )
    identity = call.identity
    return bill(
        prices_of(BOOK),
        call,
        Target(provider=provider, prices=provider, model=asked, key_id=identity.key_id, team=identity.team),
        Ending(outcome="ok"),
        Reply(usage=usage, complete=True, response_model=chance.choice([None, served])),
        attempts=(attempt,),
        ended_unix_ns=1_795_260_000 * 10**9 + 5,
        latency_ns=1,
        time_to_first_chunk_ns=None,
    )


def rated_again(attributes: dict[str, object], ended_unix_ns: int, book: Book) -> object:
    facts = price_facts(attributes, ended_unix_ns)
    assert facts is not None
    return book.charge(sale_of(facts), facts.usage)


def test_a_bill_is_rated_again_from_its_span_to_the_same_charge() -> None:
    chance = random.Random(5)
    fresh = book_of(SETTINGS)
    kinds = {"final": 0, "estimated": 0, "unpriced": 0}
    for _ in range(400):
        first = exchange(chance)
        kinds[first.status] += 1
        span = billing_span(first, cache_write_name=chance.choice(["cache_write", "cache_creation"]))
        again = rated_again(dict(span.attributes), span.ended_unix_ns, fresh)
        if first.charge is None:
            assert again.reason == first.missing_rate == span.attributes["billing.price.missing"]  # type: ignore[attr-defined]
        else:
            assert again == first.charge
    assert min(kinds.values()) > 20, kinds


def test_lines_and_adjustments_stand_on_the_span_and_add_up() -> None:
    chance = random.Random(6)
    seen: set[str] = set()
    for _ in range(400):
        found = exchange(chance)
        a = billing_span(found).attributes
        if found.charge is None:
            assert not [name for name in a if name.startswith("billing.cost.") and "reported" not in name]
            continue
        lines = [json.loads(line) for line in a["billing.cost.lines"]]  # type: ignore[union-attr]
        rules = [json.loads(line) for line in a.get("billing.cost.adjustments", ())]  # type: ignore[union-attr]
        total = sum((Decimal(line["usd"]) for line in [*lines, *rules]), Decimal(0))
        assert total == Decimal(str(a["billing.cost.usd"]))
        sums = [
            Decimal(str(value))
            for name, value in a.items()
            if name.startswith("billing.cost.") and name.endswith("_usd") and "reported" not in name
        ]
        assert sum(sums, Decimal(0)) == total
        for line in lines:
            amount, _, per = line["rate"].partition("/")
            exact = Decimal(amount) * line["units"] * Decimal(line.get("times", 1))
            exact /= 10**6 if per == "1M" else 1
            assert abs(exact - Decimal(line["usd"])) <= Decimal("5e-13")
            seen.add("other" if "model" in line else "times" if "times" in line else per)
        seen.update(rule["kind"] for rule in rules)
    assert seen == {"other", "times", "1M", "1", "discount", "markup", "fee"}


def test_the_audit_takes_a_bill_with_a_discount_and_finds_one_that_is_tampered_with() -> None:
    chance = random.Random(7)
    checked = 0
    for _ in range(100):
        found = exchange(chance)
        if found.charge is None or not found.charge.adjustments:
            continue
        text = encode_span(billing_span(found)).encode()
        _, problems = read_bill(msgspec.json.decode(text, type=Span))
        assert problems == []
        if b'"billing.cost.discount_usd","value":{"stringValue":"-' in text:
            swapped = text.replace(
                b'"billing.cost.discount_usd","value":{"stringValue":"-',
                b'"billing.cost.discount_usd","value":{"stringValue":"',
            )
            _, problems = read_bill(msgspec.json.decode(swapped, type=Span))
            assert [kind for kind, _ in problems] == ["sum"]
            checked += 1
    assert checked > 5


@pytest.mark.parametrize(
    ("reported", "difference"),
    [("0.5", "0.4"), ("0.1", "0"), ("0", "-0.1"), ("0.1000000000000000000001", "1E-22")],
)
def test_the_providers_figure_stands_beside_ours_before_mark_ups(reported: str, difference: str) -> None:
    book = book_of(
        PricesSettings.model_validate({"adjustments": [{"id": "m", "kind": "markup", "percent": 50}]})
    )
    usage = Usage(counts={"input": 10**5, "output": 0}, reported_cost_usd=reported)
    sale = Sale(provider="openai", section="openai", model="gpt-4.1-nano", at_unix_s=1_795_250_000)
    charge = book.charge(sale, Usage(counts={"input": 10**6, "output": 0}))
    assert isinstance(charge, Charge)
    assert charge.cost_pico_usd == usd_to_pico(Decimal("0.15"))
    found = msgspec.structs.replace(exchange(random.Random(1)), charge=charge, reply=Reply(usage=usage))
    a = billing_span(found).attributes
    assert a["billing.cost.reported_usd"] == reported
    assert Decimal(str(a["billing.cost.reported_difference_usd"])) == Decimal(difference)
    assert "E" not in str(a["billing.cost.reported_difference_usd"])


def test_the_worked_example_of_the_docs() -> None:
    rules = [
        {"id": "contract", "kind": "discount", "percent": "12.5", "provider": "anthropic"},
        {"id": "red", "kind": "markup", "percent": "7", "team": "red"},
    ]
    book = book_of(PricesSettings.model_validate({"adjustments": rules}))
    sale = Sale(
        provider="anthropic", section="anthropic", model="claude-opus-5", team="red", at_unix_s=1_795_250_000
    )
    usage = Usage(
        counts={"input": 10_000, "cache_read": 4_000, "cache_write": 100, "output": 500},
        qualifiers={"speed": "fast", "inference_geo": "us"},
    )
    charge = book.charge(sale, usage)
    assert isinstance(charge, Charge)
    page = (ROOT / "docs" / "prices.md").read_text(encoding="utf-8")
    table = page[page.index("| line | units") : page.index("The lines stand in")]
    stated = [row.strip("| *").split(" | ") for row in table.splitlines()[2:] if row]
    amounts = [row[-1].strip("* |") for row in stated]
    costs = [part.cost_pico_usd for part in (*charge.lines, *charge.adjustments)]
    assert amounts == [pico_to_usd(cost) for cost in [*costs, charge.cost_pico_usd]]
    assert [row[1] for row in stated[:4]] == [f"{line.units:,}" for line in charge.lines]
    assert charge.price_id in page
