"""A model without a rate is served and said to be unpriced, refused before it costs, or estimated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from deploy.stack import wait_until
from tests.gateway_process import Gateway, bills_in_journal

CHAT, MESSAGES, COUNT = "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"
FREE, STRICT = "sk-test-serve-000001", "sk-test-refuse-000001"
NO_RATES = {"providers": {"simulated": {"prices": "nothing-here"}}}


def started(folder: Any, prices: dict[str, Any], keys: list[dict[str, Any]]) -> Gateway:
    return Gateway(
        folder,
        SPANBILL_PRICES=json.dumps(prices),
        SPANBILL_KEYS=json.dumps(keys),
        SPANBILL_PROVIDERS=json.dumps(NO_RATES["providers"]),
    )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    keys = [
        {"id": "serve", "key": FREE, "user": "alice"},
        {"id": "refuse", "key": STRICT, "user": "bob", "team": "red", "unpriced": "refuse"},
    ]
    prices = {
        "overrides": {"simulated/sim-large": {"input": "2.5", "output": "10"}},
        "adjustments": [
            {"id": "up", "kind": "markup", "percent": "20", "team": "red"},
            {"id": "base", "kind": "fee", "amount": "0.001", "key": "refuse"},
            {"id": "past", "kind": "fee", "amount": "5", "until": "2020-01-01"},
        ],
    }
    with started(tmp_path_factory.mktemp("unpriced"), prices, keys) as running:
        yield running


def post(gateway: Gateway, path: str, key: str, model: str, **more: object) -> httpx.Response:
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}], **more}
    headers = {"authorization": f"Bearer {key}"} if path == CHAT else {"x-api-key": key}
    return httpx.post(f"{gateway.url}{path}", json=body, headers=headers, timeout=30)


def bill(gateway: Gateway, response: httpx.Response) -> dict[str, Any]:
    return bills_in_journal(gateway.journal)[response.headers["x-request-id"]]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
def test_a_key_that_refuses_gets_402_in_the_doors_form_and_no_provider_is_called(
    gateway: Gateway, path: str, stream: bool
) -> None:
    before = len(bills_in_journal(gateway.journal))
    response = post(gateway, path, STRICT, "sim-small", stream=stream)
    assert response.status_code == 402, response.text
    error = response.json()["error"]
    assert "no rate for this model" in error["message"]
    if path == CHAT:
        assert (error["code"], error["param"]) == ("model_unpriced", "model")
    assert len(bills_in_journal(gateway.journal)) == before
    refused = httpx.get(f"{gateway.url}/metrics").text
    assert 'llm_gateway_refused_total{code="model_unpriced"}' in refused
    logged = f'"request_id":"{response.headers["x-request-id"]}"'
    assert wait_until(lambda: logged in gateway.log(), 20, 0.05)


def test_another_key_is_served_and_its_bill_says_what_lacks_a_rate(gateway: Gateway) -> None:
    response = post(gateway, CHAT, FREE, "sim-small")
    assert response.status_code == 200
    assert response.headers["x-spanbill-cost-status"] == "unpriced"
    assert "x-spanbill-cost-usd" not in response.headers
    found = bill(gateway, response)
    assert found["billing.status"] == "unpriced"
    assert found["billing.price.missing"] == "model"
    assert found["billing.price.section"] == "nothing-here"
    assert found["billing.target.model"] == "sim-small"
    assert not [name for name in found if name.startswith("billing.cost.")]


def test_a_door_that_is_free_of_charge_needs_no_rate(gateway: Gateway) -> None:
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"x-api-key": STRICT, "anthropic-version": "2023-06-01"}
    response = httpx.post(f"{gateway.url}{COUNT}", json=body, headers=headers, timeout=30)
    assert response.status_code == 200, response.text


def test_a_priced_model_is_served_to_both_with_each_ones_adjustments(gateway: Gateway) -> None:
    plain, dear = (post(gateway, CHAT, key, "sim-large") for key in (FREE, STRICT))
    lines, adjusted = bill(gateway, plain), bill(gateway, dear)
    assert "billing.cost.adjustments" not in lines
    rules = [json.loads(rule) for rule in adjusted["billing.cost.adjustments"]]
    assert [(rule["id"], rule["kind"]) for rule in rules] == [("up", "markup"), ("base", "fee")]
    base = Decimal(lines["billing.cost.usd"])
    assert base > 0
    assert Decimal(adjusted["billing.cost.usd"]) == base * Decimal("1.2") + Decimal("0.001")
    assert dear.headers["x-spanbill-cost-usd"] == adjusted["billing.cost.usd"]


def test_the_policy_can_hold_for_all_and_a_fallback_makes_estimates(tmp_path: Any) -> None:
    keys = [
        {"id": "all", "key": FREE, "user": "a"},
        {"id": "own", "key": STRICT, "user": "b", "unpriced": "serve"},
    ]
    with started(tmp_path / "refuse", {"unpriced": "refuse"}, keys) as strict:
        assert post(strict, CHAT, FREE, "sim-small").status_code == 402
        assert post(strict, CHAT, STRICT, "sim-small").status_code == 200
    prices = {"unpriced": "refuse", "fallback": {"input": "1", "output": "2"}}
    with started(tmp_path / "fallback", prices, keys) as lenient:
        response = post(lenient, CHAT, FREE, "sim-small")
        assert response.status_code == 200
        found = bill(lenient, response)
        assert found["billing.status"] == "estimated"
        assert (found["billing.price.id"], found["billing.cost.source"]) == ("fallback", "fallback")
        assert found["billing.usage.source"] == "provider"
