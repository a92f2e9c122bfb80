"""Translated: a door's protocol in front of a provider that speaks another one.

    caller's request ──read──▶ meaning ──write──▶ provider's request
    caller's reply  ◀──write── meaning ◀──read─── provider's reply

The provider's own meter reads the provider's own bytes, so that the bill is what it would be natively; what
it releases is translated, and what it holds becomes the terminal events, with the counts of the bill.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec

from gateway.core.errors import SpanbillError, UpstreamError
from gateway.core.exchange import Reply, Said
from gateway.protocols.base import Dialect, Protocol, Request, StreamMeter, Tail
from gateway.protocols.reading import not_json
from gateway.protocols.sse import events_in, payload_of
from gateway.translation.answering import Asked
from gateway.translation.freeform import as_functions, names_of
from gateway.translation.languages import GRAMMARS, Reader, Writer
from gateway.translation.meaning import Failure, Language
from gateway.translation.responses.answer import ECHOED
from gateway.translation.streaming import Event, Failed, collected

_STATUS_OF: Final = (
    ("rate_limit", 429),
    ("overloaded", 503),
    ("invalid", 400),
    ("authentication", 401),
    ("permission", 403),
    ("not_found", 404),
    ("timeout", 504),
)
"""What a word in an error's code means as a status, where an error came without one: inside a stream."""


class Translator:
    """One door in front of one protocol; stateless and shared."""

    def __init__(self, door: Protocol, spoken: Protocol) -> None:
        self._door = door
        self._spoken = spoken

    def begin(
        self, body: bytes, request: Request, *, model: str, dialect: Dialect, at_unix_s: int
    ) -> Translated:
        """Translate one request.

        Raises:
            CallerError: 400: it says something that the provider's protocol cannot, naming the member.
        """
        door, spoken = cast("Language", self._door.name), cast("Language", self._spoken.name)
        try:
            said = msgspec.json.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as fault:
            raise not_json() from fault
        meant = GRAMMARS[door].read_request(said, spoken)
        written = GRAMMARS[spoken].write_request(as_functions(meant), model, dialect)
        try:
            told = msgspec.json.encode(written)
        except RecursionError as fault:  # what could just be read is one level too deep to be written
            raise not_json() from fault
        asked = Asked(
            model=model,
            at_unix_s=at_unix_s,
            usage=request.usage_requested,
            freeform=names_of(meant),
            echo={name: said.get(name) for name in ECHOED} if door == "responses" else {},
        )
        return Translated(self._door, self._spoken, told, asked)


class Translated:
    """One exchange; see `gateway.protocols.base.Protocol`. Towards the caller it is the door."""

    def __init__(self, door: Protocol, spoken: Protocol, body: bytes, asked: Asked) -> None:
        self._door = door
        self._spoken = spoken
        self._body = body
        self._asked = asked
        self._from = GRAMMARS[cast("Language", spoken.name)]
        self._to = GRAMMARS[cast("Language", door.name)]
        self.name = door.name
        self.path = spoken.path
        self.operation = spoken.operation
        self.sides = spoken.sides
        self.billable = spoken.billable

    def read_request(self, body: bytes) -> Request:
        """Return the facts of a request, which is in the door's words."""
        return self._door.read_request(body)

    def upstream_body(self, body: bytes, request: Request, *, model: str, dialect: Dialect) -> bytes:
        """Return the request in the provider's words, as it was translated at admission."""
        return self._body

    def read_reply(self, status: int, body: bytes, dialect: Dialect) -> Reply:
        """Return the facts of the provider's reply."""
        return self._spoken.read_reply(status, body, dialect)

    def said(self, body: bytes) -> Said | None:
        """Return the text of the provider's reply."""
        return self._spoken.said(body)

    def stream_meter(self, request: Request, dialect: Dialect) -> TranslatedMeter:
        """Return a meter that reads the provider's bytes and releases the door's."""
        asked = msgspec.structs.replace(request, usage_requested=True)  # the translation needs it
        meter = self._spoken.stream_meter(asked, dialect)
        return TranslatedMeter(meter, self._from.reader(), self._to.writer(self._asked), self._door)

    def error_body(self, error: SpanbillError) -> bytes:
        """Return an error in the door's envelope."""
        return self._door.error_body(error)

    def error_event(self, error: SpanbillError) -> bytes:
        """Return an error as an event of the door."""
        return self._door.error_event(error)

    def relayed(self, status: int, body: bytes, reply: Reply, *, streamed: bool) -> tuple[int, bytes]:
        """Return a whole reply in the door's words: its status and its body.

        An error keeps its status; what should be an answer and is none is a 502.

        Args:
            reply: what the provider's meter made of it.
            streamed: the body is a stream that nobody asked for; it is answered as a whole.
        """
        if streamed:
            reader = self._from.reader()
            events = list(_meant(body, reader))
            failure = next((event.failure for event in events if isinstance(event, Failed)), None)
            answer = None if failure is not None else collected([*events, *reader.finish()])
        else:
            value = decoded(body)
            failure = self._from.read_failure(value) or (plain_failure(body) if status >= 400 else None)
            answer = None if status >= 400 or failure is not None else self._from.read_answer(value)
            if (not value and failure is None) or (answer is not None and reply.error_type is not None):
                failure, answer = Failure(message=_untold(status), code="upstream_protocol"), None
        if answer is not None:
            counts = {} if reply.usage is None else reply.usage.counts
            with contextlib.suppress(RecursionError):  # as below: too deep to be written
                return status, msgspec.json.encode(self._to.write_answer(answer, self._asked, counts))
        told = failure or Failure(message=_untold(status), code="upstream_error")
        error = error_of(told, status if status >= 400 else 502)
        return error.status, self._door.error_body(error)


