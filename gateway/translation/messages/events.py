"""Streams of messages: read into events, and written from them.

    message_start (content_block_start content_block_delta* content_block_stop)*
    message_delta {stop_reason, usage} message_stop         both held until the bill is durable

The usage stands in `message_delta`, which is why it waits: what was consumed is known at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.translation.answering import Asked, messages_usage
from gateway.translation.meaning import Thinking, sealed_for, unsealed
from gateway.translation.messages.answer import REASONS, STOPS, read_failure, started
from gateway.translation.streaming import (
    Added,
    Begun,
    Closed,
    Event,
    Failed,
    Opened,
    Sealed,
    Sequencer,
    Stopped,
    dict_of,
    number_of,
    text_of,
)


class Reader:
    """Reads the events of one stream."""

    def __init__(self) -> None:
        self._parts = Sequencer()
        self._begun = False
        self._stopped = Stopped("end")

    def read(self, value: dict[str, Any]) -> list[Event]:
        """Return what one event means."""
        out = self._parts.out
        match value.get("type"):
            case "message_start":
                message = dict_of(value.get("message"))
                if not self._begun:  # a second one has been recorded; its parts follow the first one's
                    out.append(
                        Begun(text_of(message.get("id")) or None, text_of(message.get("model")) or None)
                    )
                self._begun = True
            case "content_block_start":
                self._open(number_of(value.get("index")), dict_of(value.get("content_block")))
            case "content_block_delta":
                self._add(number_of(value.get("index")), dict_of(value.get("delta")))
            case "content_block_stop":
                self._parts.close(number_of(value.get("index")))
            case "message_delta":
                delta = dict_of(value.get("delta"))
                if reason := text_of(delta.get("stop_reason")):
                    sequence = text_of(delta.get("stop_sequence")) or None
                    self._stopped = Stopped(STOPS.get(reason, "end"), sequence)
            case "error":
                failure = read_failure(value)
                if failure is not None:
                    out.append(Failed(failure))
            case _:
                pass  # pings, and what may come to be
        self._parts.out = []
        return out

    def finish(self) -> list[Event]:
        """Return what the end of the stream means."""
        self._parts.finish()
        events: list[Event] = [] if self._begun else [Begun(None, None)]
        events += self._parts.out
        self._parts.out = []
        return [*events, self._stopped]

    def _open(self, index: int, block: dict[str, Any]) -> None:
        parts = self._parts
        match block.get("type"):
            case "text":
                parts.open(index, Opened("text"))
                self._put(index, text_of(block.get("text")))
            case "tool_use":
                parts.open(index, Opened("call", text_of(block.get("id")), text_of(block.get("name"))))
                if block.get("input"):
                    self._put(index, msgspec.json.encode(block["input"]).decode())
            case "thinking":
                parts.open(index, Opened("thinking"))
                self._put(index, text_of(block.get("thinking")))
                self._seal(index, {"signature": block.get("signature")})
            case "redacted_thinking":
                parts.open(index, Opened("thinking"))
                seal, origin = unsealed(text_of(block.get("data")), "messages-redacted")
                if seal is not None and origin is not None:
                    parts.put(index, Sealed(seal, origin))
            case _:
                pass  # blocks of Anthropic's own tools, which no translated request can ask for

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        match delta.get("type"):
            case "text_delta":
                self._put(index, text_of(delta.get("text")))
            case "input_json_delta":
                self._put(index, text_of(delta.get("partial_json")))
            case "thinking_delta":
                self._put(index, text_of(delta.get("thinking")))
            case "signature_delta":
                self._seal(index, delta)
            case _:
                pass  # citations

    def _put(self, index: int, text: str) -> None:
        if text:
            self._parts.put(index, Added(text))

    def _seal(self, index: int, delta: dict[str, Any]) -> None:
        seal, origin = unsealed(text_of(delta.get("signature")), "messages")
        if seal is not None and origin is not None:
            self._parts.put(index, Sealed(seal, origin))


class Writer:
    """Writes the events of one stream."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._index = -1
        self._pending: Opened | None = None  # a thought that may turn out to be a sealed one without words
        self._kind = ""
        self._stopped = Stopped("end")

    def write(self, event: Event) -> bytes:
        """Return the events that say what an event means."""
        match event:
            case Begun():
                message = {
                    **started(event.id, event.model or self._asked.model),
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                    "usage": messages_usage({}),
                }
                return _event("message_start", {"message": message})
            case Opened():
                self._kind = event.kind
                if event.kind == "thinking":
                    self._pending = event
                    return b""
                return self._start(_empty(event))
            case Added():
                return self._opened() + self._delta(_added(self._kind, event.text))
            case Sealed():
                return self._on_sealed(event)
            case Closed():
                if self._pending is not None and self._kind == "thinking":
                    self._pending = None  # a thought of nothing
                    return b""
                return _event("content_block_stop", {"index": self._index})
            case Stopped():
                self._stopped = event
                return b""
            case Failed():
                return b""  # the door writes errors

    def end(self, counts: Mapping[str, int]) -> bytes:
        """Return the terminal events."""
        delta = {"stop_reason": REASONS[self._stopped.stop], "stop_sequence": self._stopped.sequence}
        return _event("message_delta", {"delta": delta, "usage": messages_usage(counts)}) + _event(
            "message_stop", {}
        )

    def _on_sealed(self, event: Sealed) -> bytes:
        seal = sealed_for(Thinking(text="", seal=event.seal, origin=event.origin), "messages")
        if self._pending is None or event.origin == "messages":
            return self._opened() + self._delta({"type": "signature_delta", "signature": seal})
        self._pending = None
        data = event.seal if event.origin == "messages-redacted" else seal
        self._kind = "redacted_thinking"
        return self._start({"type": "redacted_thinking", "data": data})

    def _opened(self) -> bytes:
        if self._pending is None:
            return b""
        pending, self._pending = self._pending, None
        return self._start(_empty(pending))

    def _start(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        return _event("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})


def _empty(opened: Opened) -> dict[str, Any]:
    match opened.kind:
        case "call":
            return {"type": "tool_use", "id": opened.id, "name": opened.name, "input": {}}
        case "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case _:
            return {"type": "text", "text": ""}


def _added(kind: str, text: str) -> dict[str, Any]:
    match kind:
        case "call":
            return {"type": "input_json_delta", "partial_json": text}
        case "thinking":
            return {"type": "thinking_delta", "thinking": text}
        case _:
            return {"type": "text_delta", "text": text}


def _event(kind: str, payload: dict[str, Any]) -> bytes:
    data = msgspec.json.encode({"type": kind, **payload})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
