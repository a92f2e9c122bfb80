"""The operator makes budgets over HTTP and by command; everybody sees the own ones; nonsense is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.stack import wait_until
from tests.gateway_process import KEYS, Gateway

ADMIN = "adm-Zq8w7e6r5t4y3u2i1o0p"
FIELDS = {"id": "a", "scope": "user", "payer": "alice", "limit_usd": "1.50", "period": "day"}
OWN = {"id": "own", "scope": "user", "limit_usd": "9", "period": "total"}


def client_of(gateway: Gateway, key: str) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, headers={"x-api-key": key}, timeout=30)


def chat(client: httpx.Client) -> httpx.Response:
    body = {"model": "sim-small", "max_tokens": 40, "messages": [{"role": "user", "content": "Hi"}]}
    return client.post("/v1/chat/completions", json=body)


def command(gateway: Gateway, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "budgets", *words],
        cwd=gateway.folder,
        env=gateway.whole_environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_doors_and_the_commands_of_one_gateway(tmp_path: Path) -> None:
    environment = {"SPANBILL_ADMIN__KEY": ADMIN, "SPANBILL_BUDGETS__DEFINITIONS": json.dumps([OWN])}
    with Gateway(tmp_path, **environment) as gateway:
        with client_of(gateway, ADMIN) as admin, client_of(gateway, KEYS["alice"]) as alice:
            with client_of(gateway, KEYS["bob"]) as bob:
                made_and_shown(admin, alice, bob)
            limits_hold(admin, alice)
            nonsense_is_refused(admin, alice)
            by_command(gateway, admin)
        assert gateway.stop() == 0


def made_and_shown(admin: httpx.Client, alice: httpx.Client, bob: httpx.Client) -> None:
    made = admin.post("/v1/budgets", json=FIELDS)
    assert made.status_code == 201, made.text
    assert made.json()["limit_usd"] == "1.5"
    assert admin.post("/v1/budgets", json=FIELDS).status_code == 409
    assert admin.post("/v1/budgets", json={**FIELDS, "id": "own"}).status_code == 409
    assert [one["id"] for one in admin.get("/v1/budgets").json()["data"]] == ["a", "own"]
    first = admin.get("/v1/budgets", params={"limit": 1}).json()
    assert (first["last_id"], first["has_more"]) == ("a", True)
    second = admin.get("/v1/budgets", params={"limit": 1, "after": "a"}).json()
    assert ([one["id"] for one in second["data"]], second["has_more"]) == (["own"], False)
    assert [one["id"] for one in alice.get("/v1/budgets").json()["data"]] == ["a", "own"]
    assert [one["id"] for one in bob.get("/v1/budgets").json()["data"]] == ["own"]
    assert bob.get("/v1/budgets/a").status_code == 404
    assert wait_until(lambda: chat(alice).status_code == 200, 30, 0.1)
    assert wait_until(lambda: admin.get("/v1/budgets/a").json()["spent_usd"] not in ("0", None), 30, 0.1)
    assert [payer["payer"] for payer in admin.get("/v1/budgets/own").json()["payers"]] == ["alice"]
    assert bob.get("/v1/budgets/own").json()["payers"] == []


def limits_hold(admin: httpx.Client, alice: httpx.Client) -> None:
    assert admin.patch("/v1/budgets/a", json={"limit_usd": "0.000001"}).status_code == 200
    assert wait_until(lambda: chat(alice).status_code == 402, 30, 0.02)
    error = chat(alice)
    assert error.json()["error"]["code"] == "budget_exceeded"
    assert error.headers["x-should-retry"] == "false"
    said = alice.post(
        "/v1/messages",
        json={"model": "sim-small", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]},
    )
    assert (said.status_code, said.json()["error"]["type"]) == (402, "billing_error")
    assert admin.delete("/v1/budgets/a").json() == {"object": "budget", "id": "a", "deleted": True}
    assert wait_until(lambda: chat(alice).status_code == 200, 30, 0.02)


def nonsense_is_refused(admin: httpx.Client, alice: httpx.Client) -> None:
    bad: list[dict[str, Any]] = [
        {**FIELDS, "limit_usd": "0"},
        {**FIELDS, "limit_usd": "1e99"},
        {**FIELDS, "limit_usd": 1.5},
        {**FIELDS, "period": "year"},
        {**FIELDS, "time_zone": "Mars/Olympus"},
        {**FIELDS, "id": "a/b"},
        {**FIELDS, "payer": "x" * 257},
        {**FIELDS, "surprise": 1},
        {"id": "a"},
    ]
    for fields in bad:
        answer = admin.post("/v1/budgets", json=fields)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "invalid_budget"
    assert admin.post("/v1/budgets", content=b"[" * 5000).status_code == 400
    assert admin.post("/v1/budgets", content=b"{" + b" " * 20_000).status_code == 413
    for limit in ("0", "101", "x", "-1", "1" * 5000):
        assert admin.get("/v1/budgets", params={"limit": limit}).status_code == 400
    assert admin.patch("/v1/budgets/none", json={}).status_code == 404
    assert admin.patch("/v1/budgets/own", json={"limit_usd": "1"}).status_code == 409
    assert admin.delete("/v1/budgets/own").status_code == 409
    for method in ("POST", "PATCH", "DELETE"):
        path = "/v1/budgets" if method == "POST" else "/v1/budgets/own"
        assert alice.request(method, path, json={}).status_code == 403
        assert alice.request(method, path, json={}, headers={"x-api-key": "no"}).status_code == 401
    for hostile in ("%00", "a%27%20OR%201=1--", "..%2F..", "%E2%80%AE", "x" * 3000):
        assert admin.get(f"/v1/budgets/{hostile}").status_code in (400, 404)


def by_command(gateway: Gateway, admin: httpx.Client) -> None:
    made = command(
        gateway, "create", "c", "--scope", "team", "--limit-usd", "3", "--period", "week", "--json"
    )
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)[0]["payer"] == "*"
    assert command(gateway, "set", "c", "--limit-usd", "4").returncode == 0
    assert admin.get("/v1/budgets/c").json()["limit_usd"] == "4"
    listed = command(gateway, "list", "--json")
    assert [one["id"] for one in json.loads(listed.stdout)] == ["c", "own"]
    assert "own" in command(gateway, "show", "own").stdout
    assert command(gateway, "delete", "c").returncode == 0
    missing = command(gateway, "show", "c")
    assert (missing.returncode, "no budget 'c'" in missing.stderr) == (2, True)
    assert (
        command(gateway, "create", "c", "--scope", "x", "--limit-usd", "3", "--period", "day").returncode == 2
    )


@pytest.mark.parametrize(
    ("definitions", "why"),
    [
        ([{**OWN, "limit_usd": "-1"}], "limit"),
        ([{**OWN, "time_zone": "Nowhere"}], "time zone"),
        ([OWN, OWN], "id of its own"),
    ],
)
def test_a_configuration_with_an_unusable_budget_refuses_to_start(
    tmp_path: Path, definitions: list[dict[str, Any]], why: str
) -> None:
    gateway = Gateway(tmp_path, SPANBILL_BUDGETS__DEFINITIONS=json.dumps(definitions))
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *gateway.arguments],
        cwd=tmp_path,
        env=gateway.whole_environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 78
    assert why in done.stderr
