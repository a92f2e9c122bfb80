"""Importer: the genai-prices data becomes our rate catalogue, once, at build time.

`python -m gateway.pricing.importer` writes `rates.json` beside this file; `--check` compares instead. The
package is a tool of the build: at run time its data would cost 65 MiB and each look-up 75 us.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.core.dimensions import DIMENSIONS

TARGET: Final = Path(__file__).with_name("rates.json")
DIMENSION_OF: Final = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "output_audio_mtok": "output_audio",
    "input_image_mtok": "input_image",
    "output_image_mtok": "output_image",
    "output_reasoning_mtok": "reasoning",
    "cache_write_5m_mtok": "cache_write_5m",
    "input_video_mtok": "input_video",
    "output_video_mtok": "output_video",
    "input_tool_mtok": "input_tool",
    "cache_audio_read_mtok": "cache_read_audio",
    "cache_image_read_mtok": "cache_read_image",
    "output_citation_mtok": "citation",
}
PER: Final = {
    "requests_kcount": ("request", "/1000"),
    "web_searches_kcount": ("web_search", "/1000"),
    "storage_searches_kcount": ("file_search", "/1000"),
    "social_searches_kcount": ("social_search", "/1000"),
    "rerank_searches_kcount": ("rerank_search", "/1000"),
    "code_executions_kcount": ("code_interpreter", "/1000"),
    "input_document_kpages": ("page", "/1000"),
    "input_mchars": ("character", "/1M"),
}
"""What is not counted in tokens, and for how many its price stands; hours of audio are left out, as an hour
has no power of ten of seconds and their prices no finite decimal per second."""
MULTIPLIERS: Final[dict[str, list[dict[str, Any]]]] = {
    "anthropic": [{"when": {"inference_geo": "us"}, "multiply": "1.1"}],
}
"""What the data does not say: Anthropic's price page, "Data residency": all token rates, 1.1 times."""
CALLS: Final = (("x-ai", "", {"web_search": "5/1000"}), ("openrouter", "openai/", {"web_search": "10/1000"}))
"""What a call costs beside tokens, by section and start of the model's id: xAI's web search, and OpenAI's
where OpenRouter passes it on. Recorded replies that state their own cost prove both."""
_SONAR: Final = {"low": "5/1000", "medium": "8/1000"}
_SONAR_PRO: Final = {"low": "6/1000", "medium": "10/1000"}
REQUEST_FEES: Final = {
    ("perplexity", "sonar"): _SONAR,
    ("perplexity", "sonar-reasoning"): _SONAR,
    ("perplexity", "sonar-pro"): _SONAR_PRO,
    ("perplexity", "sonar-reasoning-pro"): _SONAR_PRO,
}
"""Perplexity's price page: the fee per request by the size of the search context, which the reply states; the
data has the fee of the size `high` only."""
SIMULATED_SMALL: Final = {"input": "0.15", "output": "0.6"}
SIMULATED: Final[dict[str, dict[str, str]]] = {
    "sim-large": {"input": "2.5", "output": "10"},
    "sim-cache": {
        "input": "3",
        "cache_read": "0.3",
        "cache_write": "3.75",
        "cache_write_1h": "6",
        "output": "15",
    },
    "sim-reasoning": {"input": "1.1", "output": "4.4"},
    "sim-": SIMULATED_SMALL,
}
"""Rates of the simulated provider's models, by prefix, first match wins."""


def build() -> bytes:
    """Return the catalogue as bytes: the same data always gives the same bytes."""
    from genai_prices.data import providers  # a dependency of the build, not of the gateway

    version = importlib.metadata.version("genai-prices")
    catalogue: dict[str, Any] = {
        "source": f"genai-prices {version} (MIT)",
        "unit": "USD per million",
        "providers": {
            provider.id: {
                "fallback": provider.fallback_model_providers or [],
                "models": [
                    _model(
                        model, _calls(provider.id, model.id), REQUEST_FEES.get((provider.id, model.id), {})
                    )
                    for model in provider.models
                ],
                **({"multipliers": MULTIPLIERS[provider.id]} if provider.id in MULTIPLIERS else {}),
            }
            for provider in sorted(providers, key=lambda p: p.id)
        },
    }
    catalogue["providers"]["simulated"] = {
        "fallback": [],
        "models": [
            {"id": name.rstrip("-"), "match": {"starts_with": name}, "prices": [{"rates": rates}]}
            for name, rates in SIMULATED.items()
        ],
    }
    return msgspec.json.format(msgspec.json.encode(catalogue), indent=0).replace(b"\n", b"") + b"\n"


