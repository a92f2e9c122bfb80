"""LiteLLM: a price map of that project becomes sections of ours, digit by digit, and says what is left out.

Its map has one flat object a model, whose keys spell dimension, context tier and service tier:
`input_cost_per_token_above_200k_tokens_priority`. Every key that looks like a price is either taken or named
among what was left out; so is a model that costs 0, which there means free or unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from gateway.pricing.rates import exact_product

SECTIONS: Final = {
    "gemini": "google",
    "vertex_ai": "google",
    "xai": "x-ai",
    "together_ai": "together",
    "fireworks_ai": "fireworks",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "cohere_chat": "cohere",
}
"""Their providers that have another name here; `vertex_ai-…` counts as `vertex_ai`."""
TOKENS: Final = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "input_cost_per_audio_token": "input_audio",
    "output_cost_per_audio_token": "output_audio",
    "input_cost_per_image_token": "input_image",
    "output_cost_per_image_token": "output_image",
    "input_cost_per_video_token": "input_video",
    "output_cost_per_video_token": "output_video",
    "output_cost_per_reasoning_token": "reasoning",
    "cache_read_input_audio_token_cost": "cache_read_audio",
    "cache_read_input_image_token_cost": "cache_read_image",
    "citation_cost_per_token": "citation",
}
PIECES: Final = {
    "input_cost_per_request": ("request", ""),
    "input_cost_per_query": ("rerank_search", ""),
    "ocr_cost_per_page": ("page", ""),
    "input_cost_per_character": ("character", ""),
    "input_cost_per_second": ("audio_second", ""),
    "file_search_cost_per_1k_calls": ("file_search", "/1000"),
}
TIERS: Final = {
    "priority": {"service_tier": "priority"},
    "flex": {"service_tier": "flex"},
    "batches": {"processing": "batch"},
}
FACTORS: Final = {"fast": {"speed": "fast"}, "us": {"inference_geo": "us"}}
_ABOVE: Final = re.compile(r"_above_(\d{1,6})k_tokens")
_TIER: Final = re.compile(r"_(priority|flex|batches)(?=_above|$)")
_LIKE_A_PRICE: Final = re.compile(r"cost|price")


def sections_of(prices: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return sections as they stand in a catalogue file, and in words what was left out.

    Args:
        prices: the map, with its numbers as decimals.
    """
    sections: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    for name, facts in prices.items():
        if name == "sample_spec" or not isinstance(facts, Mapping):
            continue
        provider = str(facts.get("litellm_provider", ""))
        section = SECTIONS.get(
            provider.split("-")[0] if provider.startswith("vertex_ai") else provider, provider
        )
        if not section:
            left_out.append(f"{name}: it has no litellm_provider")
            continue
        model, without = _model(name.removeprefix(f"{provider}/"), facts)
        left_out += [f"{name}: {key}" for key in without]
        if model is None:
            left_out.append(f"{name}: it has no price, or one of 0, which may mean free or unknown")
            continue
        known = sections.setdefault(section, {}).setdefault(model["id"].lower(), model)
        if known is not model and known != model:
            left_out.append(f"{name}: {section}/{model['id']} has another price already")
    return {
        section: {"models": sorted(models.values(), key=lambda model: str(model["id"]))}
        for section, models in sorted(sections.items())
    }, left_out


def _model(name: str, facts: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return one model of a catalogue file, None without a price, and the keys that were left out."""
    rates: dict[str, dict[str, Any]] = {"": {}}
    tiers: dict[str, dict[str, list[list[Any]]]] = {}
    without: list[str] = []
    for key, value in facts.items():
        if not _LIKE_A_PRICE.search(key) or value is None or key == "search_context_cost_per_query":
            continue
        tier = _TIER.search(key)
        above = _ABOVE.search(key)
        plain = _ABOVE.sub("", _TIER.sub("", key))
        if not isinstance(value, int | Decimal) or isinstance(value, bool):
            without.append(key)
        elif plain in TOKENS:
            when = tier[1] if tier else ""
            rate = _per_million(value)
            if above:
                start = int(above[1]) * 1000
                tiers.setdefault(when, {}).setdefault(TOKENS[plain], []).append([start, rate])
            else:
                rates.setdefault(when, {})[TOKENS[plain]] = rate
        elif key in PIECES:
            dimension, per = PIECES[key]
            rates[""][dimension] = _plain(Decimal(value)) + per
        else:
            without.append(key)
    without += _join(rates, tiers)
    variants: list[dict[str, Any]] = [
        {"when": when, "rates": rates[tier]} for tier, when in TIERS.items() if rates.get(tier)
    ]
    base, searches = _searches(facts.get("search_context_cost_per_query"))
    rates[""].update(base)
    variants += searches
    extra = facts.get("provider_specific_entry")
    for word, factor in extra.items() if isinstance(extra, Mapping) else ():
        if word in FACTORS and isinstance(factor, int | Decimal):
            variants.append({"when": FACTORS[word], "multiply": _plain(Decimal(factor))})
        else:
            without.append(f"provider_specific_entry.{word}")
    if not any(_amount(rate) for rate in rates[""].values()):
        return None, without
    model: dict[str, Any] = {"id": name, "prices": [{"rates": dict(sorted(rates[""].items()))}]}
    aliases = [alias.lower() for alias in facts.get("aliases") or () if isinstance(alias, str)]
    if aliases:
        model["match"] = {"or": [{"equals": known} for known in dict.fromkeys([name.lower(), *aliases])]}
    window = facts.get("max_input_tokens")
    if isinstance(window, int) and window > 0:
        model["context_window"] = window
    if variants:
        model["variants"] = variants
    return model, without


def _join(rates: dict[str, dict[str, Any]], tiers: dict[str, dict[str, list[list[Any]]]]) -> list[str]:
    """Put context tiers behind their base rates; return those that have none."""
    orphans: list[str] = []
    for when, dimensions in tiers.items():
        for dimension, steps in dimensions.items():
            base = rates.get(when, {}).get(dimension)
            if base is None:
                orphans.append(f"{dimension} above {steps[0][0]} tokens, without a base rate")
            else:
                rates[when][dimension] = {"base": base, "tiers": sorted(steps)}
    return orphans


def _searches(costs: object) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return the price of a web search, and what differs by the size of its context."""
    if not isinstance(costs, Mapping):
        return {}, []
    sizes = {
        str(name).removeprefix("search_context_size_"): _plain(Decimal(cost))
        for name, cost in costs.items()
        if isinstance(cost, int | Decimal)
    }
    base = sizes.get("medium") or next(iter(sizes.values()), None)
    if base is None:
        return {}, []
    variants: list[dict[str, Any]] = [
        {"when": {"search_context_size": size}, "rates": {"web_search": cost}}
        for size, cost in sorted(sizes.items())
        if cost != base
    ]
    return {"web_search": base}, variants


def _per_million(per_token: int | Decimal) -> str:
    return _plain(exact_product(Decimal(per_token), Decimal(1_000_000)))


def _plain(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _amount(rate: Any) -> bool:
    """Say whether a written rate is more than 0."""
    written = [rate["base"], *(price for _, price in rate["tiers"])] if isinstance(rate, Mapping) else [rate]
    return any(Decimal(str(price).partition("/")[0]) for price in written)
