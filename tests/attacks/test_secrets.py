"""Canaries: no key, prompt, reply or header value is in anything that the gateway keeps, says or sends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from gateway.admission.virtual_keys import KeyEntry, KeyRing, env_keys
from tests.attacks.chaos import Chaos, Reset
from tests.attacks.wires import STREAM_HEAD, WIRES, Wire, chunk, sized, streamed
from tests.gateway_process import KEYS, ROOT, Gateway, bills_in_journal

PROVIDER_KEY = "sk-canary-provider-7f3a"
CANARIES = {
    "the caller's key": KEYS["alice"],
    "a key that is none": "sk-canary-stranger-9b1c",
    "the provider's key": PROVIDER_KEY,
    "the prompt": "canary-prompt-52d0",
    "the reply": "canary-reply-81ee",
    "a tool's name": "canary_tool_11aa",
    "the provider's error text": "canary-error-text-3c9d",
    "a header's value": "canary-header-64fb",
    "a cookie": "canary-cookie-09f2",
    "the query string": "canary-query-a7d1",
    "a body that is no JSON": "canary-broken-body-fe21",
    "a header of the provider's": "canary-provider-header-c4c4",
}
EX_CONFIG = 78


class Sink:
    """An OTLP endpoint that keeps every byte."""

    def __init__(self) -> None:
        kept: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                kept.append(str(self.headers).encode())
                kept.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "2")
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: object) -> None:
                pass

        self.kept = kept
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


def attack(gateway: Gateway, chaos: Chaos, wire: Wire) -> list[httpx.Response]:
    """Send the canaries through every way a request can end; return what callers got."""
    c = CANARIES
    reply = wire.whole().replace(b'"hi"', f'"{c["the reply"]}"'.encode())
    error = wire.error.split(b"data: ")[1].strip().replace(b"busy", c["the provider's error text"].encode())
    event = wire.content(c["the reply"])
    odd = "x-odd: " + c["a header of the provider's"]
    scripts = {
        "fine": [sized(reply, "200 OK", odd)],
        "stream": streamed(wire.opening(), event, wire.closing(), wire.end),
        "cut": [STREAM_HEAD, chunk(wire.opening() + event), Reset()],
        "error": [sized(error, "401 No", odd)],
        "inside": streamed(wire.opening(), wire.error.replace(b"busy", error[:1])),
        "no-http": [c["the reply"].encode() + b"\r\n\r\n", Reset()],
        "no-json": [sized(c["the reply"].encode())],
    }
    headers = {
        "x-spanbill-debug": "1",
        "x-odd": c["a header's value"],
        "baggage": "a=" + c["a header's value"],
        "cookie": f"s={c['a cookie']}",
    }
    tool = {"type": "function", "name": c["a tool's name"], "function": {"name": c["a tool's name"]}}
    responses = []

    def post(body: bytes, key: str, **more: str) -> None:
        path = f"{wire.path}?key={c['the query string']}"
        sent = {**headers, "authorization": f"Bearer {key}", **more}
        responses.append(httpx.post(f"{gateway.url}{path}", content=body, headers=sent, timeout=30))

    for name, steps in scripts.items():
        model = chaos.script(f"chaos-{wire.name}-{name}", *steps)
        for stream in (False, True):
            body = wire.request(
                model, stream=stream, tools=[tool], system=c["the prompt"], prompt=c["the prompt"]
            ).replace(b'"hi"', f'"{c["the prompt"]}"'.encode())
            post(body, KEYS["alice"])
            assert chaos.called(model), name
            assert c["the prompt"].encode() in chaos.calls[-1].body, "the canary was not sent"
    post(wire.request("chaos-x", stream=False), c["a key that is none"])
    post(b"{" + c["a body that is no JSON"].encode(), KEYS["alice"])
    post(json.dumps({"model": "m", "stream": c["the prompt"]}).encode(), KEYS["alice"])
    post(json.dumps({"model": "nobody", "messages": [c["the prompt"]]}).encode(), KEYS["alice"])
    post(b"{}", KEYS["alice"], **{"content-encoding": c["a header's value"]})
    for path in ("/v1/models", "/v1/models/none", "/nope", "/ready"):
        query = f"?api%5Fkey={c['the query string']}&x-Token={c['the query string']}"
        responses.append(httpx.get(f"{gateway.url}{path}{query}", headers=headers))
    return responses


def verify(journal: Path, *options: str) -> bytes:
    """Return what the audit of a folder prints."""
    command = [sys.executable, "-m", "gateway", "verify", "--journal", str(journal), *filter(None, options)]
    ended = subprocess.run(
        command, cwd=ROOT, env=Gateway.clean_environment(), capture_output=True, timeout=60
    )
    assert ended.returncode in (0, 1), ended.stderr
    return ended.stdout + ended.stderr


def damaged(journal: Path, to: Path) -> Path:
    """Copy a journal and spoil each hundredth byte of its bills: what the audit may want to quote."""
    shutil.copytree(journal, to, dirs_exist_ok=True)
    for segment in to.glob("2*/*.jsonl"):
        data = bytearray(segment.read_bytes())
        for at in range(50, len(data), 1009):
            data[at] ^= 1
        segment.write_bytes(data)
    return to


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, chaos: Chaos) -> dict[str, bytes]:
    """Run the attack once; return everything that came out of the gateway, by where."""
    sink = Sink()
    folder = tmp_path_factory.mktemp("secrets")
    providers = {
        "chaos": {
            "base_url": chaos.url, "api_key": PROVIDER_KEY, "models": ["chaos-*"],
            "protocols": ["chat_completions", "messages", "responses"],
        }
    }  # fmt: skip
    with Gateway(
        folder,
        SPANBILL_PROVIDERS=json.dumps(providers),
        SPANBILL_LOGGING__LEVEL="debug",
        SPANBILL_LOGGING__USAGE__PATH="logs",
        SPANBILL_LOGGING__ERRORS__PATH="logs",
        SPANBILL_LOGGING__DEBUG__PATH="debug",
        SPANBILL_LOGGING__DEBUG__HEADER_KEYS='["somebody-else"]',
        OTEL_EXPORTER_OTLP_ENDPOINT=sink.url,
    ) as gateway:
        responses = [response for wire in WIRES for response in attack(gateway, chaos, wire)]
        ours = [r for r in responses if r.status_code >= 400 and b"canary-error-text" not in r.content]
        metrics = httpx.get(f"{gateway.url}/metrics").content
        assert gateway.stop() == 0
    said = [verify(folder / "data" / "journal", "")]
    said.append(verify(damaged(folder / "data" / "journal", tmp_path_factory.mktemp("damaged")), "--json"))
    assert b"checksum" in said[1]
    kept = b"".join(
        p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "gateway.log"
    )
    assert len(bills_in_journal(gateway.journal)) == len(WIRES) * 14
    assert {p.name.partition("-")[0] for p in (folder / "logs").glob("*.jsonl")} == {"usage", "errors"}
    assert len(ours) > 10
    assert b"llm_gateway_requests" in metrics
    assert any(b"POST /v1/messages" in data for data in sink.kept), "no SERVER span was exported"
    assert any(b"billing.record.id" in data for data in sink.kept), "no bill was shipped"
    return {
        "journal and all other files": kept,
        "log": gateway.log().encode(),
        "what verify says of it": said[0],
        "what verify says of it once it is damaged": said[1],
        "spans and bills at the Collector": b"".join(sink.kept),
        "metrics": metrics,
        "bodies of our own errors": b"".join(response.content for response in ours),
        "response headers": b"".join(
            str([h for h in r.headers.items() if h[0] != "x-odd"]).encode() for r in responses
        ),
        "standard arguments": " ".join(gateway.process.args).encode() if gateway.process else b"",  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("canary", CANARIES)
def test_no_canary_is_kept_said_or_sent_on(canary: str, outputs: dict[str, bytes]) -> None:
    found = [where for where, data in outputs.items() if CANARIES[canary].encode() in data]
    assert not found
    assert all(outputs.values()), "an output that is empty proves nothing"


def test_keys_are_kept_as_digests_only() -> None:
    ring = KeyRing(env_keys(f"alice={KEYS['alice']}"))
    entry = env_keys(KEYS["alice"])[0]
    for shown in (repr(ring), repr(entry), repr(vars(type(entry))), repr(entry.identity)):
        assert KEYS["alice"] not in shown
    held = [getattr(entry, name) for name in KeyEntry.__slots__]
    assert not any(KEYS["alice"] in repr(value) or KEYS["alice"].encode() == value for value in held)
    assert len(entry.digest) == 32


@pytest.fixture
def clean() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "SPANBILL_")) and not name.lower().endswith("_proxy")
    }


KEYS_REFUSED = {
    "an empty key": [{"id": "k", "key": "", "user": "u"}],
    "no key": [{"id": "k", "user": "u"}],
    "a variable that is not set": [{"id": "k", "key_env": "NOT_SET_AT_ALL", "user": "u"}],
    "a variable that is empty": [{"id": "k", "key_env": "EMPTY", "user": "u"}],
    "a key of blanks": [{"id": "k", "key": "   ", "user": "u"}],
    "a key in two lines": [{"id": "k", "key": "a\nb", "user": "u"}],
    "an empty user": [{"id": "k", "key": "sk-canary-start", "user": ""}],
    "one key with two owners": [
        {"id": "k", "key": "sk-canary-start", "user": "u"}, {"id": "l", "key": "sk-canary-start", "user": "v"}
    ],
    "one id for two keys": [
        {"id": "k", "key": "sk-canary-start", "user": "u"}, {"id": "k", "key": "sk-canary-other", "user": "u"}
    ],
}  # fmt: skip


@pytest.mark.parametrize("mistake", KEYS_REFUSED)
def test_a_gateway_with_an_unusable_secret_refuses_to_start(
    mistake: str, clean: dict[str, str], tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--port", "0"],
        cwd=tmp_path,
        env={
            **clean,
            "PYTHONPATH": str(ROOT),
            "EMPTY": "",
            "SPANBILL_KEYS": json.dumps(KEYS_REFUSED[mistake]),
        },
        capture_output=True,
        timeout=30,
    )
    assert ended.returncode == EX_CONFIG, ended.stderr
    said = ended.stdout + ended.stderr
    assert b"Traceback" not in said
    assert b"key" in said
    assert b"sk-canary" not in said
