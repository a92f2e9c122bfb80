"""A real gateway in front of the paced provider, and callers on plain sockets."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from deploy.stack import wait_until
from tests.faults.paced_upstream import WAIT_S
from tests.gateway_process import KEYS, Gateway, attributes, spans_in

PATHS = {"chat_completions": "/v1/chat/completions", "messages": "/v1/messages"}
ALL_PATHS = {**PATHS, "responses": "/v1/responses"}
CANCEL_KEY = "sk-test-cancels-0004"
MAX_TOKENS = 64
TABLE_READS_MAX = 100
"""The table of connections is not read in one piece: a row may be missed."""


def configure(folder: Path, upstream_port: int, **sections: dict[str, Any]) -> None:
    """Write the configuration that makes `paced` a priced model of the paced provider."""
    folder.mkdir(parents=True, exist_ok=True)
    provider = {
        "base_url": f"http://127.0.0.1:{upstream_port}/v1",
        "api_key": "sk-x",
        "protocols": list(ALL_PATHS),
        "models": ["paced"],
    }
    settings: dict[str, Any] = {
        "providers": {"paced": provider},
        "prices": {"overrides": {"paced/paced": {"input": "1", "output": "2"}}},
        "keys": [{"id": "cancels", "key": CANCEL_KEY, "user": "dora", "on_disconnect": "cancel"}],
        "journal": {"min_free_bytes": 0},
    }
    for name, section in sections.items():
        settings.setdefault(name, {}).update(section)
    (folder / "spanbill.yaml").write_text(json.dumps(settings))


class Caller:
    """One connection of a caller."""

    def __init__(self, port: int, *, receive_buffer_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(WAIT_S)
        self.received = b""
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *fault: object) -> None:
        self.socket.close()

    def ask(
        self, protocol: str, *, stream: bool, key: str = KEYS["alice"], model: str = "paced", **more: Any
    ) -> None:
        bound = "max_output_tokens" if protocol == "responses" else "max_tokens"
        content = {"model": model, bound: MAX_TOKENS, "stream": stream, "messages": []}
        body = json.dumps({**content, **more}).encode()
        head = (
            f"POST {ALL_PATHS[protocol]} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.received = b""
        self.socket.sendall(head.encode() + body)

    def read_until(self, found: bytes, count: int = 1) -> bytes:
        """Read until `found` was received `count` times, or the connection ends."""
        while self.received.count(found) < count:  # ends with the connection or its timeout
            more = self.socket.recv(65536)
            if not more:
                break
            self.received += more
        return self.received

    def read_reply(self) -> tuple[int, dict[str, str], bytes]:
        """Read one reply that has a length."""
        head, _, body = self.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        while len(body) < int(headers["content-length"]):  # ends with the connection or its timeout
            body += self.socket.recv(65536)
        return int(lines[0].split()[1]), headers, body

    def read_to_end(self) -> bytes:
        """Read until the connection ends or the chunked body does."""
        return self.read_until(b"\r\n0\r\n\r\n")

    def leave(self, gateway: Gateway, *, reset: bool = False) -> None:
        """Close, by FIN or by RST, and wait until the gateway has closed its end too."""
        inode = self._inode_of_gateways_end()
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        assert wait_until(lambda: inode not in _sockets(gateway), WAIT_S, 0.005), "the leaving went unseen"

    def _inode_of_gateways_end(self) -> str:
        gateway_port, port = self.socket.getpeername()[1], self.socket.getsockname()[1]
        ends = f"0100007F:{gateway_port:04X} 0100007F:{port:04X}"
        for _ in range(TABLE_READS_MAX):
            for line in Path("/proc/net/tcp").read_text().splitlines():
                if ends in line:
                    return f"socket:[{line.split()[9]}]"
        raise AssertionError("the gateway has no such connection")


def _sockets(gateway: Gateway) -> set[str]:
    assert gateway.process is not None
    found = set()
    for link in Path(f"/proc/{gateway.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return found


def request_id(received: bytes) -> str:
    """Return the correlation id of a reply."""
    for line in received.split(b"\r\n\r\n")[0].split(b"\r\n"):
        if line.lower().startswith(b"x-request-id:"):
            return line.split(b":")[1].strip().decode()
    raise AssertionError(received[:200])


def ask(
    gateway: Gateway, protocol: str, *, model: str = "paced", stream: bool = False
) -> tuple[int, dict[str, str], bytes]:
    """Send one request that is not streamed; return status, headers and body."""
    with Caller(gateway.port) as caller:
        caller.ask(protocol, stream=stream, model=model)
        return caller.read_reply()


def get(gateway: Gateway, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(gateway.url + path, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as fault:
        return fault.code, fault.read().decode()


def metric(gateway: Gateway, name: str) -> float:
    lines = [line for line in get(gateway, "/metrics")[1].splitlines() if line.startswith(name + " ")]
    return float(lines[0].split()[1])


def whole_lines(journal: Path) -> list[dict[str, Any]]:
    """Return the journal's whole lines: a full disk may have torn some."""
    found = []
    for segment in sorted(journal.glob("[0-9]*-*/*.jsonl")):
        for line in segment.read_bytes().split(b"\n")[:-1]:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def bills(journal: Path) -> dict[str, dict[str, Any]]:
    """Return the bills by record id; copies of one must be equal."""
    found: dict[str, dict[str, Any]] = {}
    for line in whole_lines(journal):
        for span in spans_in(line):
            bill = attributes(span)
            assert found.setdefault(bill["billing.record.id"], bill) == bill, "two bills of one request"
    return found


def bill_of(gateway: Gateway, record_id: str) -> dict[str, Any]:
    """Wait for the bill of a request and return it."""
    assert wait_until(lambda: record_id in bills(gateway.journal), WAIT_S, 0.01), "no bill"
    return bills(gateway.journal)[record_id]


def intents(journal: Path) -> set[str]:
    return {line["j"]["id"] for line in whole_lines(journal) if line["j"]["k"] == "I"}
