"""Fuzzed prices: an operator's rates and a catalogue's bytes either stop the start or charge exactly."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from fractions import Fraction

import pytest

from gateway.core.charge import Charge, NoRate
from gateway.core.money import PICO_PER_USD, pico_to_usd
from gateway.core.usage import COUNT_MAX, Usage
from gateway.pricing.catalogue import Catalogue, CatalogueError, nothing_shipped, packaged_rates
from gateway.pricing.own import parse_catalogue
from gateway.pricing.rates import RateCard
from gateway.pricing.rating import charge
from tests.fuzz.mutation import INPUTS, fuzz, mutated

AMOUNTS = [b"2.50", b"0", b"0.000000000000000001", b"10", b"1E3", b"999999999999", b"0.14000000000000001"]
AMOUNT_TOKENS = [
    b"-", b"+", b".", b"e", b"E9", b"E999999999", b"E-999999999", b"NaN", b"sNaN", b"Infinity", b"_", b" ",
    b"9" * 30, b"0" * 70, b"1" * 400, b"\xd9\xa3", b"0x", b",", b"\x00", b"$",
]  # fmt: skip
EMPTY = json.dumps({"source": "s", "unit": "USD per million", "providers": {}}).encode()


def assert_exact(card: RateCard, rated: dict[str, Fraction], chance: random.Random) -> None:
    """Check a charge against arithmetic on fractions: half a pico-USD apart at most, and never negative."""
    counts = {"input": chance.choice([0, 1, 7, 10**6, COUNT_MAX]), "output": chance.randrange(COUNT_MAX)}
    found = charge(Usage(counts=counts), card, "c")
    if not set(rated) >= {"input", "output"}:
        assert isinstance(found, NoRate) or all(
            line.units == 0 or line.dimension in rated for line in found.lines
        )
        return
    assert not isinstance(found, NoRate)
    assert found.cost_pico_usd >= 0
    assert Fraction(pico_to_usd(found.cost_pico_usd)) * PICO_PER_USD == found.cost_pico_usd
    assert found.cost_pico_usd / PICO_PER_USD < float("inf")
    exact = sum(Fraction(counts[name]) * rated[name] / 10**6 for name in counts) * PICO_PER_USD
    exact += rated.get("request", Fraction(0)) * PICO_PER_USD
    assert abs(exact - found.cost_pico_usd) <= Fraction(len(found.lines), 2)


def test_no_rate_of_an_operator_charges_anything_but_itself() -> None:
    used = 0

    def check(chance: random.Random) -> None:
        nonlocal used
        said = {
            name: mutated(chance, AMOUNTS, AMOUNT_TOKENS).decode("utf-8", "replace")
            for name in chance.sample(["input", "output", "request"], chance.randint(1, 3))
        }
        try:
            catalogue = Catalogue(EMPTY, {"p/m": said})
        except CatalogueError as refusal:
            assert "prices.overrides: p/m: " in str(refusal)  # noqa: PT017  # the message is the promise
            return
        used += 1
        card = catalogue.card("p", "p", "m", 0)
        assert card is not None
        assert_exact(card, {name: Fraction(Decimal(amount)) for name, amount in said.items()}, chance)
        assert catalogue.card("p", "p", "m2", 0) is None

    assert fuzz(check) >= INPUTS
    assert used > INPUTS / 20


def section(*models: dict[str, object]) -> bytes:
    value = {"fallback": [], "models": models}
    return json.dumps({"source": "s", "unit": "u", "providers": {"p": value}}, separators=(",", ":")).encode()


CATALOGUES = [
    section({"id": "m", "match": {"equals": "m"}, "prices": [{"rates": {"input": "1", "output": "2"}}]}),
    section(
        {
            "id": "m",
            "match": {"or": [{"starts_with": "m"}, {"and": [{"regex": "^m.$"}, {"contains": "m"}]}]},
            "context_window": 1000,
            "prices": [
                {"rates": {"input": {"base": "1", "tiers": [[100, "2"]]}, "output": "3", "cache_read": "0"}},
                {"from": "2025-02-03", "rates": {"input": "4", "output": "5"}},
                {"from_time": "16:30:00", "to_time": "00:30:00", "rates": {"input": "6", "output": "7"}},
            ],
        }
    ),
]
CATALOGUE_TOKENS = [
    b'"rates"', b"-", b"{}", b"[]", b"null", b'"-1"', b'"1E400"', b'"NaN"', b"99999999999999999999", b'"x"',
    b'"(a+"', b'{"or":[{"regex":"("}]}', b'"2025-13-01"', b'"25:00:00"', b'"tiers":[[1]]', b'"equals":7',
    b"{", b"}", b'"', b",", b"\xff", b"0", b'{"and":' * 50,
]  # fmt: skip


def test_no_catalogue_is_taken_that_could_not_price_a_reply() -> None:
    taken = priced = 0

    def check(chance: random.Random) -> None:
        nonlocal taken, priced
        data = mutated(chance, CATALOGUES, CATALOGUE_TOKENS)
        try:
            catalogue = Catalogue(data)
        except CatalogueError as refusal:
            assert "catalogue" in str(refusal)  # noqa: PT017  # the message is the promise
            return
        taken += 1
        for model in ("m", "mm", "M-20251211", "é" * 256, ""):
            for at_unix_s in (0, 1_738_540_800, 1_790_000_000, 4_000_000_000):
                card = catalogue.card("p", "p", model, at_unix_s)
                if card is None:
                    continue
                priced += 1
                found = charge(Usage(counts={"input": COUNT_MAX, "output": 1, "cache_read": 5}), card, "c")
                assert isinstance(found, NoRate) or found.cost_pico_usd >= 0
                assert all(rate.base >= 0 for rate in card.rates.values())

    assert fuzz(check) >= INPUTS
    assert taken > INPUTS / 20
    assert priced > INPUTS / 20


@pytest.mark.parametrize("amount", ["-1", "-0.000001"])
def test_a_catalogue_that_pays_its_users_is_refused(amount: str) -> None:
    with pytest.raises(CatalogueError, match="p/m cannot be used"):
        Catalogue(CATALOGUES[0].replace(b'"2"', f'"{amount}"'.encode()))


def test_the_packaged_catalogue_is_taken() -> None:
    assert Catalogue(packaged_rates()).card("openai", "openai", "gpt-4o", 1_790_000_000) is not None


OWN_YAML = b"""
format: spanbill-prices/1
providers:
  p:
    models:
      - id: m
        prices:
          - {from: 2026-10-01, until: 2026-11-01, rates: {input: 1.25, output: 5/1k}}
          - from_time: '16:30:00'
            to_time: '00:30:00'
            rates: {input: {base: 1, tiers: [[9, 2]]}, output: 1}
        variants:
          - {when: {service_tier: flex}, multiply: 0.5}
    multipliers: []