class TranslatedMeter:
    """See `gateway.protocols.base.StreamMeter`: it meters the provider's bytes and releases the caller's."""

    def __init__(self, meter: StreamMeter, reader: Reader, writer: Writer, door: Protocol) -> None:
        self._meter = meter
        self._reader = reader
        self._writer = writer
        self._door = door
        self._failed = False
        self.ended = False
        self.fed = 0

    def feed(self, data: bytes) -> bytes:
        """Return what may be released now, in the caller's words.

        Raises:
            UpstreamError: an event grew past its bound, or the answer past what its end can repeat.
        """
        released = self._meter.feed(data)
        self.ended, self.fed = self._meter.ended, self._meter.fed
        try:
            return self._told(released) if released else b""
        except RecursionError as fault:  # what could just be read is a level too deep to be written
            raise UpstreamError(
                "upstream_protocol",
                "the provider sent an event that is nested too deeply",
                retryable=False,
                sent=True,
            ) from fault

    def reply(self) -> Reply:
        """Return what the provider's stream has amounted to so far."""
        return self._meter.reply()

    def said(self) -> Said | None:
        """Return the text of the provider's stream."""
        return self._meter.said()

    def finish(self) -> Tail:
        """Return the terminal events in the caller's words; of a broken stream there are none."""
        tail = self._meter.finish()
        try:
            held = self._told(tail.held)
            if tail.reply.complete and not self._failed:
                held += b"".join([self._writer.write(event) for event in self._reader.finish()])
                held += self._writer.end({} if tail.reply.usage is None else tail.reply.usage.counts)
        except (UpstreamError, RecursionError):
            broken = Failure(message=_untold(200), code="upstream_protocol")
            held = self._door.error_event(error_of(broken, 502))
        return Tail(held=held, reply=tail.reply)

    def _told(self, events: bytes) -> bytes:
        told: list[bytes] = []
        for event in _meant(events, self._reader):
            if self._failed:
                break
            if isinstance(event, Failed):
                self._failed = True
                told.append(self._door.error_event(error_of(event.failure, _status_of(event.failure))))
            else:
                told.append(self._writer.write(event))
        return b"".join(told)


def _meant(data: bytes, reader: Reader) -> Iterator[Event]:
    for event in events_in(data):
        payload = payload_of(event)
        if payload and payload != b"[DONE]":
            yield from reader.read(decoded(payload))


def decoded(data: bytes) -> dict[str, Any]:
    """Return the object, an empty one where there is none; broken letters become question marks."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = _mended(data)
    return value if isinstance(value, dict) else {}


def plain_failure(body: bytes) -> Failure | None:
    """Return the error of a body that has it in no envelope of its protocol; None where it says nothing.

    Mistral says `detail`, or `message`; xAI has its words right under `error`; Google puts all into a list.
    """
    listed = body.strip()
    value = decoded(listed[1:-1] if listed[:1] == b"[" else listed)
    error = value.get("error")
    words = [
        error.get("message") if isinstance(error, dict) else error,
        value.get("message"),
        value.get("detail"),
    ]
    message = next((word for word in words if isinstance(word, str) and word), None)
    return None if message is None else Failure(message=message, code="upstream_error")


def _mended(data: bytes) -> Any:
    try:
        value = json.loads(data.decode("utf-8", "replace"), parse_constant=lambda _: None)
        return msgspec.json.decode(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def error_of(failure: Failure, status: int) -> SpanbillError:
    """Return a provider's error as one that a door can put into its envelope."""
    return SpanbillError(failure.code, failure.message, status=status, param=failure.param)


def _status_of(failure: Failure) -> int:
    return next((status for word, status in _STATUS_OF if word in failure.code), 500)


def _untold(status: int) -> str:
    if status >= 400:
        return f"the provider answered {status} and told no reason"
    return "the provider's answer cannot be read; send the request again"
