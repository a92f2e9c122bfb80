"""The doors of keys: who may, what is refused and how, and what a key then opens; on a real gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.gateway_process import KEYS, Gateway, bills_in_journal, journal_lines

ADMIN = "9f3c1f0f6b0e4f6a8f3f7f0a6d2b1c5e"
BOUNDED = "sk-test-bounded-0004"
EXPIRED = "sk-test-expired-0005"
CHAT, MESSAGES, EMBEDDINGS = "/v1/chat/completions", "/v1/messages", "/v1/embeddings"
BODY = {"model": "sim-small", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(
        tmp_path_factory.mktemp("keys"),
        SPANBILL_ADMIN__KEY=ADMIN,
        SPANBILL_KEYS=json.dumps(
            [
                {
                    "id": "bounded",
                    "key": BOUNDED,
                    "user": "dora",
                    "name": "of the file",
                    "models": ["sim-cache", "sim-s*"],
                    "endpoints": ["chat_completions", "embeddings"],
                    "expires_at": "2261-01-01T00:00:00Z",
                },
                {"id": "expired", "key": EXPIRED, "user": "dora", "expires_at": "2026-01-01T00:00:00Z"},
            ]
        ),
    ) as running:
        yield running


def ask(
    gateway: Gateway, method: str, path: str, key: str = ADMIN, body: Any = None, **headers: str
) -> httpx.Response:
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return httpx.request(
        method,
        f"{gateway.url}{path}",
        content=content,
        headers={"authorization": f"Bearer {key}", **headers},
        timeout=60,
    )


def create(gateway: Gateway, key: str = ADMIN, **fields: Any) -> dict[str, Any]:
    answer = ask(gateway, "POST", "/v1/keys", key, {"user": "alice", **fields})
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return dict(answer.json())


def say(gateway: Gateway, key: str, path: str = CHAT, model: str = "sim-small") -> httpx.Response:
    return ask(gateway, "POST", path, key, {**BODY, "model": model, "input": "Hello"})


def refused(answer: httpx.Response, status: int, code: str | None = None, param: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    if code is not None:
        assert error["code"] == code
    if param is not None:
        assert error["param"] == param
    return str(error["message"])


def test_a_key_lives_its_whole_life_through_the_doors(gateway: Gateway) -> None:
    made = create(gateway, team="red", models=["sim-*"], name="laptop")
    assert re.fullmatch(r"sk-sb-[A-Za-z0-9_-]{43}", made["key"])
    answer = say(gateway, made["key"])
    assert answer.status_code == 200
    bill = bills_in_journal(gateway.journal)[answer.headers["x-request-id"]]
    assert (bill["billing.key.id"], bill["billing.user.id"], bill["billing.team"]) == (
        made["id"],
        "alice",
        "red",
    )
    one = ask(gateway, "GET", f"/v1/keys/{made['id']}").json()
    assert one == {name: value for name, value in made.items() if name != "key"}
    changed = ask(gateway, "PATCH", f"/v1/keys/{made['id']}", body={"team": None, "tags": ["t"]}).json()
    assert (changed["team"], changed["tags"], changed["models"]) == (None, ["t"], ["sim-*"])
    rotated = ask(gateway, "POST", f"/v1/keys/{made['id']}/rotate", body={"grace_s": 600}).json()
    assert rotated["id"] == made["id"]
    assert {say(gateway, key).status_code for key in (made["key"], rotated["key"])} == {200}
    last = ask(gateway, "POST", f"/v1/keys/{made['id']}/rotate").json()
    refused(say(gateway, made["key"]), 401, "invalid_api_key")
    assert ask(gateway, "POST", f"/v1/keys/{made['id']}/disable").json()["state"] == "disabled"
    refused(say(gateway, last["key"]), 401, "key_disabled")
    assert ask(gateway, "POST", f"/v1/keys/{made['id']}/enable", body={}).json()["state"] == "active"
    assert say(gateway, last["key"]).status_code == 200
    assert ask(gateway, "DELETE", f"/v1/keys/{made['id']}").json()["state"] == "revoked"
    refused(say(gateway, last["key"]), 401, "invalid_api_key")
    refused(ask(gateway, "POST", f"/v1/keys/{made['id']}/enable"), 409, "key_revoked")
    assert ask(gateway, "GET", f"/v1/keys/{made['id']}").json()["revoked_at"]


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_only_the_operator_or_a_key_that_may_comes_in(gateway: Gateway, method: str) -> None:
    paths = {
        "GET": ["/v1/keys", "/v1/keys/x"],
        "POST": ["/v1/keys", "/v1/keys/x/rotate", "/v1/keys/x/disable", "/v1/keys/x/enable"],
        "PATCH": ["/v1/keys/x"],
        "DELETE": ["/v1/keys/x"],
    }
    plain = create(gateway)["key"]
    for path in paths[method]:
        for key in (KEYS["alice"], BOUNDED, plain):
            refused(ask(gateway, method, path, key, {}), 403, "key_creation_not_allowed")
        refused(ask(gateway, method, path, "sk-nobody", {}), 401, "invalid_api_key")
        assert httpx.request(method, gateway.url + path, timeout=60).status_code == 401


def test_a_key_that_may_make_keys_makes_them_within_itself(gateway: Gateway) -> None:
    own = create(gateway, team="red", models=["sim-*"], may_create_keys=True)
    made = create(gateway, own["key"], models=["sim-small"])
    assert (made["team"], made["created_by"]) == ("red", own["id"])
    assert say(gateway, made["key"]).status_code == 200
    for field, value in (("team", "blue"), ("models", None), ("user", "bob"), ("may_create_keys", True)):
        answer = ask(gateway, "POST", "/v1/keys", own["key"], {"user": "alice", field: value})
        refused(answer, 403, "beyond_own_key", field)
    listed = ask(gateway, "GET", "/v1/keys", own["key"]).json()
    assert [one["id"] for one in listed["data"]] == [made["id"]]
    refused(ask(gateway, "GET", f"/v1/keys/{own['id']}", own["key"]), 404, "key_not_found")
    ask(gateway, "POST", f"/v1/keys/{own['id']}/disable")
    refused(ask(gateway, "POST", "/v1/keys", own["key"], {}), 401, "key_disabled")
    assert say(gateway, made["key"]).status_code == 200, "what it made stays until somebody ends it"


WRONG: list[tuple[bytes, str | None]] = [
    (b"", None),
    (b"{", None),
    (b"[]", None),
    (b"null", None),
    (b"7", None),
    (b"\xff", None),
    (b"[" * 30_000 + b"]" * 30_000, None),
    (b"{}", "user"),
    (b'{"user":7}', "user"),
    (b'{"user":null}', "user"),
    (b'{"user":"\\ud800"}', None),
    (b'{"user":"a\\u0000"}', "user"),
    (b'{"user":""}', "user"),
    (b'{"user":"u","key":"sk-chosen-by-the-caller"}', "key"),
    (b'{"user":"u","id":"key_mine"}', "id"),
    (b'{"user":"u","' + b"x" * 50_000 + b'":1}', None),
    (b'{"user":"u","models":"*"}', "models"),
    (b'{"user":"u","models":[7]}', "models"),
    (b'{"user":"u","models":[]}', "models"),
    (b'{"user":"u","endpoints":["nope"]}', "endpoints"),
    (b'{"user":"u","expires_at":"soon"}', "expires_at"),
    (b'{"user":"u","expires_at":"2026-01-01T00:00:00Z"}', "expires_at"),
    (b'{"user":"u","expires_at":1e99}', "expires_at"),
    (b'{"user":"u","on_disconnect":"explode"}', "on_disconnect"),
    (b'{"user":"u","may_create_keys":1}', "may_create_keys"),
    (b'{"user":"u","tags":{"a":1}}', "tags"),
]


@pytest.mark.parametrize(("body", "field"), WRONG, ids=[str(body[:48]) for body, _ in WRONG])
def test_a_bad_body_is_refused_by_the_name_of_its_field(
    gateway: Gateway, body: bytes, field: str | None
) -> None:
    before = ask(gateway, "GET", "/v1/keys?limit=1").json()["last_id"]
    answer = ask(gateway, "POST", "/v1/keys", body=body)
    message = refused(answer, 400, param=field)
    assert len(message) < 500
    assert "sk-chosen" not in answer.text
    assert answer.headers["x-request-id"]
    assert ask(gateway, "GET", "/v1/keys?limit=1").json()["last_id"] == before


def test_a_body_is_bounded_and_plain(gateway: Gateway) -> None:
    body = json.dumps({"user": "x" * 70_000}).encode()
    refused(ask(gateway, "POST", "/v1/keys", body=body), 413, "request_too_large")
    zipped = ask(gateway, "POST", "/v1/keys", body=b"{}", **{"content-encoding": "gzip"})
    refused(zipped, 415, "unsupported_encoding")
    made = create(gateway)
    for path, wrong in (
        (f"/v1/keys/{made['id']}/rotate", b'{"grace_s":"1"}'),
        (f"/v1/keys/{made['id']}/rotate", b'{"grace_s":-1}'),
        (f"/v1/keys/{made['id']}/rotate", b'{"grace_s":99999999999999999999999}'),
        (f"/v1/keys/{made['id']}/disable", b'{"why":"x"}'),
    ):
        refused(ask(gateway, "POST", path, body=wrong), 400)
    refused(ask(gateway, "PATCH", f"/v1/keys/{made['id']}", body={}), 400)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=" + "9" * 400, "limit"),
        ("limit=-1", "limit"),
        ("limit=%D9%A1", "limit"),
        ("state=gone", "state"),
        ("after=key_none", "after"),
        ("after=%00", "after"),
        ("user=%00", None),
        ("user=", None),
        ("user=" + "x" * 300, None),
        ("user=a&user=b", "user"),
        ("nope=1", "nope"),
    ],
)
def test_a_bad_query_is_refused_by_the_name_of_its_parameter(
    gateway: Gateway, query: str, param: str | None
) -> None:
    refused(ask(gateway, "GET", f"/v1/keys?{query}"), 400, param=param)


def test_lists_have_pages_and_filters(gateway: Gateway) -> None:
    made = [create(gateway, user="pages", team=f"team-{n % 2}")["id"] for n in range(5)]
    seen: list[str] = []
    query = "user=pages&limit=2"
    for _ in range(3):
        page = ask(gateway, "GET", f"/v1/keys?{query}").json()
        seen += [one["id"] for one in page["data"]]
        query = f"user=pages&limit=2&after={page['last_id']}"
    assert not page["has_more"]
    assert seen == made[::-1]
    ask(gateway, "DELETE", f"/v1/keys/{made[0]}")
    left = ask(gateway, "GET", "/v1/keys?user=pages&team=team-0&state=active").json()["data"]
    assert [one["id"] for one in left] == [made[4], made[2]]


def test_a_request_that_comes_again_makes_one_key(gateway: Gateway) -> None:
    once = {"idempotency-key": "order-66"}
    first = ask(gateway, "POST", "/v1/keys", body={"user": "once"}, **once)
    again = ask(gateway, "POST", "/v1/keys", body={"user": "once"}, **once)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == {**first.json(), "key": None}
    refused(ask(gateway, "POST", "/v1/keys", body={"user": "twice"}, **once), 409, "idempotency_conflict")
    assert len(ask(gateway, "GET", "/v1/keys?user=once").json()["data"]) == 1


@pytest.mark.parametrize("kind", ["of the file", "of the database"])
def test_what_a_key_may_not_is_refused_in_the_doors_envelope_and_nobody_is_called(
    gateway: Gateway, kind: str
) -> None:
    key = BOUNDED
    if kind == "of the database":
        bounds = {"models": ["sim-cache", "sim-s*"], "endpoints": ["chat_completions", "embeddings"]}
        key = create(gateway, **bounds)["key"]
    before = sum(1 for _ in journal_lines(gateway.journal))
    for model in ("sim-large", "simulated/sim-small", "openai/gpt-4o", "SIM-SMALL", "sim-cache "):
        message = refused(say(gateway, key, model=model), 403, "model_not_allowed", "model")
        assert "sim-cache, sim-s*" in message
    refused(say(gateway, key, EMBEDDINGS, "sim-embed"), 403, "model_not_allowed")
    refused(say(gateway, key, "/v1/responses"), 403, "endpoint_not_allowed")
    told = say(gateway, key, MESSAGES)
    assert told.status_code == 403
    assert told.json()["type"] == "error"
    assert told.json()["error"]["type"] == "permission_error"
    assert ask(gateway, "POST", "/v1/messages/count_tokens", key, BODY).status_code == 403
    assert ask(gateway, "POST", MESSAGES, key, b"{").status_code == 403, "before the body is looked at"
    assert sum(1 for _ in journal_lines(gateway.journal)) == before
    assert say(gateway, key).status_code == 200
    intents = [
        line for line in journal_lines(gateway.journal) if line.get("k") == "I" or "I" in str(line)[:40]
    ]
    assert intents
    assert not any("sim-s*" in json.dumps(line) for line in journal_lines(gateway.journal))


@pytest.mark.parametrize("anthropic", [False, True])
def test_models_lists_what_the_key_may_name(gateway: Gateway, anthropic: bool) -> None:
    headers = {"anthropic-version": "2023-06-01"} if anthropic else {}
    everything = {one["id"] for one in ask(gateway, "GET", "/v1/models", KEYS["alice"]).json()["data"]}
    listed = ask(gateway, "GET", "/v1/models", BOUNDED, **headers).json()["data"]
    assert {one["id"] for one in listed} == {
        name for name in everything if name == "sim-cache" or name.startswith("sim-s")
    }
    assert len(everything) > len(listed) > 1
    assert ask(gateway, "GET", "/v1/models/sim-small", BOUNDED, **headers).status_code == 200
    assert ask(gateway, "GET", "/v1/models/sim-large", KEYS["alice"], **headers).status_code == 200
    assert ask(gateway, "GET", "/v1/models/sim-large", BOUNDED, **headers).status_code == 404


def test_a_key_sees_what_it_is_for(gateway: Gateway) -> None:
    own = ask(gateway, "GET", "/v1/key", BOUNDED).json()
    assert (own["id"], own["name"], own["models"]) == ("bounded", "of the file", ["sim-cache", "sim-s*"])
    assert (own["endpoints"], own["expires_at"]) == (
        ["chat_completions", "embeddings"],
        "2261-01-01T00:00:00Z",
    )
    made = create(gateway, may_create_keys=True, unpriced="refuse")
    own = ask(gateway, "GET", "/v1/key", made["key"]).json()
    assert (own["id"], own["models"], own["may_create_keys"]) == (made["id"], None, True)
    assert own["unpriced"] == "refuse"
    assert "key" not in own


def test_an_expired_key_of_the_file_is_told_so(gateway: Gateway) -> None:
    refused(say(gateway, EXPIRED), 401, "key_expired")


def test_no_secret_is_written_anywhere(gateway: Gateway) -> None:
    made = create(gateway, user="canary")
    rotated = ask(gateway, "POST", f"/v1/keys/{made['id']}/rotate", body={"grace_s": 9}).json()
    say(gateway, rotated["key"])
    ask(gateway, "GET", f"/v1/keys/{rotated['key']}")
    ask(gateway, "GET", f"/v1/keys?user={rotated['key']}")
    ask(gateway, "PATCH", f"/v1/keys/{made['id']}", body={rotated["key"]: 1})
    httpx.get(f"{gateway.url}/metrics", timeout=60)
    kept = {path: path.read_bytes() for path in gateway.folder.rglob("*") if path.is_file()}
    assert any(made["id"].encode() in data for data in kept.values())
    for secret in (made["key"], rotated["key"], ADMIN):
        assert not [path for path, data in kept.items() if secret.encode() in data]
    assert "a key was created" in gateway.log()


def test_the_doors_are_documented(gateway: Gateway) -> None:
    paths = httpx.get(f"{gateway.url}/openapi.json", timeout=60).json()["paths"]
    said = {(method, path) for path in paths if path.startswith("/v1/keys") for method in paths[path]}
    assert len(said) == 8
    schema = paths["/v1/keys"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    assert {"user", "models", "endpoints", "expires_at"} <= set(schema["properties"])
    for method, path in said:
        assert {"400", "401", "403", "503"} <= set(paths[path][method]["responses"])
        assert "422" not in paths[path][method]["responses"]


def test_metrics_say_whether_keys_are_fresh(gateway: Gateway) -> None:
    text = httpx.get(f"{gateway.url}/metrics", timeout=60).text
    assert re.search(r"^llm_gateway_keys_readable 1(\.0)?$", text, re.MULTILINE)
    found = re.search(r"^llm_gateway_keys_read_timestamp_seconds (\S+)$", text, re.MULTILINE)
    assert found
    assert float(found[1]) > 1_700_000_000
