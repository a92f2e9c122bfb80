"""Raw sockets, responses as they come, and a provider that counts; for tests of the HTTP front."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httptools

from tests.gateway_process import KEYS

CHAT = "/v1/chat/completions"
READ_S = 20.0
HUGE_BYTES = 6 * 2**20
"""More than the kernel takes for a client that does not read."""


def answer_of(content: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "counted-1",
            "choices": [choice],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        }
    ).encode()


ANSWER = answer_of("ok")
HUGE_ANSWER = answer_of("x" * HUGE_BYTES)


class CountingProvider:
    """Answers every POST and counts it, `counted-huge` at length; can be made to wait before it answers."""

    def __init__(self) -> None:
        self.calls = 0
        self.called = threading.Event()
        self.go = threading.Event()
        self.go.set()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = HUGE_ANSWER if b"counted-huge" in body else ANSWER
                provider.calls += 1
                provider.called.set()
                assert provider.go.wait(READ_S)
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def settings(self) -> str:
        """Return `SPANBILL_PROVIDERS` with this provider serving `counted-*`."""
        return json.dumps(
            {
                "counted": {
                    "base_url": f"http://127.0.0.1:{self.port}/v1",
                    "api_key": "sk-provider",
                    "models": ["counted-*"],
                }
            }
        )

    def close(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def counting_provider() -> Iterator[CountingProvider]:
    provider = CountingProvider()
    try:
        yield provider
    finally:
        provider.close()


class Response:
    """One response as it came."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False

    def json(self) -> Any:
        return json.loads(self.body)


class Responses:
    """Splits the bytes of a connection into responses."""

    def __init__(self) -> None:
        self.all: list[Response] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.all.append(Response())

    def on_header(self, name: bytes, value: bytes) -> None:
        self.all[-1].headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.all[-1].status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.all[-1].body += body

    def on_message_complete(self) -> None:
        self.all[-1].complete = True


def dial(port: int, *, receive_buffer: int | None = None) -> socket.socket:
    """Connect; reads give up after READ_S."""
    connection = socket.socket()
    connection.settimeout(READ_S)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", port))
    return connection


def read_to_end(connection: socket.socket) -> list[Response]:
    """Return every response up to the end of the connection; a reset is an end."""
    responses = Responses()
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            responses.feed(data)
    return responses.all


def talk(port: int, payload: bytes) -> list[Response]:
    """Send `payload` on a connection of its own, and return what comes until its end."""
    with dial(port) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(payload)  # the answer may come first; it is still there to be read
        return read_to_end(connection)


def request(
    body: bytes | None = None,
    *,
    path: str = CHAT,
    method: str = "POST",
    user: str = "alice",
    model: str = "counted-1",
    close: bool = False,
    **headers: str,
) -> bytes:
    """Return a correct request."""
    if body is None:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: gateway.test",
        f"Authorization: Bearer {KEYS.get(user, user)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    if close:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def assert_own_answer(response: Response, code: str | None = None) -> None:
    """Check that an answer of the front is complete: ids, envelope, end."""
    assert response.complete
    assert response.headers["x-request-id"] == response.headers["request-id"]
    assert len(response.headers["x-request-id"]) == 36
    assert len(response.headers["x-trace-id"]) == 32
    assert response.headers["traceresponse"].startswith(f"00-{response.headers['x-trace-id']}-")
    assert response.headers["connection"] == "close"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if code is not None:
        assert error["code"] == code
