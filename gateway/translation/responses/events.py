"""Streams of responses: read into events, and written from them.

    response.created response.in_progress
    (output_item.added (part.added) delta* (done part.done) output_item.done)*
    response.completed | response.incomplete                the terminal event: it repeats the whole output

Each event has a number of its own, from 0 without gaps.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

import msgspec

from gateway.core.errors import UpstreamError
from gateway.translation.answering import Asked
from gateway.translation.freeform import input_of
from gateway.translation.meaning import Answer, Call, Text, Thinking, unsealed
from gateway.translation.responses import answer as whole
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

OUTPUT_CHARS_MAX: Final = 32 * 1024 * 1024
"""What a writer keeps for the terminal event; a longer answer breaks off."""
_TERMINAL: Final = ("response.completed", "response.incomplete", "response.failed")
_THOUGHTS: Final = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")
_ARGUMENTS: Final = ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta")


class Reader:
    """Reads the events of one stream."""

    def __init__(self) -> None:
        self._parts = Sequencer()
        self._begun = False
        self._called = False
        self._refused = False
        self._said: set[Hashable] = set()  # parts of which deltas came
        self._summaries: dict[Hashable, object] = {}
        self._response: dict[str, Any] = {}

    def read(self, value: dict[str, Any]) -> list[Event]:
        """Return what one event means."""
        out = self._parts.out
        kind = text_of(value.get("type"))
        at = number_of(value.get("output_index"))
        delta = text_of(value.get("delta"))
        if kind == "response.created" and not self._begun:
            response = dict_of(value.get("response"))
            self._begun = True
            out.append(Begun(text_of(response.get("id")) or None, text_of(response.get("model")) or None))
        elif kind in ("response.output_text.delta", "response.refusal.delta"):
            refusal = kind == "response.refusal.delta"
            self._refused = self._refused or refusal
            self._say((at, number_of(value.get("content_index"))), "refusal" if refusal else "text", delta)
        elif kind in _THOUGHTS:
            self._think(at, number_of(value.get("summary_index")), delta)
        elif kind in _ARGUMENTS:
            self._say((at, "call"), "call", delta)
        elif kind == "response.output_item.added":
            self._open(at, dict_of(value.get("item")))
        elif kind == "response.output_item.done":
            self._close(at, dict_of(value.get("item")))
        elif kind in ("response.output_text.done", "response.refusal.done"):
            self._parts.close((at, number_of(value.get("content_index"))))
        elif kind in _TERMINAL:
            self._response = dict_of(value.get("response"))
            failure = whole.read_failure(self._response)
            if failure is not None:
                out.append(Failed(failure))
        elif kind == "error" or (not kind and value.get("error")):
            failure = whole.read_failure(value)
            if failure is not None:
                out.append(Failed(failure))
        self._parts.out = []
        return out

    def finish(self) -> list[Event]:
        """Return what the end of the stream means."""
        self._parts.finish()
        events: list[Event] = [] if self._begun else [Begun(None, None)]
        events += self._parts.out
        self._parts.out = []
        refusal: list[Text | Thinking | Call] = [Text(text="", refusal=True)] if self._refused else []
        return [*events, Stopped(whole.stop_of(self._response, called=self._called, parts=refusal))]

    def _say(self, key: Hashable, kind: Any, delta: str) -> None:
        if not delta:
            return
        if not self._parts.knows(key):
            if kind == "call":
                return  # an item that was never told of
            self._parts.open(key, Opened(kind))
        self._said.add(key)
        self._parts.put(key, Added(delta))

    def _think(self, at: Any, summary: object, delta: str) -> None:
        key = (at, "thinking")
        if self._summaries.get(at, summary) != summary:
            delta = "\n\n" + delta  # another paragraph
        self._summaries[at] = summary
        self._say(key, "thinking", delta)

    def _open(self, at: Any, item: dict[str, Any]) -> None:
        if item.get("type") in ("function_call", "custom_tool_call"):
            self._called = True
            identity = text_of(item.get("call_id")) or text_of(item.get("id"))
            self._parts.open((at, "call"), Opened("call", identity, text_of(item.get("name"))))

    def _close(self, at: Any, item: dict[str, Any]) -> None:
        """Take a whole item: of what was told without deltas it is the only word."""
        for number, part in enumerate(whole.parts_of(item)):
            match part:
                case Text():
                    key: Hashable = (at, number)
                    if key not in self._said:
                        self._say(key, "refusal" if part.refusal else "text", part.text)
                        self._refused = self._refused or part.refusal
                case Call():
                    key = (at, "call")
                    if not self._parts.knows(key) and key not in self._said:
                        self._open(at, item)
                    if key not in self._said:
                        self._say(key, "call", part.arguments)
                        self._said.add(key)
                case Thinking():
                    key = (at, "thinking")
                    if key not in self._said:
                        self._say(key, "thinking", part.text)
                    self._seal(key, item)
            self._parts.close(key)

    def _seal(self, key: Hashable, item: dict[str, Any]) -> None:
        seal, origin = unsealed(text_of(item.get("encrypted_content")), "responses")
        if seal is None or origin is None:
            return
        if not self._parts.knows(key):
            self._parts.open(key, Opened("thinking"))
        self._parts.put(key, Sealed(seal, origin))


class Writer:
    """Writes the events of one stream."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._number = 0
        self._id = "resp"
        self._model: str | None = None
        self._parts: list[Text | Thinking | Call] = []
        self._chars = 0
        self._open: Opened | None = None
        self._text: list[str] = []
        self._seal: Sealed | None = None
        self._item: dict[str, Any] = {}
        self._stopped = Stopped("end")

    def write(self, event: Event) -> bytes:
        """Return the events that say what an event means.

        Raises:
            UpstreamError: the answer is longer than its terminal event may be.
        """
        match event:
            case Begun():
                self._id, self._model = event.id or "resp", event.model
                response = whole.shell(self._id, self._model, self._asked)
                created = self._event("response.created", response=response)
                return created + self._event("response.in_progress", response=response)
            case Opened():
                return self._on_opened(event)
            case Added():
                return self._on_added(event.text)
            case Sealed():
                self._seal = event
                return b""
            case Closed():
                return self._on_closed()
            case Stopped():
                self._stopped = event
                return b""
            case Failed():
                return b""  # the door writes errors

    def end(self, counts: Mapping[str, int]) -> bytes:
        """Return the terminal event."""
        told = Answer(id=self._id, model=self._model, parts=tuple(self._parts), stop=self._stopped.stop)
        response = whole.write(told, self._asked, counts)
        return self._event(f"response.{response['status']}", response=response)

    @property
    def _at(self) -> int:
        return len(self._parts)

    def _on_opened(self, event: Opened) -> bytes:
        self._open, self._text, self._seal = event, [], None
        match event.kind:
            case "call":
                freeform = event.name in self._asked.freeform
                self._item = whole.begun_call(event.id, event.name, self._at, self._id, freeform=freeform)
                return self._event("response.output_item.added", output_index=self._at, item=self._item)
            case "thinking":
                self._item = whole.begun_thought(self._at, self._id)
                return b""  # told with its first words: one of nothing is not told
            case _:
                self._item = whole.begun_message(self._at, self._id)
                part = whole.text_part("", refusal=event.kind == "refusal")
                added = self._event("response.output_item.added", output_index=self._at, item=self._item)
                return added + self._in_part("response.content_part.added", part=part)

    def _on_added(self, text: str) -> bytes:
        opened = self._open
        if opened is None:
            return b""
        first = not self._text
        self._text.append(text)
        self._chars += len(text)
        if self._chars > OUTPUT_CHARS_MAX:
            raise UpstreamError(
                "upstream_too_large",
                f"the answer is longer than {OUTPUT_CHARS_MAX} characters: its end would repeat it",
                retryable=False,
                sent=True,
            )
        match opened.kind:
            case "call":
                if opened.name in self._asked.freeform:
                    return b""  # unpacked when it is whole
                return self._in_item("response.function_call_arguments.delta", delta=text)
            case "thinking":
                began = self._begin_thought() if first else b""
                return began + self._in_summary("response.reasoning_summary_text.delta", delta=text)
            case "refusal":
                return self._in_part("response.refusal.delta", delta=text)
            case "text":
                return self._in_part("response.output_text.delta", delta=text, logprobs=[])

    def _on_closed(self) -> bytes:
        opened, text = self._open, "".join(self._text)
        if opened is None:
            return b""
        self._open = None
        match opened.kind:
            case "call":
                part: Text | Thinking | Call = Call(id=opened.id, name=opened.name, arguments=text)
                done = self._done_call(opened, text)
            case "thinking":
                seal, origin = (None, None) if self._seal is None else (self._seal.seal, self._seal.origin)
                if not text and seal is None:
                    return b""
                part = Thinking(text=text, seal=seal, origin=origin)
                done = self._done_thought(text)
            case "refusal":
                part = Text(text=text, refusal=True)
                done = self._in_part("response.refusal.done", refusal=text)
            case "text":
                part = Text(text=text)
                done = self._in_part("response.output_text.done", text=text, logprobs=[])
        if isinstance(part, Text):
            said = whole.text_part(text, refusal=part.refusal)
            done += self._in_part("response.content_part.done", part=said)
        item = whole.item_of(part, self._at, self._id, self._asked)
        done += self._event("response.output_item.done", output_index=self._at, item=item)
        self._parts.append(part)
        return done

    def _begin_thought(self) -> bytes:
        part = {"type": "summary_text", "text": ""}
        added = self._event("response.output_item.added", output_index=self._at, item=self._item)
        return added + self._in_summary("response.reasoning_summary_part.added", part=part)

    def _done_thought(self, text: str) -> bytes:
        if not text:
            return self._event("response.output_item.added", output_index=self._at, item=self._item)
        part = {"type": "summary_text", "text": text}
        done = self._in_summary("response.reasoning_summary_text.done", text=text)
        return done + self._in_summary("response.reasoning_summary_part.done", part=part)

    def _done_call(self, opened: Opened, text: str) -> bytes:
        if opened.name not in self._asked.freeform:
            return self._in_item("response.function_call_arguments.done", name=opened.name, arguments=text)
        given = input_of(text)
        delta = self._in_item("response.custom_tool_call_input.delta", delta=given)
        return delta + self._in_item("response.custom_tool_call_input.done", input=given)

    def _in_item(self, kind: str, **members: object) -> bytes:
        return self._event(kind, item_id=self._item["id"], output_index=self._at, **members)

    def _in_part(self, kind: str, **members: object) -> bytes:
        return self._in_item(kind, content_index=0, **members)

    def _in_summary(self, kind: str, **members: object) -> bytes:
        return self._in_item(kind, summary_index=0, **members)

    def _event(self, kind: str, **members: object) -> bytes:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._number, **members})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
