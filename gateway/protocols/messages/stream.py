"""Streams: content deltas pass unseen; `message_start`, `message_delta`, errors and the end are read."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from gateway.core.exchange import Reply
from gateway.protocols.messages.reply import error_type, said_in
from gateway.protocols.messages.usage import MessagesUsage
from gateway.protocols.reading import decode, text, utf8_bytes
from gateway.protocols.sse import END, PASS, EventMeter, payload_of

# Whoever adds to these: `first_interest` looks for "message_", "error" and "tool_use" before them.
_INTERESTING: Final = (
    b"message_st",
    b"message_delta",
    b"event: error",
    b"event:error",
    b'"type":"error"',
    b'"type": "error"',
    b"tool_use",
)

_EVENT_NAME: Final = re.compile(rb"(?:^|[\r\n])event: ?([a-z_]+)[\r\n]")


class MessagesMeter(EventMeter):
    """See `gateway.protocols.base.StreamMeter`."""

    def __init__(self) -> None:
        super().__init__()
        self._message = MessagesUsage()
        self._stop: str | None = None
        self._usage_at = 0  # pieces of content up to the last usage
        self._error: str | None = None
        self._tool_calls = 0

    def first_interest(self, data: bytes) -> int:
        """Look for the events that are not content."""
        if self._learning:
            return 0
        if not data.count(b"message_") and not data.count(b"error") and not data.count(b"tool_use"):
            return -1  # nearly every read
        found = [data.find(literal) for literal in _INTERESTING]
        return min((at for at in found if at >= 0), default=-1)

    def on_event(self, event: bytes) -> int:
        """Read one event of interest."""
        if self.first_interest(event) < 0:
            return PASS
        value = decode(payload_of(event))
        if not isinstance(value, dict):
            self._note(event, 0)
            return PASS
        kind = value.get("type")
        if kind is None and (named := _EVENT_NAME.search(event)):
            kind = named[1].decode()  # the SDKs go by the event's name
        self._note(event, utf8_bytes(said_in(value.get("delta"))) if kind == "content_block_delta" else 0)
        if kind == "message_stop":
            return END
        if kind == "message_start" and isinstance(value.get("message"), dict):
            self._on_start(value["message"])
        elif kind == "message_delta":
            self._on_delta(value)
        elif kind == "content_block_start":
            block = value.get("content_block")
            if isinstance(block, dict) and block.get("type") == "tool_use":
                self._tool_calls += 1
        elif kind == "error":
            self._error = error_type(value.get("error"))
        return PASS

    def said_in(self, value: dict[str, Any]) -> str:
        """Return the text of one event."""
        return said_in(value.get("delta")) if value.get("type") == "content_block_delta" else ""

    def _on_start(self, message: dict[str, Any]) -> None:
        # A second message in one stream has been recorded; the last one is what its usage is about.
        self.ended = False
        self._message.on_start(message)
        stop = text(message.get("stop_reason"), 64)
        if stop:
            self._stop = stop

    def _on_delta(self, value: dict[str, Any]) -> None:
        delta = value.get("delta")
        if isinstance(delta, dict):
            self._stop = text(delta.get("stop_reason"), 64) or self._stop
        if isinstance(value.get("usage"), dict):
            self._message.on_delta(value["usage"])
            self._usage_at = self.pieces

    def reply(self) -> Reply:
        """Return what the stream amounted to."""
        usage = self._message.usage()
        unfinished = not self.ended and (self._stop is None or self.pieces != self._usage_at)
        if usage is not None and unfinished and self._message.output_reported:
            usage = msgspec.structs.replace(usage, running=True)
        summary = {"events": self.events, "bytes": self.fed}
        if self._tool_calls:
            summary["tool_calls"] = self._tool_calls
        return Reply(
            response_id=self._message.id,
            response_model=self._message.model,
            finish_reasons=(self._stop,) if self._stop else (),
            usage=usage,
            complete=self.ended,
            error_type=self._error,
            output_summary=summary,
            seen=self.seen(),
        )
