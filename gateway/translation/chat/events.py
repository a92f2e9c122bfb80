"""Streams of chat completions: read into events, and written from them.

delta {role}, delta {content | reasoning_content | tool_calls} ..., delta {} with finish_reason
no choices, usage           if the caller asked for it
[DONE]                      the terminal event
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

import msgspec

from gateway.translation.answering import Asked, chat_usage
from gateway.translation.chat import thoughts
from gateway.translation.chat.answer import (
    FINISH,
    minted,
    read_failure,
    stop_of,
    texts_in,
)
from gateway.translation.freeform import input_of
from gateway.translation.meaning import Thinking
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
    arguments_of,
    dict_of,
    list_of,
    text_of,
)

DONE: Final = b"data: [DONE]\n\n"
CALLS_MAX: Final = 1024
"""Calls of one stream; more are no answer but an attack on memory."""


class Reader:
    """Reads the chunks of one stream."""

    def __init__(self) -> None:
        self._parts = Sequencer()
        self._id: str | None = None
        self._begun = False
        self._stop: object = None
        self._calls: dict[int | None, tuple[int, str]] = {}  # index of the provider -> number and id
        self._called = 0
        self._thought: object = None  # index of the open thought's details
        self._runs: dict[str, int] = {}  # how many parts of text and of thinking there were

    def read(self, chunk: dict[str, Any]) -> list[Event]:
        """Return what one chunk means.

        Raises:
            UpstreamError: more of it has to wait than may.
        """
        failure = read_failure(chunk)
        if failure is not None:
            return [Failed(failure)]
        out = self._parts.out
        self._id = self._id or text_of(chunk.get("id")) or None
        choices = list_of(chunk.get("choices"))
        if choices and not self._begun:
            self._begun = True
            out.append(Begun(self._id, text_of(chunk.get("model")) or None))
        for choice in choices:
            choice = dict_of(choice)
            if choice.get("index") in (0, None):
                self._read_delta(dict_of(choice.get("delta")))
                self._stop = choice.get("finish_reason") or self._stop
        self._parts.out = []
        return out

    def finish(self) -> list[Event]:
        """Return what the end of the stream means."""
        self._parts.finish()
        events: list[Event] = [] if self._begun else [Begun(self._id, None)]
        events += self._parts.out
        self._parts.out = []
        return [*events, Stopped(stop_of(self._stop, called=self._called > 0))]

    def _read_delta(self, delta: dict[str, Any]) -> None:
        details = list_of(delta.get("reasoning_details"))
        if details:
            self._turn_to(dict_of(details[0]).get("index"))
        plain = thoughts.spoken(delta)
        self._say("thinking", plain)
        for thought in thoughts.detailed(delta) if details else ():
            self._think(thought, aside=bool(plain))
        if text := texts_in(delta.get("content")):
            self._say("text", text)
        if refusal := text_of(delta.get("refusal")):
            self._say("refusal", refusal)
        for call in list_of(delta.get("tool_calls")):
            self._call(dict_of(call))

    def _last(self, kind: str) -> Hashable:
        return (kind, self._runs.get(kind, 0))

    def _key(self, kind: Any) -> Hashable:
        """Return the key of the open part of this kind, of a new one where none is."""
        key = self._last(kind)
        if not self._parts.knows(key):
            self._runs[kind] = self._runs.get(kind, 0) + 1
            key = self._last(kind)
            self._parts.open(key, Opened(kind))
        return key

    def _say(self, kind: str, text: str) -> None:
        if text:
            self._parts.put(self._key(kind), Added(text))

    def _turn_to(self, index: object) -> None:
        """Begin another thought where the details count one further."""
        if self._thought is not None and index is not None and index != self._thought:
            self._parts.close(self._last("thinking"))
        self._thought = index

    def _think(self, thought: Thinking, *, aside: bool) -> None:
        """Take a detail; `aside`, its text was said in plain too."""
        if not aside:
            self._say("thinking", thought.text)
        if thought.seal is not None and thought.origin is not None:
            key = self._key("thinking")
            self._parts.put(key, Sealed(thought.seal, thought.origin))
            self._parts.close(key)  # what follows is another thought

    def _call(self, call: dict[str, Any]) -> None:
        inner = dict_of(call.get("function") or call.get("custom"))
        index, identity, name = call.get("index"), text_of(call.get("id")), text_of(inner.get("name"))
        at = index if type(index) is int else None
        known = self._calls.get(at)
        # Some number all calls 0, or none: a name with an id of its own is another call.
        if known is None or (name and identity and identity != known[1]) or (at is None and name):
            if self._called >= CALLS_MAX:
                return
            known = self._calls[at] = (self._called, identity or minted(self._id, self._called))
            self._called += 1
            self._parts.open(("call", known[0]), Opened("call", known[1], name))
        if arguments := arguments_of(inner.get("arguments")) or text_of(inner.get("input")):
            self._parts.put(("call", known[0]), Added(arguments))


class Writer:
    """Writes the chunks of one stream."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._head = b""
        self._begun = False
        self._open: Opened | None = None
        self._whole: list[str] = []  # input of a free-form tool, which is unpacked when it is whole
        self._calls = -1
        self._thoughts = -1
        self._stopped = False

    def write(self, event: Event) -> bytes:
        """Return the chunks that say what an event means."""
        match event:
            case Begun():
                head = {
                    "id": event.id or "chatcmpl",
                    "object": "chat.completion.chunk",
                    "created": self._asked.at_unix_s,
                    "model": event.model or self._asked.model,
                }
                self._head = b"data: " + msgspec.json.encode(head)[:-1]
                return self._chunk({"role": "assistant", "content": ""})
            case Opened():
                return self._on_opened(event)
            case Added():
                return self._on_added(event.text)
            case Sealed():
                return self._on_sealed(event)
            case Closed():
                return self._on_closed()
            case Stopped():
                return self._chunk({}, FINISH[event.stop])
            case Failed():
                return b""  # the door writes errors

    def end(self, counts: Mapping[str, int]) -> bytes:
        """Return the terminal event, and the usage before it."""
        usage = chat_usage(counts) if self._asked.usage else None
        if usage is None:
            return DONE
        return self._head + b',"choices":[],"usage":' + msgspec.json.encode(usage) + b"}\n\n" + DONE

    def _on_opened(self, event: Opened) -> bytes:
        self._open = event
        if event.kind == "thinking":
            self._thoughts += 1
        if event.kind != "call":
            return b""
        self._calls += 1
        kind, member = (
            ("custom", "input") if event.name in self._asked.freeform else ("function", "arguments")
        )
        call = {
            "index": self._calls,
            "id": event.id,
            "type": kind,
            kind: {"name": event.name, member: ""},
        }
        return self._chunk({"tool_calls": [call]})

    def _on_added(self, text: str) -> bytes:
        opened = self._open
        if opened is None:
            return b""
        match opened.kind:
            case "text":
                return self._chunk({"content": text})
            case "refusal":
                return self._chunk({"refusal": text})
            case "thinking":
                detail = thoughts.detail(Thinking(text=text), self._thoughts)
                return self._chunk({"reasoning_content": text, "reasoning_details": [detail]})
            case "call":
                if opened.name in self._asked.freeform:
                    self._whole.append(text)
                    return b""
                call = {"index": self._calls, "function": {"arguments": text}}
                return self._chunk({"tool_calls": [call]})

    def _on_sealed(self, event: Sealed) -> bytes:
        thought = Thinking(text="", seal=event.seal, origin=event.origin)
        detail = thoughts.detail(thought, self._thoughts)
        return self._chunk({"reasoning_details": [detail]})

    def _on_closed(self) -> bytes:
        opened, self._open = self._open, None
        if opened is None or opened.kind != "call" or opened.name not in self._asked.freeform:
            return b""
        text = input_of("".join(self._whole))
        self._whole = []
        return self._chunk({"tool_calls": [{"index": self._calls, "custom": {"input": text}}]})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        reason = b"null" if finish is None else b'"' + finish.encode() + b'"'
        return b"".join(
            (
                self._head,
                b',"choices":[{"index":0,"delta":',
                msgspec.json.encode(delta),
                b',"finish_reason":',
                reason,
                b"}]}\n\n",
            )
        )