"""
OWN_JSON = json.dumps(
    {
        "format": "spanbill-prices/1",
        "providers": {
            "p": {
                "models": [
                    {
                        "id": "m",
                        "match": {"starts_with": "m"},
                        "prices": [
                            {"id": "x", "rates": {"input": 1.5, "output": "2 sat/1k", "request": "0.1"}}
                        ],
                    }
                ]
            }
        },
    }
).encode()
OWN_TOKENS = [
    b"*a", b"&a ", b"[*a]", b"!!python/object:os.system", b"!!binary x", b"{{", b"? ", b"- ", b": ", b"\t",
    b"~", b".inf", b".nan", b"1e999999999", b"0x1F", b"190:20:30", b"2026-13-01", b"'", b'"', b"<<: ",
    b"null", b"true", b"-1", b"\xff", b"\x00", b"rates", b"multiply", b"when", b"tiers",
    b"[[1]]", b"{base: 1}", b"id: m", b"9" * 50, b"sat", b"/7", b"#",
]  # fmt: skip


def test_no_file_of_an_operator_is_taken_that_could_not_price_a_reply() -> None:
    taken = priced = 0
    exchange = {"sat": Decimal("0.00065")}

    def check(chance: random.Random) -> None:
        nonlocal taken, priced
        data = mutated(chance, [OWN_YAML, OWN_JSON], OWN_TOKENS)
        try:
            own = parse_catalogue(data, "prices.yaml", exchange)
        except CatalogueError as refusal:
            assert str(refusal).startswith("prices.yaml: ")  # noqa: PT017  # the message is the promise
            return
        taken += 1
        catalogue = Catalogue(nothing_shipped(), own=own, exchange=exchange)
        for at_unix_s in (0, 1_790_900_000, 1_795_250_000):
            for context in ((), (("service_tier", "flex"),)):
                card = catalogue.card("p", "p", "m", at_unix_s, context)
                if card is None:
                    continue
                found = charge(Usage(counts={"input": COUNT_MAX, "output": 1}), card, "c")
                assert isinstance(found, NoRate) or found.cost_pico_usd >= 0
                priced += isinstance(found, Charge)

    assert fuzz(check) >= INPUTS
    assert taken > INPUTS / 20
    assert priced > INPUTS / 20
