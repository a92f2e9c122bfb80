"""Each unit is charged exactly once, at one rate, and as the independent oracle charges it."""

from __future__ import annotations

import datetime
import json
import random
from decimal import Decimal
from pathlib import Path

import genai_prices
import pytest
from genai_prices.data import providers
from genai_prices.types import Usage as OracleUsage
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.dimensions import DIMENSIONS
from gateway.core.money import PICO_PER_USD, rate_to_atto
from gateway.core.usage import Usage
from gateway.pricing.catalogue import Catalogue, CatalogueError, Rate, RateCard, packaged_rates
from gateway.pricing.rating import charge
from tests.conftest import shared_folder

CATALOGUE = Catalogue(packaged_rates())
TOKENS = [name for name, d in DIMENSIONS.items() if d.side != "request"]
WHOLES = [name for name in TOKENS if DIMENSIONS[name].part_of is None]
NOW = 1_790_000_000


def usd(amount: str) -> Rate:
    return Rate(rate_to_atto(Decimal(amount)))


@st.composite
def honest_usage(draw: st.DrawFn) -> dict[str, int]:
    """Counts whose parts never exceed their whole."""
    counts: dict[str, int] = {}
    room: dict[str, int] = {}
    for name in TOKENS:
        if not draw(st.booleans()) and name not in ("input", "output"):
            continue
        part_of = DIMENSIONS[name].part_of
        if part_of is not None and part_of not in counts:
            continue
        limit = 10**6 if part_of is None else room[part_of]
        counts[name] = room[name] = draw(st.integers(0, limit))
        if part_of is not None:
            room[part_of] -= counts[name]
    return counts


@given(honest_usage(), st.sets(st.sampled_from(TOKENS)))
def test_each_unit_is_charged_exactly_once(counts: dict[str, int], rated: set[str]) -> None:
    rated |= set(WHOLES)
    card = RateCard(price_id="x", rates={name: usd("1") for name in rated})
    result = charge(Usage(counts=counts), card, "c")
    assert result is not None
    assert sum(line.units for line in result.lines) == sum(counts.get(whole, 0) for whole in WHOLES)
    assert result.cost_pico_usd == sum(line.cost_pico_usd for line in result.lines)
    assert len({line.dimension for line in result.lines}) == len(result.lines)
    assert all(line.dimension in rated and line.units >= 0 for line in result.lines)


def test_the_most_specific_rate_applies() -> None:
    card = RateCard(
        price_id="x",
        rates={
            "input": usd("3"),
            "cache_read": usd("0.3"),
            "cache_write": usd("3.75"),
            "cache_write_1h": usd("6"),
            "output": usd("15"),
        },
    )
    counts = {
        "input": 10_000,
        "cache_read": 4_000,
        "cache_write": 3_000,
        "cache_write_5m": 500,
        "cache_write_1h": 1_000,
        "output": 100,
    }
    result = charge(Usage(counts=counts), card, "c")
    assert result is not None
    assert {line.dimension: line.units for line in result.lines} == {
        "input": 3_000,
        "cache_read": 4_000,
        "cache_write": 2_000,  # the split is stale by 1,500: the rest is charged at the plain write rate
        "cache_write_1h": 1_000,
        "output": 100,
    }


def test_parts_above_their_whole_are_charged_as_reported_and_never_negative() -> None:
    card = RateCard(price_id="x", rates={"input": usd("1"), "cache_read": usd("1"), "output": usd("1")})
    result = charge(Usage(counts={"input": 29, "cache_read": 157, "output": 1}), card, "c")
    assert result is not None
    assert [(line.dimension, line.units) for line in result.lines] == [("cache_read", 157), ("output", 1)]


def test_units_without_any_rate_make_the_bill_unpriced_not_cheaper() -> None:
    card = RateCard(price_id="x", rates={"input": usd("1")})
    assert charge(Usage(counts={"input": 5, "output": 7}), card, "c") is None
    assert charge(Usage(counts={"input": 5, "output": 0}), card, "c") is not None


def test_only_what_costs_nothing_by_itself_needs_no_rate() -> None:
    tokens = {"input": 5, "output": 7}
    card = RateCard(price_id="x", rates={"input": usd("1"), "output": usd("1")})
    for name in WHOLES:
        if name not in tokens:
            free = DIMENSIONS[name].free_without_rate
            assert (charge(Usage(counts={**tokens, name: 1}), card, "c") is not None) is free, name
            assert charge(Usage(counts={**tokens, name: 0}), card, "c") is not None
            assert charge(Usage(counts={name: 1}), card, "c") is None, "nothing known is never free"


