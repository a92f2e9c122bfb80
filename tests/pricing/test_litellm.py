"""A LiteLLM price map becomes a catalogue file, digit by digit, and nothing is lost without a word."""

from __future__ import annotations

import json

import msgspec

from gateway.core.charge import Charge, NoRate
from gateway.core.usage import Usage
from gateway.pricing import importer, litellm
from gateway.pricing.catalogue import Catalogue, nothing_shipped, packaged_rates
from gateway.pricing.own import FORMAT, exact, parse_catalogue
from gateway.pricing.selling import Book, Sale

MAP = """{
 "sample_spec": {"input_cost_per_token": 0.0, "litellm_provider": "one of ..."},
 "tiered": {"litellm_provider": "anthropic", "max_input_tokens": 200000, "mode": "chat",
   "input_cost_per_token": 3e-06, "input_cost_per_token_above_200k_tokens": 6e-06,
   "output_cost_per_token": 1.5e-05, "output_cost_per_token_above_200k_tokens": 2.25e-05,
   "cache_read_input_token_cost": 3e-07, "cache_read_input_token_cost_above_200k_tokens": 6e-07,
   "cache_creation_input_token_cost": 3.75e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
   "cache_creation_input_token_cost_above_1hr_above_200k_tokens": 1.2e-05,
   "search_context_cost_per_query":
     {"search_context_size_low": 0.01, "search_context_size_medium": 0.01, "search_context_size_high": 0.02},
   "provider_specific_entry": {"us": 1.1, "fast": 2.0}, "supports_vision": true},
 "tiers": {"litellm_provider": "openai", "input_cost_per_token": 2.9999999999999997e-06,
   "output_cost_per_token": 1e-05, "output_cost_per_token_priority": 2e-05,
   "input_cost_per_token_priority": 5e-06,
   "input_cost_per_token_flex": 1.5e-06, "input_cost_per_token_batches": 1.5e-06,
   "input_cost_per_token_above_272k_tokens_priority": 1e-05, "output_cost_per_reasoning_token": 1.2e-05,
   "file_search_cost_per_1k_calls": 2.5},
 "xai/grok-x": {"litellm_provider": "xai", "aliases": ["Grok-X-Latest"],
   "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06},
 "gemini/flash": {"litellm_provider": "gemini", "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06,
   "output_cost_per_image": 0.039},
 "flash": {"litellm_provider": "vertex_ai-language-models", "input_cost_per_token": 2e-06,
   "output_cost_per_token": 2e-06},
 "free": {"litellm_provider": "openai", "input_cost_per_token": 0.0, "output_cost_per_token": 0},
 "homeless": {"input_cost_per_token": 1e-06}
}"""


def imported() -> tuple[Book, list[str]]:
    sections, left_out = litellm.sections_of(exact(MAP.encode()))
    data = json.dumps({"format": FORMAT, "providers": sections}).encode()
    return Book(Catalogue(nothing_shipped(), own=parse_catalogue(data, "x", {}))), left_out


def cost(section: str, model: str, counts: dict[str, int], **facts: object) -> Charge | NoRate:
    book, _ = imported()
    sale = Sale(provider=section, section=section, model=model, at_unix_s=1_795_250_000)
    return book.charge(sale, Usage(counts={"input": 0, "output": 0, **counts}, **facts))  # type: ignore[arg-type]


def rates(section: str, model: str, counts: dict[str, int], **facts: object) -> dict[str, int]:
    found = cost(section, model, counts, **facts)
    assert isinstance(found, Charge), found
    return {line.dimension: line.rate_atto_per_million for line in found.lines if line.units}


def test_dimensions_and_context_tiers() -> None:
    counts = {"input": 100, "cache_read": 10, "cache_write": 20, "cache_write_1h": 5, "output": 3}
    usd = 10**18
    assert rates("anthropic", "tiered", counts) == {
        "input": 3 * usd,
        "cache_read": 3 * usd // 10,
        "cache_write": 375 * usd // 100,
        "cache_write_1h": 6 * usd,
        "output": 15 * usd,
    }
    assert rates("anthropic", "tiered", counts | {"input": 200_001}) == {
        "input": 6 * usd,
        "cache_read": 6 * usd // 10,
        "cache_write": 375 * usd // 100,
        "cache_write_1h": 12 * usd,
        "output": 225 * usd // 10,
    }


def test_numbers_are_the_digits_of_the_file() -> None:
    assert rates("openai", "tiers", {"input": 1}) == {"input": 2_999_999_999_999_999_700}


def test_service_tiers_batches_speed_region_and_searches() -> None:
    usd = 10**18
    assert rates("openai", "tiers", {"input": 1}, service_tier="priority") == {"input": 5 * usd}
    assert rates("openai", "tiers", {"input": 272_001}, service_tier="priority") == {"input": 10 * usd}
    assert rates("openai", "tiers", {"input": 1}, service_tier="flex") == {"input": 15 * usd // 10}
    assert rates("openai", "tiers", {"input": 1}, service_tier="batch") == {"input": 15 * usd // 10}
    assert rates("openai", "tiers", {"output": 9, "reasoning": 4}) == {
        "output": 10 * usd,
        "reasoning": 12 * usd,
    }
    assert rates("openai", "tiers", {"file_search": 2}) == {"file_search": 2500 * usd}
    both = cost("anthropic", "tiered", {"input": 10}, qualifiers={"speed": "fast", "inference_geo": "us"})
    assert isinstance(both, Charge)
    assert both.cost_pico_usd == 66_000_000
    assert rates("anthropic", "tiered", {"web_search": 1}) == {"web_search": 10_000 * usd}
    high = {"search_context_size": "high"}
    assert rates("anthropic", "tiered", {"web_search": 1}, qualifiers=high) == {"web_search": 20_000 * usd}


def test_names_are_those_that_providers_use() -> None:
    assert isinstance(cost("x-ai", "grok-x", {"input": 1}), Charge)
    assert isinstance(cost("x-ai", "grok-x-latest", {"input": 1}), Charge)
    assert rates("google", "flash", {"input": 1}) == {"input": 10**18}


def test_what_is_left_out_is_said() -> None:
    _, left_out = imported()
    assert sorted(left_out) == [
        "flash: google/flash has another price already",
        "free: it has no price, or one of 0, which may mean free or unknown",
        "gemini/flash: output_cost_per_image",
        "homeless: it has no litellm_provider",
    ]
    assert cost("openai", "free", {"input": 1}) == NoRate("model")


def test_the_shipped_rates_survive_being_written_as_a_file() -> None:
    sections, left_out = importer.as_sections(packaged_rates())
    data = msgspec.json.encode({"format": FORMAT, "providers": sections})
    again, shipped = (
        Catalogue(nothing_shipped(), own=parse_catalogue(data, "x", {})),
        Catalogue(packaged_rates()),
    )
    checked = 0
    for section, entry in shipped.entries():
        for at in (1_735_000_000, 1_795_250_000):
            card = shipped.card("", section, entry.model.id, at)
            assert again.card("", section, entry.model.id, at) == card
            checked += card is not None
    assert checked > 3_000
    assert left_out
    assert all("hours" in line or "messages" in line or "pages" in line for line in left_out), left_out
