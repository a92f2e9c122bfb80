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
}
PER_THOUSAND: Final = {"requests_kcount": "request"}
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
                "models": [_model(model) for model in provider.models],
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


def _model(model: Any) -> dict[str, Any]:
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
    if variants:
        row["variants"] = variants
    return row


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
        if key in PER_THOUSAND:
            rates[PER_THOUSAND[key]] = format(price * 1000, "f")
        elif hasattr(price, "tiers"):
            rates[DIMENSION_OF.get(key, key)] = {
                "base": format(price.base, "f"),
                "tiers": [[tier.start, format(tier.price, "f")] for tier in price.tiers],
            }
        else:
            rates[DIMENSION_OF.get(key, key)] = format(price, "f")
    return dict(sorted(rates.items()))


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