def test_an_unknown_model_has_no_rate() -> None:
    assert CATALOGUE.card("openai", "openai", "no-such-model-9", NOW) is None
    assert CATALOGUE.card("x", "no-such-provider", "gpt-4o", NOW) is None


def test_an_override_wins_keeps_the_buckets_and_changes_the_hash() -> None:
    own = Catalogue(packaged_rates(), {"openai/gpt-4o": {"input": "10", "cache_read": "1", "output": 20}})
    card = own.card("openai", "openai", "gpt-4o", NOW)
    assert card is not None
    result = charge(Usage(counts={"input": 100, "cache_read": 60, "output": 10}), card, own.hash)
    assert result is not None
    assert result.cost_pico_usd == 40 * 10_000_000 + 60 * 1_000_000 + 10 * 20_000_000
    assert result.price_id == "override:openai/gpt-4o"
    assert own.hash != CATALOGUE.hash


@pytest.mark.parametrize(
    "bad",
    [{"gpt-4o": {"input": "1"}}, {"a/b": {"inputs": "1"}}, {"a/b": {"input": "x"}}, {"a/b": {"input": "-1"}}],
)
def test_an_override_that_cannot_be_used_is_named(bad: dict[str, dict[str, str]]) -> None:
    with pytest.raises(CatalogueError, match=r"prices.overrides"):
        Catalogue(packaged_rates(), bad)


def test_agrees_with_the_oracle() -> None:
    chance = random.Random(20261121)
    compared, differences, unpriced = 0, [], 0
    for provider in providers:
        for model in chance.sample(provider.models, min(40, len(provider.models))):
            for _ in range(2):
                size = chance.choice([10, 1_000, 150_000, 250_000, 700_000])
                read, written = chance.randrange(size // 2), chance.randrange(size // 3)
                hour, out = chance.randrange(written + 1), chance.randrange(5_000)
                at = 1_700_000_000 + chance.randrange(95_000_000)
                try:
                    expected = genai_prices.calc_price(
                        OracleUsage(
                            input_tokens=size,
                            cache_read_tokens=read,
                            cache_write_tokens=written,
                            cache_write_1h_tokens=hour,
                            output_tokens=out,
                        ),
                        model_ref=model.id,
                        provider_id=provider.id,
                        genai_request_timestamp=datetime.datetime.fromtimestamp(at, datetime.UTC),
                    ).total_price
                except (LookupError, ValueError):
                    continue
                counts = {
                    "input": size,
                    "cache_read": read,
                    "cache_write": written,
                    "cache_write_1h": hour,
                    "output": out,
                }
                card = CATALOGUE.card(provider.id, provider.id, model.id, at)
                result = None if card is None else charge(Usage(counts=counts), card, "c")
                if result is None:
                    unpriced += 1  # the oracle calls tokens without a rate free; here they are unpriced
                    continue
                compared += 1
                # Each of at most five lines is rounded by half a pico-USD.
                if abs(Decimal(result.cost_pico_usd) / PICO_PER_USD - expected) > Decimal("0.0000000000025"):
                    differences.append((provider.id, model.id, counts, result.cost_pico_usd, expected))
    assert not differences, differences[:5]
    assert compared > 1500
    assert unpriced < compared / 4


def test_reproduces_what_providers_themselves_charged() -> None:
    folder = shared_folder("SPANBILL_PRICES", "prices")
    if not (folder / "reported_cost_cases.jsonl").exists():
        pytest.skip(f"no price cases at {folder}; set SPANBILL_PRICES")
    seen = 0
    for line in Path(folder / "reported_cost_cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        rates = case.get("catalogue_rates_per_mtok")
        if case["class"] != "tokens x list price" or not rates:
            continue
        names = {
            "input_mtok": "input",
            "output_mtok": "output",
            "cache_read_mtok": "cache_read",
            "cache_write_mtok": "cache_write",
        }
        if not set(rates) <= set(names) or any("Tiered" in str(rate) for rate in rates.values()):
            continue
        card = RateCard(price_id="x", rates={names[key]: usd(rate) for key, rate in rates.items()})
        tokens = case["tokens"]
        counts = {"input": tokens["input_total"], "output": tokens.get("output_total", 0)}
        counts |= {name: tokens[name] for name in ("cache_read", "cache_write") if name in tokens}
        result = charge(Usage(counts=counts), card, "c")
        assert result is not None, case["id"]
        reported = Decimal(case["reported_cost"])
        ours = Decimal(result.cost_pico_usd) / PICO_PER_USD
        assert abs(ours - reported) <= reported * Decimal("0.005"), (case["id"], ours, reported)
        seen += 1
    assert seen > 50
