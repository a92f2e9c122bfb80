"""One number everywhere: cost API, records, journal, Prometheus and the Collector's log, through mishaps.

10,000 requests of all kinds, a worker killed, the ledger deleted, the gateway restarted. The worker that is
killed is none that ships: a shipper that dies may deliver a bill again, which other tests are about.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.stack import Stack, have_go, wait_until
from gateway.core.money import pico_to_usd
from otel.journal.audit import audit_folder
from tests.api.cost_doors import ADMIN
from tests.e2e.readers import bills_in_log, log_bills, promql, sums_by_user
from tests.e2e.test_end_to_end import assert_promql_agrees, await_bills, await_equal
from tests.faults.test_workers import Crew, holder_of
from tests.gateway_process import KEYS, bills_in_journal, free_port, stack_ports

PHASE = 2_500
CONCURRENT = 48
SOON_S = 90.0
MODELS = (  # of which a slow one is always under way, when a worker is killed
    "sim-small", "sim-slow", "sim-cache", "sim-reasoning", "sim-nousage", "sim-err-500", "sim-err-429",
    "sim-cut", "sim-midstream-error", "sim-flaky", "plain-1",
)  # fmt: skip

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (have_go() and shutil.which("prometheus")) and os.environ.get("CI") != "true",
        reason="needs Go, to build the real Collector and Jaeger once, and the system's prometheus package",
    ),
]


class _Plain(BaseHTTPRequestHandler):
    """A provider whose models have no price."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # the library's name
        self.rfile.read(int(self.headers["content-length"]))
        said = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "plain-1",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes."}}
            ],
            "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13},
        }
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def plain() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Plain)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def world(tmp_path: Path, plain: str) -> Iterator[tuple[Stack, Crew]]:
    port = free_port()
    providers = {"plain": {"base_url": plain, "api_key": "sk-plain", "models": ["plain-*"]}}
    with Stack(tmp_path / "stack", stack_ports(), gateway=f"127.0.0.1:{port}") as stack:
        gateway = Crew(
            tmp_path / "gateway",
            port=port,
            OTEL_EXPORTER_OTLP_ENDPOINT=stack.url("otlp_http"),
            SPANBILL_ADMIN__KEY=ADMIN,
            SPANBILL_PROVIDERS=json.dumps(providers),
        )
        with gateway:
            yield stack, gateway


class Clients:
    """Sends mixed requests; some leave in the middle of a stream, and some lose their gateway."""

    def __init__(self, gateway: Crew) -> None:
        self.gateway = gateway
        self.ids: list[str] = []
        self.left = 0
        self.lost = 0
        self.statuses: Counter[int] = Counter()

    async def drive(self, start: int, count: int) -> None:
        gate = asyncio.Semaphore(CONCURRENT)
        async with httpx.AsyncClient(base_url=self.gateway.url, timeout=60) as client:

            async def one(number: int) -> None:
                async with gate:
                    await self._one(client, number)

            await asyncio.gather(*(one(number) for number in range(start, start + count)))

    async def _one(self, client: httpx.AsyncClient, number: int) -> None:
        users = list(KEYS.values())
        headers = {"authorization": f"Bearer {users[number % len(users)]}"}
        path, body = _request(number)
        try:
            request = client.build_request("POST", path, json=body, headers=headers)
            response = await client.send(request, stream=True)
            self.ids.append(response.headers["x-request-id"])
            self.statuses[response.status_code] += 1
            if body.get("stream") and number % 10 == 0:
                async for _ in response.aiter_raw():
                    break
                self.left += 1
            else:
                await response.aread()
            await response.aclose()
        except httpx.TransportError:
            self.lost += 1


def _request(number: int) -> tuple[str, dict[str, Any]]:
    model = MODELS[number % len(MODELS)]
    text = f"request {number}: ünï¢ode"
    if number % 13 == 0:
        return "/v1/embeddings", {"model": "sim-small", "input": text}
    body: dict[str, Any] = {"model": model, "max_tokens": 30, "messages": [{"role": "user", "content": text}]}
    if model == "plain-1":
        return "/v1/chat/completions", body
    body["stream"] = number % 2 == 0
    return ("/v1/messages" if number % 3 == 0 else "/v1/chat/completions"), body


