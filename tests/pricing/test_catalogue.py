"""The rate in force is found by layer, time and what the reply states; whatever is unknown stays unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.charge import Charge, NoRate
from gateway.core.usage import OtherUsage, Usage
from gateway.pricing.catalogue import Catalogue, CatalogueError, nothing_shipped, packaged_rates
from gateway.pricing.entries import Section, context_of
from gateway.pricing.own import parse_catalogue, read_catalogue
from gateway.pricing.rates import (
    Exchange,
    Validity,
    parse_amount,
    parse_exchange,
    parse_instant,
    parse_percent,
    parse_rate,
)
from gateway.pricing.selling import Book, Sale
from tests.conftest import ROOT

OCTOBER = parse_instant("2026-10-01")
NOVEMBER = parse_instant("2026-11-01")
NOW = parse_instant("2026-11-21")
FILE = """
format: spanbill-prices/1
source: our own list
providers:
  openai:
    multipliers:
      - {when: {inference_geo: eu}, multiply: "1.2"}
    models:
      - id: gpt-4o
        prices:
          - {from: 2026-10-01, until: 2026-11-01, rates: {input: 1.25, output: "5"}}
      - id: our-model
        match: {starts_with: our-model}
        prices:
          - id: ours-1
            rates: {input: 0.001/1k, output: 2, cache_read: {base: "0.1", tiers: [[1000, "0.2"]]}}
          - {id: ours-2, from: 2026-11-01, rates: {input: 3, output: 4, web_search: 10/1000}}
        variants:
          - {when: {service_tier: flex}, rates: {input: "1.5"}}
          - {when: {service_tier: batch}, multiply: "0.5"}
