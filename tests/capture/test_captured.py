"""A gateway captures whom it was told to, names the capture on the bill, and nobody else pays for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.billing import Prices, interrupted
from gateway.capture.capture import Captures
from gateway.core.exchange import Call, Identity
from gateway.recording.span import billing_span
from gateway.settings import AdminSettings
from gateway.settings.logs import DebugSettings, LoggingSettings
from tests.attacks.chaos import Chaos, Reset
from tests.attacks.inprocess import KEY, PROVIDER_KEY, Answer, Attacked, attacked
from tests.attacks.wires import STREAM_HEAD, WIRES, chunk, sized, streamed

CHAT = WIRES[0]
ASKING = [(b"x-spanbill-debug", b"1")]
NAME = "billing.debug.capture"


@pytest.fixture(scope="module")
def chaos() -> Any:
    with Chaos() as running:
        running.script("chaos-fine", sized(CHAT.whole()))
        running.script("chaos-busy", sized(b'{"error":{"message":"busy"}}', "503 Busy"))
        events = (CHAT.opening(), CHAT.content("pieces"), CHAT.closing(), CHAT.end)
        running.script("chaos-stream", *streamed(*events))
        running.script("chaos-cut", STREAM_HEAD, chunk(CHAT.opening() + CHAT.content("half")), Reset())
        running.script("chaos-none", Reset())
        yield running


@asynccontextmanager
async def capturing(folder: Path, chaos: Chaos, **debug: Any) -> AsyncIterator[Attacked]:
    settings = DebugSettings(path=folder / "debug", **debug)
    logging = LoggingSettings(requests=False, debug=settings)
    async with attacked(folder / "journal", chaos, logging=logging) as gateway:
        yield gateway


def ask_body(model: str, *, stream: bool = False, **members: object) -> bytes:
    return CHAT.request(model, stream=stream, **members)


def captures(folder: Path) -> list[Path]:
    return sorted((folder / "debug").rglob("*.json"))


def capture_of(folder: Path, gateway: Attacked, answer: Answer) -> dict[str, Any]:
    """Return the capture that the bill of an answer names."""
    name = gateway.bill(answer)[NAME]
    assert name.endswith(f"/{answer.request_id}.json")
    found: dict[str, Any] = json.loads((folder / "debug" / name).read_text())
    assert found["record_id"] == answer.request_id
    return found


async def key_of(folder: Path, chaos: Chaos) -> str:
    """Return the id of the one key, which depends on the key."""
    async with attacked(folder / "asked", chaos) as gateway:
        answer = await gateway.ask(CHAT, ask_body("chaos-fine"))
        key: str = gateway.bill(answer)["billing.key.id"]
    return key


async def test_a_whole_reply_is_captured_as_it_was_sent_and_released_without_secrets(
    tmp_path: Path, chaos: Chaos
) -> None:
    key = await key_of(tmp_path, chaos)
    body = ask_body(
        "chaos-fine",
        messages=[{"role": "user", "content": f"prompt-canary, my key is {KEY}, and sk-other-1234567890"}],
        metadata={"password": "field-canary", "color": "red"},
    )
    headers = [(b"x-odd", b"header-canary-0123"), (b"cookie", b"cookie-canary"), (b"user-agent", b"tests/1")]
    async with capturing(tmp_path, chaos, keys=(key,), redact_fields=("color",)) as gateway:
        answer = await gateway.ask(CHAT, body, headers=headers)
    found = capture_of(tmp_path, gateway, answer)
    assert "prompt-canary, my key is [redacted], and [redacted]" in found["request"]["body"]["text"]
    asked = json.loads(found["request"]["body"]["text"])
    assert asked["metadata"] == {"password": "[redacted]", "color": "[redacted]"}
    assert found["request"]["headers"]["user-agent"] == "tests/1"
    assert {"authorization", "x-odd", "cookie"} <= set(found["request"]["other_headers"])
    assert found["reply"]["body"]["text"].encode() == answer.body
    assert (found["reply"]["status"], found["reply"]["ended"]) == (200, True)
    assert found["reply"]["headers"]["x-request-id"] == answer.request_id
    (attempt,) = found["attempts"]
    assert (attempt["status"], attempt["error"]) == (200, None)
    assert "authorization" in attempt["request"]["other_headers"]
    text = json.dumps(found)
    for secret in (KEY, PROVIDER_KEY, "field-canary", "header-canary", "cookie-canary", "sk-other"):
        assert secret not in text
    journal = b"".join(path.read_bytes() for path in gateway.journal.rglob("*.jsonl"))
    assert b"prompt-canary" not in journal


async def test_a_stream_is_captured_as_it_was_released(tmp_path: Path, chaos: Chaos) -> None:
    key = await key_of(tmp_path, chaos)
    async with capturing(tmp_path, chaos, keys=(key,)) as gateway:
        answer = await gateway.ask(CHAT, ask_body("chaos-stream", stream=True))
    found = capture_of(tmp_path, gateway, answer)
    assert found["reply"]["body"]["text"].encode() == answer.body
    assert b"pieces" in answer.body
    assert answer.body.endswith(CHAT.end)


@pytest.mark.parametrize(
    ("model", "stream", "status", "error"),
    [
        ("chaos-busy", False, 503, None),
        ("chaos-none", False, 502, "upstream_incomplete"),
        ("chaos-cut", True, 200, None),
    ],
)
async def test_what_fails_is_captured_with_what_the_caller_was_told(
    tmp_path: Path, chaos: Chaos, model: str, stream: bool, status: int, error: str | None
) -> None:
    key = await key_of(tmp_path, chaos)
    async with capturing(tmp_path, chaos, keys=(key,)) as gateway:
        answer = await gateway.ask(CHAT, ask_body(model, stream=stream))
    found = capture_of(tmp_path, gateway, answer)
    assert answer.status == found["reply"]["status"] == status
    assert found["reply"]["body"]["text"].encode() == answer.body
    assert answer.body
    assert found["attempts"][0]["error"] == error


async def test_whoever_shows_the_operators_key_may_ask_for_any_request(tmp_path: Path, chaos: Chaos) -> None:
    admin = "5f2c9f0e1b7a4c3d8e6f"
    shown = [(b"x-api-key", admin.encode()), *ASKING]
    debug = LoggingSettings(requests=False, debug=DebugSettings(path=tmp_path / "debug"))
    given = AdminSettings(key=SecretStr(admin))
    async with attacked(tmp_path / "journal", chaos, logging=debug, admin=given) as gateway:
        asked = await gateway.ask(CHAT, ask_body("chaos-fine"), headers=shown)
        other = await gateway.ask(CHAT, ask_body("chaos-fine"), headers=ASKING)
        silent = await gateway.ask(CHAT, ask_body("chaos-fine"), headers=shown[:1])
    assert admin not in json.dumps(capture_of(tmp_path, gateway, asked))
    assert [NAME in gateway.bill(answer) for answer in (other, silent)] == [False, False]


async def test_a_header_asks_for_it_only_where_its_key_may(tmp_path: Path, chaos: Chaos) -> None:
    key = await key_of(tmp_path, chaos)
    async with capturing(tmp_path, chaos, header_keys=(key,)) as gateway:
        asked = await gateway.ask(CHAT, ask_body("chaos-fine"), headers=ASKING)
        plain = await gateway.ask(CHAT, ask_body("chaos-fine"))
        other = await gateway.ask(CHAT, ask_body("chaos-fine"), headers=[(b"x-spanbill-debug", b"0")])
    assert capture_of(tmp_path, gateway, asked)["reply"]["ended"]
    assert NAME not in gateway.bill(plain)
    assert NAME not in gateway.bill(other)
    assert len(captures(tmp_path)) == 1
    (tmp_path / "other").mkdir()
    async with capturing(tmp_path / "other", chaos, header_keys=("somebody-else",)) as gateway:
        answer = await gateway.ask(CHAT, ask_body("chaos-fine"), headers=ASKING)
        refused = await gateway.ask(CHAT, ask_body("chaos-fine"), headers=ASKING, key="sk-none")
    assert refused.status == 401
    assert NAME not in gateway.bill(answer)
    assert captures(tmp_path / "other") == []
    assert all(b"x-spanbill-debug" not in str(call.headers).encode() for call in chaos.calls)


def test_the_bill_of_a_process_that_died_names_no_capture_for_there_is_none() -> None:
    call = Call(
        record_id="r",
        trace_id="a" * 32,
        span_id="b" * 16,
        server_span_id="c" * 16,
        protocol="chat_completions",
        operation="chat",
        model="m",
        stream=False,
        identity=Identity(key_id="k", user_id="u", source="key"),
        started_unix_ns=1,
        capture="2026-01-01/r.json",
    )
    prices = Prices(charge=lambda *_: None, context_window=lambda *_: None)
    assert NAME not in billing_span(interrupted(prices, call, None)).attributes


async def test_where_there_is_no_room_the_request_goes_on_and_its_bill_names_none(
    tmp_path: Path, chaos: Chaos
) -> None:
    key = await key_of(tmp_path, chaos)
    async with capturing(tmp_path, chaos, keys=(key,), captures_per_day=1) as gateway:
        answers = [await gateway.ask(CHAT, ask_body("chaos-fine")) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [NAME in gateway.bill(answer) for answer in answers] == [True, False, False]
    assert len(captures(tmp_path)) == 1


async def test_a_request_that_is_not_captured_is_told_with_the_gateways_own_stages(
    tmp_path: Path, chaos: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without captures nothing of them is even called."""

    def never(*args: object) -> None:
        raise AssertionError("it was asked")

    monkeypatch.setattr(Captures, "begin", never)
    async with capturing(tmp_path, chaos) as gateway:
        answer = await gateway.ask(CHAT, ask_body("chaos-fine"), headers=ASKING)
    assert answer.status == 200
    assert not (tmp_path / "debug").exists()