def costs(gateway: Crew, **params: Any) -> dict[str, Any]:
    answer = httpx.get(
        f"{gateway.url}/v1/costs", params=params, headers={"authorization": f"Bearer {ADMIN}"}, timeout=60
    )
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def record_sums(gateway: Crew) -> dict[str, dict[str, int]]:
    """Return the sums by user of what `/v1/costs/records` streams."""
    answer = httpx.get(
        f"{gateway.url}/v1/costs/records",
        params={"format": "jsonl"},
        headers={"authorization": f"Bearer {ADMIN}"},
        timeout=120,
    )
    answer.raise_for_status()
    bills = []
    for line in answer.text.splitlines():
        record = json.loads(line)
        bill = {"billing.user.id": record["user"]}
        for name, attribute in (
            ("input_tokens", "gen_ai.usage.input_tokens"),
            ("output_tokens", "gen_ai.usage.output_tokens"),
            ("cost_usd", "billing.cost.usd"),
        ):
            if record[name] is not None:
                bill[attribute] = record[name]
        bills.append(bill)
    return sums_by_user(bills)


async def between(clients: Clients, start: int, mishap: Any) -> None:
    """Send a phase of requests, with a mishap in the middle of it."""
    driving = asyncio.create_task(clients.drive(start, PHASE))
    before = len(clients.ids)
    while len(clients.ids) - before < PHASE // 2:
        assert not driving.done()
        await asyncio.sleep(0.01)
    await asyncio.to_thread(mishap)
    await driving


def test_cost_api_records_journal_prometheus_and_collector_say_one_number(world: tuple[Stack, Crew]) -> None:
    stack, gateway = world
    clients = Clients(gateway)
    asyncio.run(clients.drive(0, PHASE))
    assert clients.lost == 0
    assert holder_of(gateway.journal / "cursors" / "otlp.lock") == gateway.behind(), "a worker ships"
    victim = min(gateway.pids())
    gone: list[int] = []
    asyncio.run(between(clients, PHASE, lambda: gone.append(gateway.kill_worker(victim))))
    assert gone, "no worker was killed"
    assert clients.lost > 0, "nobody noticed"
    assert wait_until(lambda: len(gateway.pids()) == gateway.workers, SOON_S)
    lost = clients.lost
    ledger = gateway.journal.parent / "ledger.db"
    with ledger.open("rb") as first:
        asyncio.run(between(clients, 2 * PHASE, partial(delete, ledger)))
        assert os.fstat(first.fileno()).st_nlink == 0, "the ledger was not deleted"
    assert gateway.stop() == 0
    gateway.start()
    asyncio.run(clients.drive(3 * PHASE, PHASE))
    assert clients.lost == lost, "only the kill took answers along"
    assert clients.left > 100
    assert clients.statuses.keys() >= {200, 500, 429}

    assert wait_until(lambda: costs(gateway)["as_of"]["complete"], SOON_S, 0.2)
    journal = bills_in_journal(gateway.journal)
    assert set(clients.ids) <= set(journal)
    assert 4 * PHASE - lost <= len(journal) <= 4 * PHASE
    expected = sums_by_user(list(journal.values()))
    total = sum(row["cost"] for row in expected.values())
    statuses = Counter(bill["billing.status"] for bill in journal.values())
    assert set(statuses) == {"final", "estimated", "unpriced", "unmetered"}
    assert "embeddings" in {bill["gen_ai.operation.name"] for bill in journal.values()}

    answer = costs(gateway, tz="Asia/Kolkata")
    assert answer["total"]["cost_usd"] == pico_to_usd(total)
    assert {name: s["requests"] for name, s in answer["total"]["by_status"].items()} == statuses
    assert {user["name"]: user["cost_usd"] for user in answer["by_user"]} == {
        user: pico_to_usd(row["cost"]) for user, row in expected.items()
    }
    assert record_sums(gateway) == expected
    assert audit_folder(gateway.journal).complete
    await_bills(stack, set(journal))
    assert set(bills_in_log(stack.log_file).values()) == {1}
    assert sums_by_user(log_bills(stack.log_file)) == expected
    assert_promql_agrees(stack, expected)
    by_status = partial(promql, stack.url("prometheus"), "sum by (billing_status) (llm_gateway_bills_total)")
    await_equal(by_status, {name: float(count) for name, count in statuses.items()})


def delete(ledger: Path) -> None:
    for path in ledger.parent.glob(f"{ledger.name}*"):
        path.unlink()
