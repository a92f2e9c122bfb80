"""Real gateways under 200 requests at once, killed in the middle: no budget is passed, refilled or leaked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.stack import wait_until
from tests.gateway_process import KEYS, Gateway, bills_in_journal, journal_lines
from tests.ledger.conftest import postgres  # noqa: F401 - a fixture
from tests.ledger.servers import Postgres

ADMIN = "adm-Zq8w7e6r5t4y3u2i1o0p"
SOON_S = 60.0
COST = Decimal("0.0000141")
"""What one answer of `sim-small` to `BODY` costs."""
BODY = {"model": "sim-small", "max_tokens": 40, "messages": [{"role": "user", "content": "Hello"}]}
SLOW = {**BODY, "model": "sim-slow", "stream": True}
AT_ONCE = 200


def gateway_with(folder: Path, limit_usd: Decimal, **environment: str) -> Gateway:
    definition = {
        "id": "b",
        "scope": "user",
        "payer": "alice",
        "limit_usd": str(limit_usd),
        "period": "total",
    }
    return Gateway(
        folder,
        SPANBILL_ADMIN__KEY=ADMIN,
        SPANBILL_BUDGETS__DEFINITIONS=json.dumps([definition]),
        **environment,
    )


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """Return the status, or the code of the refusal, or that there was no answer."""
    try:
        answer = await client.post(
            "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEYS['alice']}"}
        )
    except httpx.HTTPError:
        return "none"
    if answer.status_code == 200:
        return "200"
    error = answer.json()["error"]["code"]
    assert answer.status_code == (402 if error == "budget_exceeded" else 429), answer.text
    return str(error)


async def ask_all(gateway: Gateway, count: int, body: dict[str, Any] = BODY) -> Counter[str]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60, limits=limits) as client:
        return Counter(await asyncio.gather(*[ask(client, body) for _ in range(count)]))


def kill_all(gateway: Gateway) -> None:
    """Kill a gateway with its workers, which would end in order without it."""
    children = gateway.children()
    gateway.kill()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def standing(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(
        f"{gateway.url}/v1/budgets/b", headers={"x-api-key": ADMIN}, timeout=30
    ).json()
    return found


def told(gateway: Gateway) -> str:
    """Return what the gateway says of itself, for a failure."""
    metrics = httpx.get(f"{gateway.url}/metrics", timeout=30).text.splitlines()
    own = [line for line in metrics if line.startswith(("llm_gateway_budget", "llm_gateway_ledger"))]
    lines = [line for line in gateway.log().splitlines() if '"info"' not in line]
    return "\n".join([str(standing(gateway)), str(billed(gateway)), *own, *lines[-20:]])


def billed(gateway: Gateway) -> Decimal:
    bills = bills_in_journal(gateway.journal).values()
    return sum((Decimal(bill.get("billing.cost.usd", "0")) for bill in bills), Decimal(0))


def level(gateway: Gateway) -> bool:
    """Say whether the budget counts what the journal does, and reserves nothing."""
    found = standing(gateway)
    return (
        found["spent_usd"] is not None
        and Decimal(found["spent_usd"]) == billed(gateway)
        and Decimal(found["reserved_usd"]) == 0
    )


@pytest.mark.parametrize("workers", ["1", "3"])
async def test_two_hundred_requests_at_once_spend_no_more_than_a_budget_for_ten(
    workers: str, tmp_path: Path
) -> None:
    limit = 10 * COST
    with gateway_with(tmp_path, limit, SPANBILL_SERVER__WORKERS=workers) as gateway:
        found = await ask_all(gateway, AT_ONCE)
        assert 1 <= found["200"] <= 10
        assert found["200"] + found["budget_in_use"] + found["budget_exceeded"] == AT_ONCE
        calls = [line for line in journal_lines(gateway.journal) if line["j"]["k"] == "I"]
        assert len(calls) == found["200"], "a refused request reached its provider"
        assert billed(gateway) == found["200"] * COST <= limit
        assert wait_until(lambda: level(gateway), SOON_S, 0.1), told(gateway)
        assert gateway.stop() == 0


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("workers", ["1", "3"])
async def test_a_gateway_killed_in_the_middle_neither_refills_nor_leaks_its_budget(
    workers: str, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment = {"SPANBILL_SERVER__WORKERS": workers}
    if database == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        environment["SPANBILL_LEDGER__URL"] = server.database()
    limit = 40 * COST
    with gateway_with(tmp_path, limit, **environment) as gateway:
        before = await ask_all(gateway, 5)
        assert before["200"] == 5, before
        streams = asyncio.create_task(ask_all(gateway, AT_ONCE, SLOW))
        intents = 0
        for _ in range(600):  # until some are under way
            await asyncio.sleep(0.05)
            intents = sum(line["j"]["k"] == "I" for line in journal_lines(gateway.journal))
            if intents > 5:
                break
        assert intents > 5
        kill_all(gateway)
        found = await streams
        assert found["none"] > 0, "the kill came too late"
        gateway.start()
        assert wait_until(lambda: level(gateway), SOON_S, 0.1), told(gateway)
        assert billed(gateway) <= limit
        rest = Counter(before)
        for _ in range(20):  # what is left can be spent to its end, and no further
            rest = await ask_all(gateway, 10)
            assert billed(gateway) <= limit
            if not rest["200"] and not rest["budget_in_use"]:
                break
        assert rest["budget_exceeded"] == 10, rest
        assert limit - billed(gateway) < 4 * COST, "a part of the budget was lost"
        assert wait_until(lambda: level(gateway), SOON_S, 0.1), told(gateway)
        assert gateway.stop() == 0
