"""Bad requests: a clear error in the endpoint's envelope, with the ids, and no provider called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest

from deploy.stack import wait_until
from tests.gateway_process import KEYS, Gateway, bills_in_journal, free_port

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
DOORS = [CHAT, MESSAGES, "/v1/responses", "/v1/embeddings"]
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    closed = free_port()
    with Gateway(
        tmp_path_factory.mktemp("refusals"),
        SPANBILL_SERVER__MAX_BODY_BYTES="20000",
        SPANBILL_PROVIDERS=json.dumps(
            {
                "nowhere": {
                    "base_url": f"http://127.0.0.1:{closed}",
                    "api_key": "sk-x",
                    "models": ["nowhere-*"],
                    "protocols": ["chat_completions", "messages", "responses", "embeddings"],
                }
            }
        ),
    ) as running:
        yield running


def post(gateway: Gateway, path: str, content: bytes, **headers: str) -> httpx.Response:
    key = {"authorization": f"Bearer {KEYS['alice']}"} if path == CHAT else {"x-api-key": KEYS["alice"]}
    return httpx.post(f"{gateway.url}{path}", content=content, headers={**key, **headers}, timeout=30)


def assert_envelope(path: str, response: httpx.Response) -> str:
    """Check ids and envelope; return the message."""
    assert UUID.fullmatch(response.headers["x-request-id"])
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-trace-id"])
    assert response.headers["traceresponse"].startswith(f"00-{response.headers['x-trace-id']}-")
    body = response.json()
    if path != MESSAGES:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
    else:
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
    return str(body["error"]["message"])


BAD_BODIES = [
    (b"{", 400),
    (b"[]", 400),
    (b"\xff\xfe", 400),
    (b"{}", 400),
    (b'{"model":7}', 400),
    (b'{"model":""}', 400),
    (b'{"model":"a\\u0000b","messages":[]}', 400),
    (b'{"model":"sim-small","model":"sim-large"}', 400),
    (b'{"model":"sim-small","mod\\u0065l":"sim-large"}', 400),
    (b'{"model":"sim-small","x":NaN}', 400),
    (b'{"model":"sim-small","messages":' + b"[" * 9000 + b"]" * 9000 + b"}", 400),
    (b'{"model":"' + b"x" * 25000 + b'"}', 413),
    (b'{"model":"nope","messages":[]}', 404),
]


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize(("body", "status"), BAD_BODIES, ids=[str(b[0][:40]) for b in BAD_BODIES])
def test_a_bad_body_is_refused_in_the_endpoints_form(
    gateway: Gateway, path: str, body: bytes, status: int
) -> None:
    before = len(bills_in_journal(gateway.journal))
    response = post(gateway, path, body, **{"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert assert_envelope(path, response)
    assert len(bills_in_journal(gateway.journal)) == before


@pytest.mark.parametrize(
    ("path", "member"),
    [
        *((path, b'"stream":"yes"') for path in DOORS[:3]),
        *((path, b'"max_tokens":99999999999999999999') for path in DOORS[:2]),
        ("/v1/responses", b'"max_output_tokens":99999999999999999999'),
        ("/v1/responses", b'"background":true'),
    ],
)
def test_a_member_that_can_not_be_is_refused(gateway: Gateway, path: str, member: bytes) -> None:
    response = post(gateway, path, b'{"model":"sim-small",' + member + b"}")
    assert response.status_code == 400
    assert member.split(b'"')[1].decode() in assert_envelope(path, response)


@pytest.mark.parametrize("path", DOORS)
def test_a_missing_key_is_refused(gateway: Gateway, path: str) -> None:
    response = httpx.post(f"{gateway.url}{path}", content=b'{"model":"sim-small"}')
    assert response.status_code == 401
    assert assert_envelope(path, response)


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_a_wrong_method_is_refused(gateway: Gateway, path: str, method: str) -> None:
    response = httpx.request(method, f"{gateway.url}{path}")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    if method != "HEAD":
        assert assert_envelope(path, response)


@pytest.mark.parametrize("path", DOORS)
def test_an_encoded_body_is_refused(gateway: Gateway, path: str) -> None:
    response = post(gateway, path, b"\x1f\x8b", **{"content-encoding": "gzip"})
    assert response.status_code == 415
    assert_envelope(path, response)


@pytest.mark.parametrize("path", DOORS)
def test_a_provider_that_cannot_be_reached_is_said_and_billed_as_free(gateway: Gateway, path: str) -> None:
    response = post(gateway, path, b'{"model":"nowhere-1","max_tokens":5,"messages":[]}')
    assert response.status_code == 502
    assert "cannot be reached" in assert_envelope(path, response)
    bill = bills_in_journal(gateway.journal)[response.headers["x-request-id"]]
    assert bill["billing.outcome"] == "upstream_unreachable"
    assert (bill["billing.status"], bill["billing.cost.usd"]) == ("final", "0")
    assert bill["error.type"] == "upstream_unreachable"


@pytest.mark.parametrize(
    "path", ["/nope", "/v1/nope", "/v1/models/none", "/health", "/ready", "/docs", "/metrics"]
)
def test_every_door_returns_the_ids(gateway: Gateway, path: str) -> None:
    response = httpx.get(f"{gateway.url}{path}", headers={"authorization": f"Bearer {KEYS['bob']}"})
    assert UUID.fullmatch(response.headers["x-request-id"])
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-trace-id"])


def test_every_request_is_one_log_line_with_its_id(gateway: Gateway) -> None:
    billed = post(gateway, CHAT, b'{"model":"sim-small","messages":[{"role":"user","content":"x"}]}')
    refused = post(gateway, CHAT, b"{}")
    models = httpx.get(f"{gateway.url}/v1/models", headers={"authorization": f"Bearer {KEYS['bob']}"})
    for response in (billed, refused, models):
        request_id = response.headers["x-request-id"]

        def lines(request_id: str = request_id) -> list[dict[str, object]]:
            found = [line for line in gateway.log().splitlines() if request_id in line]
            return [json.loads(line) for line in found]

        assert wait_until(lambda read=lines: bool(read()), 5, 0.02)
        (line,) = lines()
        assert line["status"] == response.status_code
        assert line["trace_id"] == response.headers["x-trace-id"]


def test_a_callers_own_id_is_kept_as_a_fact_and_never_used(gateway: Gateway) -> None:
    seen = set()
    for _ in range(3):
        response = post(
            gateway,
            CHAT,
            b'{"model":"sim-small","messages":[{"role":"user","content":"x"}]}',
            **{"x-request-id": "mine"},
        )
        seen.add(response.headers["x-request-id"])
        bill = bills_in_journal(gateway.journal)[response.headers["x-request-id"]]
        assert bill["billing.client.request_id"] == "mine"
    assert len(seen) == 3


@pytest.mark.parametrize(
    "traceparent",
    [
        "00-" + "a" * 32 + "-" + "b" * 16 + "-00",
        "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "00-" + "0" * 32 + "-" + "b" * 16 + "-01",
        "ff-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "garbage",
        "00-" + "A" * 32 + "-" + "b" * 16 + "-01",
        "0" * 5000,
    ],
)
def test_no_traceparent_keeps_a_request_from_being_billed(gateway: Gateway, traceparent: str) -> None:
    body = b'{"model":"sim-small","messages":[{"role":"user","content":"x"}]}'
    response = post(gateway, CHAT, body, traceparent=traceparent)
    bill = bills_in_journal(gateway.journal)[response.headers["x-request-id"]]
    assert bill["billing.status"] == "final"
    valid = traceparent.startswith("00-" + "a" * 32)
    assert (response.headers["x-trace-id"] == "a" * 32) is valid


def test_the_openapi_document_names_every_door(gateway: Gateway) -> None:
    paths = httpx.get(f"{gateway.url}/openapi.json").json()["paths"]
    assert {
        CHAT,
        MESSAGES,
        "/v1/messages/count_tokens",
        "/v1/models",
        "/health",
        "/ready",
        "/metrics",
    } <= set(paths)
