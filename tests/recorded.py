"""What each recorded exchange must be billed as: the provider's own figures, and our named choices."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
CHOICES: Final = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8").partition("## Choices")[2]

NAMES: Final = {
    "input_total": "input",
    "output_total": "output",
    "tool_use_prompt": "input_tool",
    **{
        name: name
        for name in (
            "cache_read",
            "cache_write",
            "cache_write_5m",
            "cache_write_1h",
            "reasoning",
            "input_audio",
            "input_image",
            "output_audio",
            "output_image",
        )
    },
}
"""Counts that the recordings tell, and our dimensions of them; `input_plain` and totals are sums of these."""
COUNTED: Final = frozenset(NAMES.values())

CHOSEN: Final[dict[str, tuple[str, dict[str, int]]]] = {
    "anthropic/messages/b650011166fa.json": ("write_split_repaired", {"cache_write_5m": 3337}),
    "mistral/audio/233e840e870b.json": ("audio_apart_by_total", {"input": 380}),
    "mistral/audio/d6afc32aaf56.json": ("audio_apart_by_total", {"input": 380}),
    "mistral/chat.completions/d20866085a9e.json": ("audio_apart_by_total", {"input": 384}),
    "bedrock/invoke/6eb1de07a7a5.json": ("place_beside_body", {"output": 51}),
    "gemini/interactions/dbf14fb19bbd.json": ("media_by_any_name", {"input_image": 258}),
    "vertex/generateContent/7973a2dbe4ff.json": ("media_by_any_name", {"input_image": 516}),
    "openai/audio/97a52f0e9c6c.json": ("tokens_of_audio", {"input": 37, "input_audio": 37, "output": 145}),
    "openai/audio/d8f0d3a94b8c.json": ("tokens_of_audio", {"input": 37, "input_audio": 37, "output": 145}),
    "openrouter/rerank/9c3b23cf9226.json": ("total_is_input", {"input": 17}),
    "voyage/rerank/01e64dc3f22c.json": ("total_is_input", {"input": 57}),
    "voyage/embeddings/ab27857d729b.json": ("total_is_input", {"input": 3}),
    "voyage/embeddings/ab33b3c176e6.json": ("total_is_input", {"input": 18}),
    "voyage/embeddings/c8810535d443.json": ("total_is_input", {"input": 4}),
    "voyage/embeddings/d6c7f15d90c6.json": ("total_is_input", {"input": 0}),
    "vertex/predict/a69996d8fc97.json": ("tokens_per_text", {"input": 4}),
    "vertex/predict/e2b8a7a79f52.json": ("tokens_per_text", {"input": 4}),
    "vertex/predict/e461b561d0de.json": ("tokens_per_text", {"input": 3}),
    "writer/cohere.chat/017b2bced66e.json": ("singular_details", {"reasoning": 0}),
}
"""Where we bill otherwise, or more, than the recording's reader found: the choice in the docs, the counts."""

AMBIGUOUS: Final[tuple[tuple[str, str], ...]] = (
    (r"cached_tokens: relation to billed_units not documented", "cohere_billed_units"),
    (r"two counts: billed_units .* vs tokens", "cohere_billed_units"),
    (r"only total_tokens reported", "tokens_of_audio|total_is_input"),
    (r"total_tokens \d+ hides \d+ reasoning tokens that usage.cost charges", "reasoning_apart_by_card"),
    (r"promptTokenCount: max over chunks", "last_chunk_wins"),
    (r"no promptTokenCount", "prompt_not_reported"),
    (r"total_tokens \d+ != .* hidden 375 tokens", "audio_apart_by_total"),
    (r"total_tokens \d+ != .* hidden 383 tokens", "hidden_by_total"),
    (r"cache_read\+cache_write .* exceeds reported input", "cache_above_input"),
    (r"cache_read and cache_write are both", "cache_above_input"),
    (r"usage.iterations \(fallback_message", "declined_attempt"),
    (r"usage.iterations \(", "iterations_apart"),
    (r"cache_creation split", "write_split_repaired"),
)
"""What a recording's reader found open, and the choice that settles it; the first that matches."""

APART: Final = {"vercel-gateway"}
"""Providers whose card says that reasoning is not in the output count, although the total hides it."""


def recordings_of(folder: Path, *apis: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file, recording) of the APIs, of all without any."""
    for line in (folder / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not apis or row["api"] in apis:
            yield row["file"], json.loads((folder / row["file"]).read_text())


def body_of(recording: dict[str, Any]) -> bytes:
    """Return the reply's body as bytes."""
    response = recording["response"]
    if response.get("encoding") == "base64":
        return base64.b64decode(response["body"])
    return bytes(response["body"].encode())


def expected_counts(file: str, recording: dict[str, Any]) -> dict[str, int]:
    """Return the token counts that a bill must have, by dimension."""
    if not recording["expected"]["billable"]:
        return {}
    tokens = recording["expected"].get("tokens") or {}
    reported = {NAMES[name]: int(units) for name, units in tokens.items() if name in NAMES}
    return {**reported, **CHOSEN.get(file, ("", {}))[1]}


def choice_of(ambiguity: str) -> str:
    """Return the name of the choice that settles what was found open; "" if none does."""
    for pattern, choice in AMBIGUOUS:
        if re.match(pattern, ambiguity):
            return choice
    return ""


def documented(choice: str) -> bool:
    """Say whether each alternative of a choice has a row in the docs."""
    return all(f"| `{name}` |" in CHOICES for name in choice.split("|"))