"""


def own(text: str = FILE, exchange: Exchange | None = None) -> tuple[dict[str, Section], bytes]:
    return parse_catalogue(text.encode(), "prices.yaml", exchange or {})


def book(**options: object) -> Book:
    return Book(Catalogue(packaged_rates(), own=own(), **options))  # type: ignore[arg-type]


def sale(model: str, at: int = NOW, served: str | None = None) -> Sale:
    return Sale(provider="openai", section="openai", model=model, served=served, at_unix_s=at)


def priced(result: Charge | NoRate) -> Charge:
    assert isinstance(result, Charge), result
    return result


OWN = own()
SMALL = nothing_shipped()
TOKENS = Usage(counts={"input": 1_000_000, "output": 1_000_000})


def test_the_operators_price_holds_in_its_time_and_the_shipped_one_before_and_after() -> None:
    found = {at: priced(book().charge(sale("gpt-4o", at), TOKENS)) for at in (OCTOBER - 1, OCTOBER, NOVEMBER)}
    assert [charge.cost_pico_usd // 10**10 for charge in found.values()] == [1250, 625, 1250]
    assert [charge.price_id for charge in found.values()] == [
        "openai/gpt-4o",
        "openai/gpt-4o@2026-10-01",
        "openai/gpt-4o",
    ]


@given(st.lists(st.integers(OCTOBER - 5, NOVEMBER + 5), max_size=20))
def test_what_was_asked_before_changes_no_answer(times: list[int]) -> None:
    asked = Book(Catalogue(SMALL, own=OWN))
    for at in times:
        for tier in (None, "flex"):
            usage = Usage(counts=TOKENS.counts, service_tier=tier)
            answer = asked.charge(sale("our-model", at), usage)
            assert answer == Book(Catalogue(SMALL, own=OWN)).charge(sale("our-model", at), usage)


def test_a_price_has_its_own_id_and_the_last_in_force_applies() -> None:
    assert priced(book().charge(sale("our-model-7", OCTOBER), TOKENS)).price_id == "ours-1"
    assert priced(book().charge(sale("our-model-7", NOVEMBER), TOKENS)).price_id == "ours-2"


def test_tier_and_region_decide_and_multiply_and_the_id_says_so() -> None:
    def cost(**facts: object) -> tuple[int, str]:
        usage = Usage(counts=TOKENS.counts, **facts)  # type: ignore[arg-type]
        charge = priced(book().charge(sale("our-model"), usage))
        return charge.cost_pico_usd // 10**10, charge.price_id

    assert cost() == (700, "ours-2")
    assert cost(service_tier="default") == (700, "ours-2")
    assert cost(service_tier="flex") == (550, "ours-2+service_tier=flex")
    assert cost(service_tier="Batch") == (350, "ours-2+processing=batch")
    assert cost(qualifiers={"inference_geo": "eu"}) == (840, "ours-2+inference_geo=eu")
    assert cost(service_tier="batch", qualifiers={"inference_geo": "eu"}) == (
        420,
        "ours-2+processing=batch+inference_geo=eu",
    )
    assert cost(qualifiers={"nobody_knows": "x", "speed": "standard"}) == (700, "ours-2")


def test_of_two_variants_that_fit_the_first_one_gives_the_rate_of_each_dimension() -> None:
    text = (
        "format: spanbill-prices/1\nproviders: {openai: {models: [{id: m,"
        " prices: [{rates: {input: 1, output: 1}}], variants: [{when: {speed: fast}, rates: {input: 2}},"
        " {when: {service_tier: flex}, rates: {input: 3, output: 4}}]}]}}"
    )
    both = Book(Catalogue(nothing_shipped(), own=own(text)))
    usage = Usage(counts=TOKENS.counts, service_tier="flex", qualifiers={"speed": "fast"})
    charge = priced(both.charge(sale("m"), usage))
    assert [line.cost_pico_usd // 10**12 for line in charge.lines] == [2, 4]
    assert charge.price_id == "openai/m+speed=fast+service_tier=flex"


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        (Usage(counts=TOKENS.counts, service_tier="priority"), "service_tier=priority"),
        (Usage(counts=TOKENS.counts, qualifiers={"inference_geo": "us"}), "inference_geo=us"),
        (Usage(counts=TOKENS.counts, qualifiers={"speed": "fast"}), "speed=fast"),
        (Usage(counts={"input": 1, "output": 1, "file_search": 1}), "file_search"),
    ],
)
def test_what_has_no_rate_is_not_sold_at_another(usage: Usage, reason: str) -> None:
    assert book().charge(sale("our-model"), usage) == NoRate(reason)


def test_anthropic_fast_mode_batch_and_region_stack() -> None:
    shipped = Book(Catalogue(packaged_rates()))
    counts = {"input": 1_000_000, "output": 0}

    def cost(**facts: object) -> int:
        where = Sale(provider="anthropic", section="anthropic", model="claude-opus-5", at_unix_s=NOW)
        return priced(shipped.charge(where, Usage(counts=counts, **facts))).cost_pico_usd  # type: ignore[arg-type]

    assert cost() == 5 * 10**12
    assert cost(qualifiers={"inference_geo": "us"}) == 55 * 10**11
    assert cost(qualifiers={"speed": "fast"}) == 10 * 10**12
    assert cost(service_tier="batch", qualifiers={"inference_geo": "us"}) == 275 * 10**10


def test_other_models_are_charged_at_their_own_rates_or_the_whole_is_unpriced() -> None:
    def with_other(model: str) -> Usage:
        other = OtherUsage(model=model, reason="advisor", counts={"input": 1_000_000, "output": 0})
        return Usage(counts=TOKENS.counts, others=(other,))

    charge = priced(book().charge(sale("gpt-4o"), with_other("our-model")))
    assert [(line.model, line.dimension, line.cost_pico_usd) for line in charge.lines] == [
        (None, "input", 25 * 10**11),
        (None, "output", 10**13),
        ("our-model", "input", 3 * 10**12),
        ("our-model", "output", 0),
    ]
    assert {line.price_id for line in charge.lines if line.model} == {"ours-2"}
    assert book().charge(sale("gpt-4o"), with_other("nobody")) == NoRate("model nobody")
    fee = Book(Catalogue(packaged_rates(), {"openai/m": {"input": 1, "output": 1, "request": "1"}}))
    once = Usage(
        counts={"input": 0, "output": 0},
        others=(OtherUsage(model="m", reason="fallback", counts={"input": 0, "output": 0}),),
    )
    assert priced(fee.charge(sale("m"), once)).cost_pico_usd == 10**12, "the request's fee is charged once"


def test_the_served_model_is_priced_and_another_price_of_the_requested_one_is_told() -> None:
    charge = priced(book().charge(sale("gpt-4o", served="gpt-4o-mini"), TOKENS))
    assert (charge.price_id, charge.requested_price_id) == ("openai/gpt-4o-mini", "openai/gpt-4o")
    assert (
        priced(book().charge(sale("gpt-4o", served="GPT-4o-2024-08-06"), TOKENS)).requested_price_id is None
    )
    assert priced(book().charge(sale("nobody", served="gpt-4o"), TOKENS)).requested_price_id == "none"


def test_the_fallback_is_used_only_where_nothing_is_known_and_is_an_estimate() -> None:
    plain, sure = book(), book(fallback={"input": "1", "output": "2"})
    assert plain.charge(sale("nobody"), TOKENS) == NoRate("model")
    guessed = priced(sure.charge(sale("nobody"), TOKENS))
    assert (guessed.estimated, guessed.price_id, guessed.cost_pico_usd) == (True, "fallback", 3 * 10**12)
    assert priced(sure.charge(sale("gpt-4o"), TOKENS)).estimated is False
    assert isinstance(
        sure.charge(sale("our-model"), Usage(counts=TOKENS.counts, service_tier="priority")), NoRate
    )


def test_other_currencies_are_exact_and_stand_on_the_charge() -> None:
    exchange = parse_exchange({"SAT": "0.00065", "CNY": "0.14"})
    text = (
        "format: spanbill-prices/1\nproviders: {openai: {models: [{id: sats, prices: "
        "[{rates: {input: 3 sat/1k, output: 7 CNY}}]}]}}"
    )
    sats = Book(Catalogue(nothing_shipped(), own=own(text, exchange), exchange=exchange))
    charge = priced(sats.charge(sale("sats"), TOKENS))
    assert [line.cost_pico_usd for line in charge.lines] == [195 * 10**10, 98 * 10**10]
    assert charge.exchange == "cny=0.14,sat=0.00065"
    with pytest.raises(CatalogueError, match="no exchange rate for sat"):
        own(text)


@pytest.mark.parametrize(
    ("written", "dimension", "usd_per_million"),
    [
        ("2.5", "input", 2.5),
        (3, "input", 3),
        ("0.0025/1k", "output", 2.5),
        ("2.5e-6/1", "input", 2.5),
        ("2.5 USD / 1M", "input", 2.5),
        ("0.01", "web_search", 10_000),
        ("10/1000", "web_search", 10_000),
    ],
)
def test_a_rate_is_written_per_million_per_thousand_or_per_one(
    written: object, dimension: str, usd_per_million: float
) -> None:
    assert parse_rate(written, dimension, {}) == int(usd_per_million * 10) * 10**17


@pytest.mark.parametrize(
    "bad", ["-1", "NaN", "1e400", "1_000", "", "1/7", "1 sat", "1.5.2", True, None, 2.5, "1E-30"]
)
def test_what_is_no_rate_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_rate(bad, "input", {})


@pytest.mark.parametrize("bad", ["101", "-1", "x", "1e2"])
def test_a_discount_is_a_plain_percentage_up_to_all_of_it(bad: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_percent(bad, most=100)
    assert parse_percent("2.5") == (25, 1000)
    with pytest.raises(ValueError, match="a rate"):
        parse_amount("1/1k", {})


@given(st.integers(0, 86_399), st.integers(0, 86_399), st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_answer_holds_in_the_whole_window_that_it_gives(start: int, end: int, at: int, other: int) -> None:
    for validity in (
        Validity(day_from_s=start, day_to_s=end),
        Validity(from_unix_s=start * 10, until_unix_s=start * 10 + end),
    ):
        since, until = validity.window(at)
        assert since <= at < until
        if since <= other < until:
            assert validity.active(other) is validity.active(at)


BAD = {
    "format: spanbill-prices/2\nproviders: {}": "format",
    "providers: {}": "format",
    "[1": "expected",
    FILE + "  openai: {models: []}\n": "stands twice",
    FILE.replace("multiply", "multiplied"): "'multiplied' is not one of",
    FILE.replace("input: 1.25", "imput: 1.25"): "'imput' is not one of",
    FILE.replace("until: 2026-11-01", "until: 2026-09-01"): "`until` is not after `from`",
    FILE.replace("from: 2026-10-01", "from: soon"): "'soon' is no day",
    FILE.replace("0.001/1k", "-1"): "is no rate",
    FILE.replace("starts_with: our-model", "regex: '('"): "no regular expression",
    FILE.replace("starts_with: our-model", "like: our"): "unknown match clause",
    FILE.replace("id: ours-2", "id: ours-1"): "the same id",
    FILE.replace("service_tier: flex", ""): "`when` is empty",
    FILE.replace("id: our-model", "id: GPT-4o"): "stands twice",
    FILE.replace("base: ", "basis: "): "needs `base`",
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_in_a_catalogue_file_is_named(text: str) -> None:
    with pytest.raises(CatalogueError) as refusal:
        own(text)
    assert BAD[text] in str(refusal.value)
    assert str(refusal.value).startswith("prices.yaml: ")


def test_all_mistakes_of_a_file_are_named_at_once() -> None:
    with pytest.raises(CatalogueError) as refusal:
        own(FILE.replace("input: 1.25", "imput: 1.25").replace("0.001/1k", "x"))
    assert len(str(refusal.value).splitlines()) == 2


def test_numbers_of_a_file_are_the_decimals_that_are_written() -> None:
    digits = "0.1000000000000000055"
    head = "format: spanbill-prices/1\n"
    entry = f'{{"models":[{{"id":"m","prices":[{{"rates":{{"input":{digits}}}}}]}}]}}'
    for text in (
        f"{head}providers: {{p: {entry}}}",
        f'{{"format":"spanbill-prices/1","providers":{{"p":{entry}}}}}',
    ):
        with pytest.raises(CatalogueError, match="finer than"):
            own(text)
        sections, _ = own(text.replace(digits, "0.10000000000000001"))
        assert str(sections["p"].models[0].prices[0]["rates"]["input"]) == "0.10000000000000001"


def test_the_last_good_catalogue_stays_where_a_new_one_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(FILE)
    current = Book(Catalogue(packaged_rates(), own=read_catalogue(path, {})))
    before = current.catalogue
    path.write_text(FILE.replace("0.001/1k", "broken"))
    with pytest.raises(CatalogueError):
        current.swap(Book(Catalogue(packaged_rates(), own=read_catalogue(path, {}))))
    assert current.catalogue is before
    path.write_text(FILE.replace("0.001/1k", "0.002/1k"))
    current.swap(Book(Catalogue(packaged_rates(), own=read_catalogue(path, {}))))
    assert priced(current.charge(sale("our-model", OCTOBER), TOKENS)).lines[0].cost_pico_usd == 2 * 10**12


def test_the_catalogue_file_of_the_docs_is_one() -> None:
    page = (ROOT / "docs" / "prices.md").read_text(encoding="utf-8")
    text = page.partition("```yaml\n")[2].partition("```")[0]
    documented = Book(Catalogue(packaged_rates(), own=own(text)))
    october = priced(documented.charge(sale("gpt-4o", OCTOBER), TOKENS))
    assert (october.price_id, october.cost_pico_usd) == ("openai/gpt-4o@2026-10-01", 625 * 10**10)
    flex = Usage(
        counts={"input": 10**6, "output": 0}, service_tier="flex", qualifiers={"inference_geo": "eu"}
    )
    assert priced(documented.charge(sale("our-model-9"), flex)).cost_pico_usd == 55 * 10**10


def test_the_hash_tells_content_and_not_form() -> None:
    spaced = own(FILE.replace("\nsource: our own list", "\n\n# a comment\nsource: another"))
    other = own(FILE.replace("0.001/1k", "0.002/1k"))
    hashes = [Catalogue(packaged_rates(), own=file).hash for file in (own(), spaced, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len({*hashes, Catalogue(packaged_rates()).hash, book(fallback={"input": 1}).catalogue.hash}) == 4


def test_what_a_reply_states_is_compared_in_lower_case() -> None:
    assert context_of(Usage(counts={}, service_tier="BATCH", qualifiers={"speed": "Fast"})) == (
        ("processing", "batch"),
        ("speed", "fast"),
    )
