"""Hostile providers against the real process: bounded memory, and nothing relayed that no server can send."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.attacks.chaos import Chaos, Repeat, Stall, Step
from tests.attacks.inprocess import PROVIDER_KEY, assert_honest
from tests.attacks.wires import CHAT, STREAM_HEAD, WIRES, chunk, head, sized, streamed
from tests.gateway_process import KEYS, Gateway, bills_in_journal

GROWTH_BYTES_MAX = 200 * 2**20
"""Three copies of the largest reply that the settings allow: read, decoded, joined."""
BOMB = gzip.compress(bytes(600 * 2**20), 9)
PIECE = b"x" * 65536

FLOODS: dict[str, tuple[list[Step], bool, int]] = {
    "a gzip bomb of 600 MB": ([sized(BOMB, "200 OK", "content-encoding: gzip")], False, 502),
    "a gzip bomb in a stream": (
        [sized(BOMB, "200 OK", "content-encoding: gzip", kind="text/event-stream")], True, 502,
    ),
    "a line of 400 MB": ([STREAM_HEAD, Repeat(chunk(PIECE), 6400)], True, 200),
    "a body of 400 MB": ([head("200 OK", "connection: close"), Repeat(PIECE, 6400)], False, 502),
    "a header without end": ([b"HTTP/1.1 200 OK\r\nx: ", Repeat(PIECE)], False, 502),
    "a chunk extension without end": (
        [STREAM_HEAD, chunk(CHAT.opening()), b"5;x=", Repeat(PIECE)], True, 200,
    ),
    "trailers without end": (
        [head("200 OK", "transfer-encoding: chunked"), b"0\r\nx: ", Repeat(PIECE)], False, 502,
    ),
    "a flood of interim replies": ([Repeat(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)], False, 502),
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, chaos: Chaos) -> Iterator[Gateway]:
    with Gateway(
        tmp_path_factory.mktemp("hostile"),
        SPANBILL_UPSTREAM__TOTAL_TIMEOUT_S="4",
        SPANBILL_JOURNAL__DURABILITY="process",
        SPANBILL_PROVIDERS=json.dumps(
            {
                "chaos": {
                    "base_url": chaos.url,
                    "api_key": PROVIDER_KEY,
                    "models": ["chaos-*"],
                    "protocols": ["chat_completions", "messages", "responses"],
                }
            }
        ),
    ) as running:
        yield running


def forget_peak(gateway: Gateway) -> None:
    """Make the peak that the kernel keeps start again at what the process has now."""
    assert gateway.process is not None
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")


def rss_peak_bytes(gateway: Gateway) -> int:
    assert gateway.process is not None
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def post(gateway: Gateway, path: str, body: bytes) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEYS['alice']}"}
    return httpx.post(f"{gateway.url}{path}", content=body, headers=headers, timeout=60)


@pytest.mark.parametrize("flood", FLOODS)
def test_no_flood_grows_the_process(flood: str, gateway: Gateway, chaos: Chaos) -> None:
    steps, stream, status = FLOODS[flood]
    name = chaos.script(f"chaos-{flood.replace(' ', '-')}", *steps)
    forget_peak(gateway)
    before = rss_peak_bytes(gateway)
    response = post(gateway, CHAT.path, CHAT.request(name, stream=stream))
    assert response.status_code == status
    (call,) = chaos.called(name)
    assert call.done.wait(20), "the flood still runs: the gateway did not hang up"
    assert call.sent > 20_000, "the fault did not fire"
    grown = rss_peak_bytes(gateway) - before
    assert grown < GROWTH_BYTES_MAX, f"{grown} bytes more"
    bill = bills_in_journal(gateway.journal)[response.headers["x-request-id"]]
    assert_honest(bill)
    assert bill["billing.outcome"] == "upstream_error"
    assert bill["error.type"] in ("upstream_protocol", "upstream_too_large")
    if status == 200:
        assert CHAT.split_error_event(response.content) is not None
    else:
        assert CHAT.is_error_body(response.content)


@pytest.mark.parametrize("wire", WIRES, ids=[wire.name for wire in WIRES])
@pytest.mark.parametrize("status", [204, 205, 299, 301, 307, 399, 402, 451, 499, 529, 599, 600, 999])
def test_every_status_reaches_a_real_client_as_http(
    status: int, wire: object, gateway: Gateway, chaos: Chaos
) -> None:
    assert isinstance(wire, type(CHAT))
    reply = (
        f"HTTP/1.1 {status} Odd\r\n\r\n".encode() if status == 204 else sized(wire.whole(), f"{status} Odd")
    )
    name = chaos.script(f"chaos-status-{status}-{wire.name}", reply)
    response = post(gateway, wire.path, wire.request(name, stream=False))
    assert len(chaos.called(name)) == 1
    relayed = 200 <= status < 300 or 400 <= status < 600
    assert response.status_code == (status if relayed else 502)
    if not relayed:
        assert wire.is_error_body(response.content)
    elif status not in (204, 205):
        assert response.content == wire.whole()
    assert_honest(bills_in_journal(gateway.journal)[response.headers["x-request-id"]])


@pytest.mark.parametrize("wire", WIRES, ids=[wire.name for wire in WIRES])
def test_a_real_client_sees_a_cut_stream_as_cut(wire: object, gateway: Gateway, chaos: Chaos) -> None:
    assert isinstance(wire, type(CHAT))
    name = chaos.script(f"chaos-stall-{wire.name}", STREAM_HEAD, chunk(wire.opening()), Stall())
    response = post(gateway, wire.path, wire.request(name, stream=True))
    assert response.status_code == 200
    assert wire.end not in response.content
    assert wire.split_error_event(response.content) == wire.opening()
    bill = bills_in_journal(gateway.journal)[response.headers["x-request-id"]]
    assert (bill["billing.outcome"], bill["error.type"]) == ("upstream_timeout", "upstream_timeout")


def test_after_all_of_it_the_gateway_serves_as_before(gateway: Gateway, chaos: Chaos) -> None:
    for wire in WIRES:
        name = chaos.script(f"chaos-after-{wire.name}", *streamed(wire.stream()))
        response = post(gateway, wire.path, wire.request(name, stream=True))
        assert response.content == wire.shown(wire.stream())
    assert httpx.get(f"{gateway.url}/ready").json()["ready"] is True
    assert "unforeseen fault" not in gateway.log()
