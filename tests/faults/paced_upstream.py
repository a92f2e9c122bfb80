"""A provider whose every piece is sent when the test says so, and that counts who called.

It speaks both protocols over plain sockets, so that it sees what a library hides: when its peer went away,
and when its own sending blocks.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

WAIT_S = 30.0
INPUT, OUTPUT, PLACEHOLDER = 17, 41, 999
"""The provider's own figures, and the placeholder that `message_start` carries for the output."""
HEADS = {
    "stream": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    "whole": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n",
}


def chat_pieces(count: int, text: str = "word ") -> list[bytes]:
    """Return `count` content events, the usage and the end."""
    content = {"id": "c1", "model": "paced", "choices": [{"index": 0, "delta": {"content": text}}]}
    usage = {"id": "c1", "model": "paced", "choices": [], "usage": usage_of("chat_completions")}
    return [_event(content)] * count + [_event(usage), b"data: [DONE]\n\n"]


def messages_pieces(count: int, text: str = "word ") -> list[bytes]:
    """Return `message_start`, `count` content events, the usage and the end."""
    start = {"id": "m1", "model": "paced", "usage": {"input_tokens": INPUT, "output_tokens": PLACEHOLDER}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": OUTPUT}}
    return [
        _named({"type": "message_start", "message": start}),
        *[_named(delta)] * count,
        _named(last),
        _named({"type": "message_stop"}),
    ]


def responses_pieces(count: int, text: str = "word ") -> list[bytes]:
    """Return the first event, `count` content events, one that repeats the last, and the end with usage."""
    begun = {"id": "r1", "model": "paced", "status": "in_progress", "usage": None}
    ended = {"id": "r1", "model": "paced", "status": "completed", "usage": usage_of("responses")}
    content = {"type": "response.output_text.delta", "item_id": "m1", "delta": text}
    return [
        _named({"type": "response.created", "response": begun}),
        *[_named(content)] * count,
        _named({"type": "response.output_text.done", "item_id": "m1", "text": text}),
        _named({"type": "response.completed", "response": ended}),
    ]


def usage_of(protocol: str) -> dict[str, int]:
    if protocol in ("messages", "responses"):
        return {"input_tokens": INPUT, "output_tokens": OUTPUT}
    return {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}


def whole_body(protocol: str) -> bytes:
    """Return a reply that is not streamed."""
    usage = usage_of(protocol)
    if protocol == "messages":
        content = [{"type": "text", "text": "hi"}]
        return json.dumps({"id": "m1", "model": "paced", "content": content, "usage": usage}).encode()
    if protocol == "responses":
        output = [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]
        return json.dumps({"id": "r1", "model": "paced", "output": output, "usage": usage}).encode()
    choice = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}
    return json.dumps({"id": "c1", "model": "paced", "choices": [choice], "usage": usage}).encode()


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _named(value: Any) -> bytes:
    return b"event: " + value["type"].encode() + b"\n" + _event(value)


class Call:
    """One request that arrived; the test decides what is sent back, and when."""

    def __init__(self, connection: socket.socket, head: bytes, body: bytes) -> None:
        self.connection = connection
        self.head = head
        self.asked = json.loads(body)
        self.finished = threading.Event()

    def start(self, *, stream: bool = True, length: int = 0) -> None:
        self.connection.sendall(HEADS["stream"] if stream else HEADS["whole"] % length)

    def send(self, piece: bytes) -> None:
        self.connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))

    def end(self) -> None:
        self.connection.sendall(b"0\r\n\r\n")
        self.finished.set()

    def whole(self, body: bytes) -> None:
        self.start(stream=False, length=len(body))
        self.connection.sendall(body)
        self.finished.set()

    def was_left(self, timeout_s: float = WAIT_S) -> bool:
        """Wait for the gateway to close the connection; False if it does not."""
        self.connection.settimeout(timeout_s)
        try:
            return self.connection.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def drop(self) -> None:
        self.finished.set()
        self.connection.close()


class PacedUpstream:
    """Listens on loopback. `answer` is told of each call in a thread of its own; without one they queue.

    Args:
        send_buffer_bytes: of the sockets, small where blocking is the point.
    """

    def __init__(self, answer: Callable[[Call], None] | None = None, send_buffer_bytes: int = 0) -> None:
        self.answer = answer
        self.calls = 0
        self._waiting: list[Call] = []
        self._seen: list[Call] = []
        self._some = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        if send_buffer_bytes:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> PacedUpstream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._some:
            seen, connections = list(self._seen), list(self._open)
        for call in seen:
            call.finished.set()
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(WAIT_S)
        for connection in connections:
            connection.close()

    def next_call(self, case: str | None = None) -> Call:
        """Wait for a call, or for the one that was asked with this `case`; the caller answers it."""

        def waiting() -> list[Call]:
            return [call for call in self._waiting if case in (None, call.asked.get("case"))]

        with self._some:
            assert self._some.wait_for(waiting, WAIT_S), "nobody called"
            call = waiting()[0]
            self._waiting.remove(call)
            return call

    def _accept(self) -> None:
        while True:  # ends with the listener
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._some:
                self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while call := self._read(connection):  # ends with the connection
                with self._some:
                    self.calls += 1
                    self._seen.append(call)
                    if self.answer is None:
                        self._waiting.append(call)
                        self._some.notify_all()
                if self.answer is not None:
                    self.answer(call)
                call.finished.wait(2 * WAIT_S)
        except OSError:
            return

    def _read(self, connection: socket.socket) -> Call | None:
        data = b""
        while b"\r\n\r\n" not in data:  # ends with the connection
            more = connection.recv(65536)
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        while len(body) < length:  # ends with the connection
            body += connection.recv(65536)
        return Call(connection, head, body)
