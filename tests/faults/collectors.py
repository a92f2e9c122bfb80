"""A Collector on loopback with faults made to order; it remembers what it took, byte for byte."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import msgspec

from tests.gateway_process import attributes, spans_in

ENDLESS_BYTES_MAX = 64 * 1024 * 1024
"""An answer without end ends here; whoever reads so far has read too much."""
IDLE_S = 30.0
"""How long is waited for requests in hand; each of them ends soon after its shipper has given up."""
DRIPS_MAX = 400
DRIP_S = 0.02


class _Body(msgspec.Struct):
    spans: list[msgspec.Raw] = msgspec.field(name="resourceSpans")


class Request(BaseHTTPRequestHandler):
    """One connection; `spans` are the bills of the request in hand, as they came."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    collector: Collector
    spans: list[bytes]
    sizes: int

    def do_POST(self) -> None:  # the library's name
        body = self.rfile.read(int(self.headers["content-length"]))
        self.sizes = len(body)
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.spans = [bytes(raw) for raw in msgspec.json.decode(body, type=_Body).spans]
        self.collector.meet(self)

    def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def await_end(self) -> None:
        """Wait until the other side has given up."""
        self.close_connection = True
        try:
            while self.rfile.read(1):  # ends with the connection
                pass
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
        pass


Fault = Callable[["Collector", Request], bool]
"""Answers a request, or not; says whether it was a fault."""


class Collector:
    """Takes every bill, except where `script` (request by request) or `always` says otherwise.

    `taken` has each accepted span by record id; `unsaid` the ids of those whose acceptance was not said.
    """

    def __init__(
        self, *script: Fault, always: Fault | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.script = deque(script)
        self.always = always
        self.taken: defaultdict[str, list[bytes]] = defaultdict(list)
        self.order: list[str] = []
        self.unsaid: set[str] = set()
        self.fired_yet: Counter[str] = Counter()
        self._in_hand = 0
        self._idle = threading.Condition()
        self.requests = 0
        self._lock = threading.Lock()
        handler = type("Handler", (Request,), {"collector": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave are the point
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def fired(self) -> Counter[str]:
        """How often each fault has fired; one is counted when its request ends, perhaps after its answer."""
        with self._idle:
            self._idle.wait_for(lambda: self._in_hand == 0, IDLE_S)
            return Counter(self.fired_yet)

    def meet(self, request: Request) -> None:
        with self._idle:
            self._in_hand += 1
        fired = ""
        try:
            fired = self._meet(request)
        finally:
            with self._idle:
                self._in_hand -= 1
                self.fired_yet.update([fired] if fired else [])
                self._idle.notify_all()

    def _meet(self, request: Request) -> str:
        """Return the fault that fired, if one did."""
        with self._lock:
            self.requests += 1
            fault = self.script.popleft() if self.script else self.always
        if fault is None:
            self.take(request.spans)
            request.answer(200)
            return ""
        return fault.__name__ if fault(self, request) else ""

    def take(self, spans: list[bytes], *, said: bool = True) -> None:
        with self._lock:
            for raw in spans:
                name = record_id(raw)
                self.taken[name].append(raw)
                self.order.append(name)
                if not said:
                    self.unsaid.add(name)


def record_id(raw: bytes) -> str:
    resource: dict[str, Any] = msgspec.json.decode(raw)
    (span,) = spans_in({"resourceSpans": [resource]})
    return str(attributes(span)["billing.record.id"])


# faults


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    def answered(_: Collector, request: Request) -> bool:
        request.answer(code, body, **headers)
        return True

    answered.__name__ = f"status {code}"
    return answered


def never(_: Collector, request: Request) -> bool:
    """Take the request and say nothing."""
    request.await_end()
    return True


def takes_and_says_nothing(collector: Collector, request: Request) -> bool:
    """Slow: accept, and let the other side run out of patience."""
    collector.take(request.spans, said=False)
    request.await_end()
    return True


def takes_and_closes(collector: Collector, request: Request) -> bool:
    collector.take(request.spans, said=False)
    request.close_connection = True
    return True


def closes(_: Collector, request: Request) -> bool:
    request.close_connection = True
    return True


def garbage(_: Collector, request: Request) -> bool:
    request.answer(200, b"<html>log in</html>", content_type="text/html")
    return True


def dripping(_: Collector, request: Request) -> bool:
    """Answer byte by byte, each in time, and never to the end."""
    request.send_response_only(200)
    request.send_header("content-length", str(DRIPS_MAX + 1))
    request.end_headers()
    request.close_connection = True
    for _ in range(DRIPS_MAX):
        try:
            request.wfile.write(b" ")
        except OSError:
            return True
        threading.Event().wait(DRIP_S)
    return False


def endless(collector: Collector, request: Request) -> bool:
    """Answer without end."""
    request.send_response_only(200)
    request.end_headers()
    request.close_connection = True
    for _ in range(ENDLESS_BYTES_MAX // 65536):
        try:
            request.wfile.write(b" " * 65536)
        except OSError:
            return True
    return False


def endless_head(collector: Collector, request: Request) -> bool:
    request.send_response_only(200)
    request.close_connection = True
    for _ in range(ENDLESS_BYTES_MAX // 65536):
        try:
            request.wfile.write(b"x: " + b"y" * 65536 + b"\r\n")
        except OSError:
            return True
    return False


def bomb(_: Collector, request: Request) -> bool:
    """Answer with little that unpacks to much."""
    request.answer(200, gzip.compress(b" " * ENDLESS_BYTES_MAX), content_encoding="gzip")
    return True


def half(collector: Collector, request: Request) -> bool:
    """Take every second bill, and say how many not; a lone bill is taken."""
    refused = len(request.spans) // 2
    collector.take(request.spans[refused:], said=not refused)
    partial = {"rejectedSpans": str(refused), "errorMessage": "no room"}
    request.answer(200, msgspec.json.encode({"partialSuccess": partial} if refused else {}))
    return refused > 0


def larger_than(bytes_max: int) -> Fault:
    def too_large(collector: Collector, request: Request) -> bool:
        if request.sizes <= bytes_max:
            collector.take(request.spans)
            request.answer(200)
            return False
        request.answer(413)
        return True

    return too_large


def poisoned(*ids: str) -> Fault:
    def refuses(collector: Collector, request: Request) -> bool:
        if not {record_id(raw) for raw in request.spans} & set(ids):
            collector.take(request.spans)
            request.answer(200)
            return False
        request.answer(400, b"proto: syntax error")
        return True

    return refuses


def without_gzip(code: int) -> Fault:
    def refuses_gzip(collector: Collector, request: Request) -> bool:
        if request.headers.get("content-encoding") is None:
            collector.take(request.spans)
            request.answer(200)
            return False
        request.answer(code)
        return True

    return refuses_gzip
