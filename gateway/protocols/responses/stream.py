"""Streams: deltas come in runs, and a run passes unseen; usage stands in the terminal event alone.

    response.created                        id, model
    response.output_text.delta ...          content: the first of a run is read, the rest is compared
    response.output_text.done               repeats what the deltas said: counted as no content
    response.output_item.done               calls of the provider's tools, for a stream that is cut off
    response.completed | .incomplete | .failed, error          the end, held until the bill is durable

Some providers send `[DONE]` behind it. Alone it ends a stream too, but not one that is complete.
"""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.core.exchange import Reply, Said
from gateway.core.usage import Usage
from gateway.protocols.base import Dialect
from gateway.protocols.reading import text, utf8_bytes
from gateway.protocols.responses.reply import (
    error_type,
    failed,
    finish_reasons,
    is_call,
    tools_in,
)
from gateway.protocols.responses.skim import skim
from gateway.protocols.responses.usage import read_usage, tool_called
from gateway.protocols.sse import END, PASS, SAMPLE_BYTES, EventMeter, payload_of

_TERMINAL: Final = ("response.completed", "response.incomplete", "response.failed")
_KIND: Final = re.compile(rb'(?:event: ?([\w.]+)\n)?data: ?(?:\{"type": ?"([\w.]+)")?')
_READ: Final = frozenset(
    kind.encode() for kind in (*_TERMINAL, "response.created", "response.output_item.done", "error")
)
"""Kinds that are read whole; of the others, deltas are measured and the rest only counted."""
TERMINAL_BYTES_MAX: Final = 32 * 1024 * 1024
"""The terminal event repeats the whole output, with its images in base64."""


class ResponsesMeter(EventMeter):
    """See `gateway.protocols.base.StreamMeter`."""

    event_bytes_max = TERMINAL_BYTES_MAX

    def __init__(self, dialect: Dialect) -> None:
        super().__init__()
        self._dialect = dialect
        self._run: bytes | None = None  # what every event of the current run of deltas begins with
        self._id: str | None = None
        self._model: str | None = None
        self._finish: tuple[str, ...] = ()
        self._usage: Usage | None = None
        self._error: str | None = None
        self._complete = False
        self._tool_calls = 0
        self._tools: dict[str, int] = {}

    def first_interest(self, data: bytes) -> int:
        """Look for the first event that does not belong to the current run of deltas."""
        run = self._run
        if run is None:
            return 0
        if data.startswith(run) and data.count(b"\n\n" + run) + 1 == data.count(b"\n\n"):
            return -1  # nearly every read
        at = 0
        while data.startswith(run, at):  # each turn passes one event
            at = data.find(b"\n\n", at) + 2
            if at < 2:
                return -1
        return at if at < len(data) else -1

    def on_event(self, event: bytes) -> int:
        """Read one event of interest."""
        run = self._run
        if run is not None and event.startswith((run, b"\n" + run)):
            return PASS
        found = _KIND.match(event)
        kind = found[2] if found is not None else None
        if kind is not None and kind not in _READ and not kind.endswith(b".delta"):
            self._note(event, 0)
            return PASS
        payload = payload_of(event)
        value = skim(payload) if payload else None
        if not isinstance(value, dict):
            self._note(event, 0)
            return END if payload.strip() == b"[DONE]" else PASS
        return self._on_value(event, value, None if found is None else found[1])

    def _on_value(self, event: bytes, value: dict[str, Any], named: bytes | None) -> int:
        kind = value.get("type")
        if not isinstance(kind, str):  # some readers go by the event's name
            kind = "" if named is None else named.decode()
        elif not kind.isascii():
            kind = "?"
        said = utf8_bytes(_delta(kind, value))
        if said and self.pieces == 1 and self._sample_bytes > SAMPLE_BYTES // 2:
            self._sample, self._sample_bytes = [], 0  # it holds the request that the first events repeat
        self._note(event, said)
        if said:
            self._run = _run_of(event, kind.encode())
        elif kind in _TERMINAL or kind == "response.created":
            self._on_response(kind, value)
            return END if kind in _TERMINAL else PASS
        elif kind == "error" or (not kind and value.get("error")):
            self._error = error_type(value)
            return END
        elif kind == "response.output_item.done":
            self._on_item(value.get("item"))
        return PASS

    def said(self) -> Said | None:
        """Return the text of the stream's beginning; what repeats it and what has none is left out."""
        said = [(event, self._said_in(event)) for event in self._sampled()]
        text = "".join([words for _, words in said])
        if not text:
            return None
        if self.fed <= self._sample_bytes:
            return Said(text=text, bytes=self.fed, of=self.fed)
        size = sum([len(event) + 2 for event, words in said if words])
        return Said(text=text, bytes=size, of=max(size, self.fed - self._other_bytes))

    def _said_in(self, event: bytes) -> str:
        value = skim(payload_of(event)) if b".delta" in event else None
        kind = value.get("type") if isinstance(value, dict) else None
        return _delta(kind, value) if isinstance(value, dict) and isinstance(kind, str) else ""

    def _on_response(self, kind: str, value: dict[str, Any]) -> None:
        response = value.get("response")
        if not isinstance(response, dict):
            response = {}
        self._id = text(response.get("id")) or self._id
        self._model = text(response.get("model")) or self._model
        if kind not in _TERMINAL:
            return
        self._complete = True
        self._finish = finish_reasons(response)
        if failed(response) or kind == "response.failed":
            self._error = error_type(response)
        output = response.get("output")
        tools = tools_in(output) if isinstance(output, list) and output else self._tools
        self._usage = read_usage(response, tools, self._dialect)

    def _on_item(self, item: object) -> None:
        self._tool_calls += is_call(item)
        tool = tool_called(item)
        if tool is not None:
            self._tools[tool] = self._tools.get(tool, 0) + 1

    def reply(self) -> Reply:
        """Return what the stream amounted to."""
        summary = {"events": self.events, "bytes": self.fed}
        if self._tool_calls:
            summary["tool_calls"] = self._tool_calls
        usage = self._usage
        if usage is None and self._tools:  # what was called costs, however the stream ended
            usage = read_usage({}, self._tools, self._dialect)
        return Reply(
            response_id=self._id,
            response_model=self._model,
            finish_reasons=self._finish,
            usage=usage,
            complete=self._complete,
            error_type=self._error,
            output_summary=summary,
            seen=self.seen(),
        )


def _delta(kind: str, value: dict[str, Any]) -> str:
    """Return what one event adds to the answer."""
    delta = value.get("delta")
    return delta if kind.endswith(".delta") and isinstance(delta, str) else ""


def _run_of(event: bytes, kind: bytes) -> bytes | None:
    """Return what the deltas of this kind begin with, None where their beginning does not tell their kind."""
    named, typed = b"event: " + kind + b"\n", b'data: {"type":"' + kind + b'"'
    for opening in (named + typed, typed, named + b"data: {"):
        if event.startswith(opening):
            return opening
    return None
