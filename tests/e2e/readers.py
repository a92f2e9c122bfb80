"""Read bills back from where people look: the Collector's log, Jaeger, and PromQL."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from tests.gateway_process import attributes, spans_in

USER = "billing.user.id"
PICO = 10**12


def bills_in_log(path: Path) -> Counter[str]:
    """Return how often each bill's id stands in the Collector's log file."""
    return Counter(bill["billing.record.id"] for bill in log_bills(path))


def log_bills(path: Path) -> list[dict[str, Any]]:
    bills = []
    for line in path.read_text().splitlines():
        bills += [attributes(span) for span in spans_in(json.loads(line))]
    return [bill for bill in bills if "billing.record.id" in bill]


def log_revisions(path: Path) -> list[dict[str, Any]]:
    """Return the revisions in the Collector's log file."""
    spans = [span for line in path.read_text().splitlines() for span in spans_in(json.loads(line))]
    return [found for span in spans if "billing.revision.of" in (found := attributes(span))]


def jaeger_spans(url: str, tags: dict[str, str]) -> list[dict[str, Any]]:
    """Return the tags of the bills that Jaeger finds by `tags`."""
    answer = httpx.get(
        f"{url}/api/traces",
        params={"service": "spanbill", "tags": json.dumps(tags), "limit": "5000", "lookback": "2h"},
        timeout=60,
    )
    answer.raise_for_status()
    found = []
    for trace in answer.json()["data"] or ():
        for span in trace["spans"]:
            values = {tag["key"]: tag["value"] for tag in span["tags"]}
            if "billing.record.id" in values and all(str(values.get(k)) == v for k, v in tags.items()):
                found.append(values)
    return found


def promql(url: str, query: str) -> dict[str, float]:
    """Return an instant vector by its first label's value."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=10)
    answer.raise_for_status()
    return {
        next(iter(sample["metric"].values()), ""): float(sample["value"][1])
        for sample in answer.json()["data"]["result"]
    }


def sums_by_user(bills: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return counts, tokens and cost (pico-USD) by user: exact integers."""
    sums: dict[str, dict[str, int]] = {}
    for bill in bills:
        row = sums.setdefault(bill[USER], {"bills": 0, "input": 0, "output": 0, "cost": 0})
        row["bills"] += 1
        row["input"] += int(bill.get("gen_ai.usage.input_tokens", 0))
        row["output"] += int(bill.get("gen_ai.usage.output_tokens", 0))
        if "billing.cost.usd" in bill:
            row["cost"] += int(Decimal(bill["billing.cost.usd"]) * PICO)
    return sums