def _model(model: Any, calls: dict[str, str], request_fees: dict[str, str]) -> dict[str, Any]:
    prices = model.prices if isinstance(model.prices, list) else None
    row: dict[str, Any] = {"id": model.id, "match": _match(model.match)}
    if model.name:
        row["name"] = model.name
    if model.context_window:
        row["context_window"] = model.context_window
    if prices is None:
        rates = _rates(model.prices)
        if not rates and model.id.endswith(":free"):
            rates = {"input": "0", "output": "0"}  # free by name; an empty list alone means unknown
        row["prices"] = [{"rates": rates}]
    else:
        row["prices"] = [{**_constraint(price.constraint), "rates": _rates(price.prices)} for price in prices]
    variants = [
        {"when": variant.when, **_constraint(variant.constraint), "rates": _rates(variant.prices)}
        for variant in model.price_variants or ()
    ]
    for price in row["prices"]:
        if "input" in price["rates"]:
            price["rates"] |= {name: rate for name, rate in calls.items() if name not in price["rates"]}
    variants += [
        {"when": {"search_context_size": size}, "rates": {"request": fee}}
        for size, fee in request_fees.items()
    ]
    if variants:
        row["variants"] = variants
    return row


def _calls(section: str, model: str) -> dict[str, str]:
    return next((rates for place, start, rates in CALLS if place == section and model.startswith(start)), {})


def _match(clause: Any) -> dict[str, Any]:
    fields = vars(clause)
    ((name, value),) = ((key.rstrip("_"), val) for key, val in fields.items())
    if name in ("or", "and"):
        return {name: [_match(inner) for inner in value]}
    return {name: value if name == "regex" else value.lower()}


def _constraint(constraint: Any) -> dict[str, str]:
    if constraint is None:
        return {}
    if hasattr(constraint, "start_date"):
        return {"from": constraint.start_date.isoformat()}
    return {"from_time": _utc(constraint.start_time), "to_time": _utc(constraint.end_time)}


def _utc(value: Any) -> str:
    if value.utcoffset():
        raise ValueError("a time of day with an offset; the importer knows UTC only")
    return str(value.strftime("%H:%M:%S"))


def _rates(prices: Any) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    for key, price in vars(prices).items():
        if price is None:
            continue
        if key in PER:
            name, per = PER[key]
            rates[name] = format(price, "f") + per
        elif hasattr(price, "tiers"):
            rates[DIMENSION_OF.get(key, key)] = {
                "base": format(price.base, "f"),
                "tiers": [[tier.start, format(tier.price, "f")] for tier in price.tiers],
            }
        else:
            rates[DIMENSION_OF.get(key, key)] = format(price, "f")
    return dict(sorted(rates.items()))


def as_sections(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """Return a compiled catalogue as the sections of a catalogue file, and in words what it cannot hold."""
    left_out: list[str] = []
    sections: dict[str, Any] = msgspec.json.decode(data)["providers"]
    for name, section in sections.items():
        for model in section["models"]:
            for price in (*model["prices"], *model.get("variants", ())):
                unknown = [dimension for dimension in price["rates"] if dimension not in DIMENSIONS]
                left_out += [f"{name}/{model['id']}: {dimension}" for dimension in unknown]
                price["rates"] = {k: rate for k, rate in price["rates"].items() if k in DIMENSIONS}
    return sections, left_out


def main(arguments: list[str]) -> int:
    """Write the catalogue, or with `--check` say whether it is what the data gives."""
    data = build()
    if "--check" in arguments:
        same = TARGET.read_bytes() == data
        print("rates.json is up to date" if same else "rates.json differs from its source: run `make prices`")
        return 0 if same else 1
    TARGET.write_bytes(data)
    print(f"wrote {TARGET.name}: {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
