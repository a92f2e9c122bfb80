"""Bills end to end through the real Collector, Jaeger and Prometheus: one number everywhere."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.stack import Stack, have_go, wait_until
from otel.journal.audit import Logs, audit_folder
from tests.conftest import ROOT
from tests.e2e.readers import PICO, bills_in_log, jaeger_spans, log_bills, log_revisions, promql, sums_by_user
from tests.gateway_process import (
    KEYS,
    Gateway,
    attributes,
    bills_in_journal,
    free_port,
    spans_in,
    stack_ports,
)

REQUESTS = 1000
CONCURRENT = 32
SETTLE_S = 90.0
HALF, DOUBLE = {"input": "0.005", "output": "0.02"}, {"input": "1000", "output": "2000"}
MODELS = ("sim-small", "sim-large", "sim-cache", "sim-reasoning", "sim-nousage", "sim-err-500", "sim-cut")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(420),
    pytest.mark.skipif(
        not (have_go() and shutil.which("prometheus")) and os.environ.get("CI") != "true",
        reason="needs Go, to build the real Collector and Jaeger once, and the system's prometheus package",
    ),
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Stack, Gateway]]:
    port = free_port()
    with Stack(tmp_path / "stack", stack_ports(), gateway=f"127.0.0.1:{port}") as stack:
        gateway = Gateway(
            tmp_path / "gateway",
            port=port,
            OTEL_EXPORTER_OTLP_ENDPOINT=stack.url("otlp_http"),
            SPANBILL_ROUTING__ALIASES=json.dumps(
                {"smart": {"targets": [{"model": "sim-err-503"}, {"model": "sim-small"}], "attempts_max": 2}}
            ),
        )
        with gateway:
            yield stack, gateway


async def drive(gateway: Gateway, count: int, start: int = 0) -> list[str]:
    """Send mixed requests; return the correlation id of each."""
    gate = asyncio.Semaphore(CONCURRENT)
    users = list(KEYS.items())
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

        async def one(i: int) -> str:
            user, key = users[i % len(users)]
            body: dict[str, Any] = {
                "model": MODELS[i % len(MODELS)],
                "stream": i % 2 == 0,
                "max_tokens": 40,
                "messages": [{"role": "user", "content": f"request {i} of {user} — ünï¢ode"}],
            }
            async with gate:
                if i % 3:
                    request = client.build_request(
                        "POST", "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
                    )
                else:
                    request = client.build_request(
                        "POST",
                        "/v1/messages",
                        json=body,
                        headers={"x-api-key": key, "anthropic-version": "2023-06-01"},
                    )
                response = await client.send(request, stream=True)
                try:
                    await response.aread()
                finally:
                    await response.aclose()
                return response.headers["x-request-id"]

        return await asyncio.gather(*(one(i) for i in range(start, start + count)))


def await_bills(stack: Stack, ids: set[str]) -> None:
    def all_there() -> bool:
        return stack.log_file.exists() and set(bills_in_log(stack.log_file)) >= ids

    assert wait_until(all_there, SETTLE_S, 0.5), (
        f"{len(ids - set(bills_in_log(stack.log_file)))} bills missing"
    )


def await_equal(read: Callable[[], object], want: object) -> None:
    """Poll until `read` gives `want`."""
    last: list[object] = [None]

    def same() -> bool:
        last[0] = read()
        return last[0] == want

    assert wait_until(same, SETTLE_S, 1.0), f"{last[0]} instead of {want}"


def assert_jaeger_agrees(stack: Stack, expected: dict[str, dict[str, int]]) -> None:
    def by_user(user: str) -> dict[str, int]:
        found = jaeger_spans(stack.url("jaeger_ui"), {"billing.user.id": user})
        return sums_by_user(list({bill["billing.record.id"]: bill for bill in found}.values())).get(user, {})

    for user, row in expected.items():
        await_equal(partial(by_user, user), row)


def assert_promql_agrees(stack: Stack, expected: dict[str, dict[str, int]]) -> None:
    def by_user(metric: str, scale: int) -> dict[str, int]:
        found = promql(stack.url("prometheus"), f"sum by (billing_user_id) ({metric})")
        return {user: round(value * scale) for user, value in found.items()}

    for column, metric, scale in (
        ("bills", "llm_gateway_bills_total", 1),
        ("input", "llm_gateway_input_tokens_total", 1),
        ("output", "llm_gateway_output_tokens_total", 1),
        ("cost", "llm_gateway_cost_USD_total", PICO),
    ):
        await_equal(partial(by_user, metric, scale), {user: row[column] for user, row in expected.items()})


def assert_own_metrics_agree(stack: Stack, expected: dict[str, dict[str, int]]) -> None:
    def total() -> int:
        query = 'sum(llm_gateway_cost_total{component="gateway"})'
        return round(promql(stack.url("prometheus"), query).get("", 0) * PICO)

    await_equal(total, sum(row["cost"] for row in expected.values()))


def test_journal_log_jaeger_and_prometheus_agree_to_the_last_digit(world: tuple[Stack, Gateway]) -> None:
    stack, gateway = world
    ids = asyncio.run(drive(gateway, REQUESTS))
    journal = bills_in_journal(gateway.journal)
    assert set(ids) == set(journal)
    assert len(ids) == REQUESTS
    expected = sums_by_user(list(journal.values()))
    assert set(expected) == set(KEYS)
    assert all(row["cost"] > 0 for row in expected.values())

    await_bills(stack, set(ids))
    assert set(bills_in_log(stack.log_file).values()) == {1}
    assert sums_by_user(log_bills(stack.log_file)) == expected
    assert_jaeger_agrees(stack, expected)
    for record_id in ids[::100]:
        assert len(jaeger_spans(stack.url("jaeger_ui"), {"billing.record.id": record_id})) == 1
    assert_promql_agrees(stack, expected)
    assert_own_metrics_agree(stack, expected)


def rerate(gateway: Gateway) -> None:
    """Halve the price of one simulated model and double that of another, for all bills there are."""
    prices = {"simulated/sim-small": HALF, "simulated/sim-large": DOUBLE}
    subprocess.run(
        [sys.executable, "-m", "gateway", "rerate", "--from", "2020-01-01", "--to", "2100-01-01"],
        cwd=gateway.folder,
        env={**gateway.whole_environment(), "SPANBILL_PRICES__OVERRIDES": json.dumps(prices)},
        check=True,
        timeout=120,
    )


def test_revisions_of_bills_change_no_total_but_their_own(world: tuple[Stack, Gateway]) -> None:
    stack, gateway = world
    ids = asyncio.run(drive(gateway, 140))
    expected = sums_by_user(list(bills_in_journal(gateway.journal).values()))
    await_bills(stack, set(ids))
    assert_promql_agrees(stack, expected)
    rerate(gateway)
    report = audit_folder(gateway.journal)
    assert report.facts.revisions == 40, report.facts
    assert report.complete
    assert report.intact
    await_equal(lambda: len(log_revisions(stack.log_file)), 40)
    deltas: dict[str, int] = dict.fromkeys(KEYS, 0)
    for found in log_revisions(stack.log_file):
        deltas[found["billing.user.id"]] += int(Decimal(found["billing.revision.delta_usd"]) * PICO)
    assert sum(deltas.values()) == report.facts.revised_pico_usd
    assert min(deltas.values()) != max(deltas.values())

    def by_user(metric: str, scale: int) -> dict[str, int]:
        found = promql(stack.url("prometheus"), f"sum by (billing_user_id) ({metric})")
        return {user: round(value * scale) for user, value in found.items()}

    await_equal(partial(by_user, "llm_gateway_cost_revision_USD", PICO), deltas)
    revised = sum(by_user("llm_gateway_revisions_total", 1).values())
    assert revised == 40
    assert_promql_agrees(stack, expected)  # bills, tokens and cost are as before
    page = (ROOT / "docs" / "prices.md").read_text(encoding="utf-8")
    query = page[page.index("sum by (billing_user_id) (llm_gateway_cost_USD") :].partition("\n\n")[0]
    owed = {user: round(usd * PICO) for user, usd in promql(stack.url("prometheus"), query).items()}
    assert owed == {user: row["cost"] + deltas[user] for user, row in expected.items()}
    assert_jaeger_agrees(stack, expected)
    one = log_revisions(stack.log_file)[0]["billing.revision.of"]
    tags = json.dumps({"billing.revision.of": one})
    found = httpx.get(
        f"{stack.url('jaeger_ui')}/api/traces",
        params={"service": "spanbill", "tags": tags, "lookback": "2h"},
        timeout=60,
    ).json()["data"]
    (span,) = [span for trace in found for span in trace["spans"]]
    (link,) = span["references"]
    bill = next(
        b
        for line in stack.log_file.read_text().splitlines()
        for b in spans_in(json.loads(line))
        if attributes(b).get("billing.record.id") == one
    )
    assert (link["traceID"], link["spanID"]) == (bill["traceId"], bill["spanId"])
    report = audit_folder(gateway.journal, logs=Logs(collector=stack.log_file))
    assert report.complete, report.findings
    assert report.intact, report.findings


def test_nothing_is_missing_after_the_collector_was_killed_and_away(world: tuple[Stack, Gateway]) -> None:
    stack, gateway = world
    ids = asyncio.run(drive(gateway, 300))
    stack.kill("collector")
    assert "collector" not in stack.pids(), "the fault did not happen"
    ids += asyncio.run(drive(gateway, 400, start=300))
    assert "llm_gateway_export_pending_bytes 0.0" not in httpx.get(f"{gateway.url}/metrics").text
    stack.start_collector()
    ids += asyncio.run(drive(gateway, 300, start=700))

    journal = bills_in_journal(gateway.journal)
    assert set(journal) == set(ids)
    await_bills(stack, set(ids))
    expected = sums_by_user(list(journal.values()))
    once = {bill["billing.record.id"]: bill for bill in log_bills(stack.log_file)}
    assert sums_by_user(list(once.values())) == expected
    assert_jaeger_agrees(stack, expected)
    assert_own_metrics_agree(stack, expected)


def test_a_request_that_failed_over_tells_its_story_in_one_trace_and_one_line(
    world: tuple[Stack, Gateway],
) -> None:
    stack, gateway = world
    answer = httpx.post(
        f"{gateway.url}/v1/chat/completions",
        json={"model": "smart", "messages": [{"role": "user", "content": "Hello"}]},
        headers={"authorization": f"Bearer {KEYS['alice']}"},
        timeout=60,
    )
    assert answer.status_code == 200
    assert answer.headers["x-spanbill-attempts"] == "2; simulated,simulated"
    found: list[dict[str, Any]] = []

    def told() -> bool:
        url = f"{stack.url('jaeger_ui')}/api/traces/{answer.headers['x-trace-id']}"
        traces = httpx.get(url, timeout=60).json()["data"] or [{"spans": []}]
        found[:] = traces[0]["spans"]
        return len(found) == 4

    assert wait_until(told, SETTLE_S, 0.5), [span["operationName"] for span in found]
    tags = {span["spanID"]: {tag["key"]: tag["value"] for tag in span["tags"]} for span in found}
    parents = {span["spanID"]: [ref["spanID"] for ref in span["references"]] for span in found}
    (server,) = [span_id for span_id, tag in tags.items() if tag["span.kind"] == "server"]
    (bill,) = [span_id for span_id, tag in tags.items() if "billing.record.id" in tag]
    tried = sorted(
        (span_id for span_id, tag in tags.items() if "billing.attempt.number" in tag),
        key=lambda span_id: int(tags[span_id]["billing.attempt.number"]),
    )
    assert parents[bill] == [server]
    assert [parents[span_id] for span_id in tried] == [[bill], [bill]]
    assert [tags[span_id].get("error.type") for span_id in tried] == ["503", None]
    assert [tags[span_id]["http.response.status_code"] for span_id in tried] == [503, 200]
    assert (tags[bill]["billing.alias"], tags[bill]["billing.attempts"]) == ("smart", 2)
    assert (tags[bill]["billing.route.selector"], tags[bill]["billing.route.targets"]) == ("in_order", 2)
    assert tags[bill]["billing.outcome"] == "ok"
    lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("request_id") == answer.headers["x-request-id"]]
    assert (line["alias"], line["trace_id"]) == ("smart", answer.headers["x-trace-id"])
    assert [(one["model"], one["error_type"]) for one in line["tried"]] == [
        ("sim-err-503", "503"),
        ("sim-small", None),
    ]
