"""What is reserved is the most that a request can cost, and no absurd amount."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.assembly import book_of
from gateway.budgets.reservation import most_of
from gateway.core.charge import Charge
from gateway.core.dimensions import DIMENSIONS
from gateway.core.exchange import Call, Identity
from gateway.core.usage import Usage
from gateway.pricing.selling import Book, Sale
from gateway.settings import AdjustmentSettings, PricesSettings

RATES: dict[str, str | int] = {
    "input": "1",
    "cache_read": "0.1",
    "cache_write": "1.25",
    "output": "4",
    "request": "0.01",
}
BOOK = book_of(PricesSettings(overrides={"p/m": RATES, "p/dear": {**RATES, "output": "40"}}))
AT_S = 1_790_000_000
INPUTS = [n for n, d in DIMENSIONS.items() if d.side == "input" and d.unit == "token" and n != "citation"]
OUTPUTS = [n for n, d in DIMENSIONS.items() if d.side == "output" and d.unit == "token"]


class Aim(msgspec.Struct, frozen=True):
    model: str
    provider: str = "p"
    prices: str = "p"


def call(**changes: Any) -> Call:
    plain = Call(
        record_id="r",
        trace_id="a" * 32,
        span_id="b" * 16,
        server_span_id="c" * 16,
        protocol="chat_completions",
        operation="chat",
        model="m",
        stream=False,
        identity=Identity(key_id="k", user_id="u", source="key", team="t"),
        started_unix_ns=AT_S * 10**9,
        max_tokens=100,
        input_summary={"bytes": 1_000},
    )
    return msgspec.structs.replace(plain, **changes)


def most(book: Book = BOOK, *models: str, assumed: int = 500, **changes: Any) -> int | None:
    return most_of(book, call(**changes), [Aim(model) for model in models or ("m",)], assumed)


def parts(tokens: int) -> st.SearchStrategy[int]:
    return st.integers(0, tokens)


@given(
    st.integers(1, 5_000),
    st.integers(1, 3_000),
    st.integers(1, 8),
    st.dictionaries(st.sampled_from(INPUTS[1:]), st.integers(0, 5_000)),
    st.dictionaries(st.sampled_from(OUTPUTS[1:]), st.integers(0, 3_000)),
)
def test_what_is_reserved_is_no_less_than_what_is_billed(
    size: int, max_tokens: int, choices: int, inputs: dict[str, int], outputs: dict[str, int]
) -> None:
    output = max_tokens * choices
    counts = {"input": size, "output": output}
    # A provider's parts stay within their whole.
    counts |= {name: min(count, size // len(inputs)) for name, count in inputs.items()}
    counts |= {name: min(count, output // len(outputs)) for name, count in outputs.items()}
    sale = Sale(provider="p", section="p", model="m", at_unix_s=AT_S, key_id="k", team="t")
    billed = BOOK.charge(sale, Usage(counts=counts))
    assert isinstance(billed, Charge)
    reserved = most(max_tokens=max_tokens, choices=choices, input_summary={"bytes": size})
    assert reserved is not None
    assert reserved >= billed.cost_pico_usd


def test_it_is_the_sum_of_what_the_request_allows() -> None:
    pico = 10**6  # one USD per million tokens
    assert most() == 1_000 * 125 * pico // 100 + 100 * 4 * pico + 10**10
    assert most(choices=3) == 1_250 * pico + 300 * 4 * pico + 10**10
    assert most(max_tokens=None) == 1_250 * pico + 500 * 4 * pico + 10**10
    assert most(sides=("input",)) == 1_250 * pico + 10**10


def test_the_dearest_target_counts_and_one_without_a_rate_has_no_bound() -> None:
    dear = most(BOOK, "dear")
    assert dear is not None
    assert most(BOOK, "m", "dear") == most(BOOK, "dear", "m") == dear > (most() or 0)
    assert most(BOOK, "m", "unheard-of") is None


def test_images_and_what_is_stored_elsewhere_are_counted() -> None:
    plain = most()
    assert plain is not None
    assert most(input_summary={"bytes": 1_000, "images": 2}) == plain + 40_000 * 1_250_000
    stored = most(input_summary={"bytes": 10, "references": 1}, assumed=9_000)
    assert stored == 9_000 * 1_250_000 + 100 * 4 * 10**6 + 10**10


def test_no_more_is_reserved_than_a_models_context_holds() -> None:
    book = book_of(PricesSettings())
    aims = [Aim("gpt-4o", provider="openai", prices="openai")]
    huge = call(max_tokens=10**12, input_summary={"bytes": 10**7})
    bounded = most_of(book, huge, aims, 16_384)
    assert bounded is not None
    assert bounded < 10 * 10**12, "ten dollars for a model of 128,000 tokens"
    assert bounded == most_of(book, call(max_tokens=128_000, input_summary={"bytes": 128_000}), aims, 1)


@pytest.mark.parametrize(("kind", "field"), [("markup", {"percent": "50"}), ("fee", {"amount": "0.5"})])
def test_what_is_added_to_a_bill_is_reserved_too(kind: Any, field: dict[str, str]) -> None:
    rule = AdjustmentSettings(id="a", kind=kind, team="t", **field)  # type: ignore[arg-type]
    book = book_of(PricesSettings(overrides={"p/m": RATES}, adjustments=(rule,)))
    plain = most()
    assert plain is not None
    assert most(book) == (plain * 3 // 2 if kind == "markup" else plain + 5 * 10**11)
