"""Streaming: what the events of a stream mean, one part of the answer after another.

    Begun (Opened Added* Sealed? Closed)* Stopped?          or Failed, after which nothing counts

Providers may tell two calls of tools at once, delta by delta. Most readers of events expect one part after
another, so what comes between waits until the part before it is whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Final, Literal

import msgspec

from gateway.core.errors import UpstreamError
from gateway.protocols.base import EVENT_BYTES_MAX
from gateway.translation.meaning import Answer, Call, Failure, Origin, Stop, Text, Thinking

WAITING_CHARS_MAX: Final = EVENT_BYTES_MAX
"""What may wait for a part before it to be whole."""


class Begun(msgspec.Struct, frozen=True):
    """The reply begins."""

    id: str | None
    model: str | None


class Opened(msgspec.Struct, frozen=True):
    """A part begins; `id` and `name` are a call's."""

    kind: Literal["text", "refusal", "thinking", "call"]
    id: str = ""
    name: str = ""


class Added(msgspec.Struct, frozen=True):
    """More of the part's text, or of a call's arguments."""

    text: str


class Sealed(msgspec.Struct, frozen=True):
    """The seal of a thought."""

    seal: str
    origin: Origin


class Closed(msgspec.Struct, frozen=True):
    """The part is whole."""


class Stopped(msgspec.Struct, frozen=True):
    """Why the model stopped."""

    stop: Stop
    sequence: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """The provider's error."""

    failure: Failure


Event = Begun | Opened | Added | Sealed | Closed | Stopped | Failed


class Sequencer:
    """Puts parts one after another; what it has put in order is in `out`."""

    def __init__(self) -> None:
        self.out: list[Event] = []
        self._open: Hashable | None = None
        self._arguments: list[str] | None = None  # of the open part, if it is a call
        self._waiting: dict[Hashable, list[Event]] = {}
        self._waiting_chars = 0

    def knows(self, key: Hashable) -> bool:
        """Say whether a part is open, or waits to be."""
        return key == self._open or key in self._waiting

    def open(self, key: Hashable, opened: Opened) -> None:
        """Begin a part; the one before it is whole, unless it is a call whose arguments are not."""
        while self._open is not None and (self._arguments is None or _whole(self._arguments)):
            self._close_open()  # each turn closes one, and lets out the next of those that wait
        if self._open is not None:
            self._waiting[key] = [opened]
        else:
            self._start(key, [opened])

    def put(self, key: Hashable, event: Added | Sealed) -> None:
        """Take more of a part that `open` was told of.

        Raises:
            UpstreamError: more waits than may.
        """
        if key == self._open:
            self._emit(event)
            return
        waiting = self._waiting.get(key)
        if waiting is None:
            return
        waiting.append(event)
        self._waiting_chars += len(event.text if isinstance(event, Added) else event.seal)
        if self._waiting_chars > WAITING_CHARS_MAX:
            raise UpstreamError(
                "upstream_protocol",
                f"the provider told of several calls at once, of more than {WAITING_CHARS_MAX} characters",
                retryable=False,
                sent=True,
            )

    def close(self, key: Hashable) -> None:
        """Take the end of a part."""
        if key == self._open:
            self._close_open()
        elif key in self._waiting:
            self._waiting[key].append(Closed())

    def finish(self) -> None:
        """Close what is open, and let out what waits."""
        while self._open is not None:  # each turn closes one
            self._close_open()

    def _close_open(self) -> None:
        if self._open is None:
            return
        self._open, self._arguments = None, None
        self.out.append(Closed())
        while self._waiting and self._open is None:  # each turn lets one out
            key = next(iter(self._waiting))
            self._start(key, self._waiting.pop(key))
        if not self._waiting:
            self._waiting_chars = 0

    def _start(self, key: Hashable, events: list[Event]) -> None:
        opened = events[0]
        self._open = key
        self._arguments = [] if isinstance(opened, Opened) and opened.kind == "call" else None
        for event in events:
            if isinstance(event, Closed):
                self._open, self._arguments = None, None
                self.out.append(event)
            else:
                self._emit(event)

    def _emit(self, event: Event) -> None:
        self.out.append(event)
        if self._arguments is not None and isinstance(event, Added):
            self._arguments.append(event.text)


def _whole(arguments: list[str]) -> bool:
    try:
        msgspec.json.decode("".join(arguments))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def text_of(value: object) -> str:
    """Return the text, "" where there is none."""
    return value if isinstance(value, str) else ""


def arguments_of(value: object) -> str:
    """Return the arguments of a call; some providers send the object instead of its text."""
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else text_of(value)


def number_of(value: object) -> int:
    """Return the number of a part, -1 where there is none."""
    return value if type(value) is int else -1


def dict_of(value: object) -> dict[str, Any]:
    """Return the object, an empty one where there is none."""
    return value if isinstance(value, dict) else {}


def list_of(value: object) -> list[Any]:
    """Return the list, an empty one where there is none."""
    return value if isinstance(value, list) else []


def collected(events: Iterable[Event]) -> Answer:
    """Return the whole answer that a stream's events amount to."""
    begun, stopped = Begun(None, None), Stopped("end")
    parts: list[Text | Thinking | Call] = []
    opened: Opened | None = None
    texts: list[str] = []
    sealed: Sealed | None = None
    for event in events:
        match event:
            case Begun():
                begun = event
            case Opened():
                opened, texts, sealed = event, [], None
            case Added():
                texts.append(event.text)
            case Sealed():
                sealed = event
            case Closed() if opened is not None:
                part = _part(opened, "".join(texts), sealed)
                parts += [] if part is None else [part]
            case Stopped():
                stopped = event
            case _:
                pass
    return Answer(
        id=begun.id, model=begun.model, parts=tuple(parts), stop=stopped.stop, stop_sequence=stopped.sequence
    )


def _part(opened: Opened, text: str, sealed: Sealed | None) -> Text | Thinking | Call | None:
    if opened.kind == "call":
        return Call(id=opened.id, name=opened.name, arguments=text)
    if opened.kind == "thinking":
        if sealed is None:
            return Thinking(text=text) if text else None
        return Thinking(text=text, seal=sealed.seal, origin=sealed.origin)
    return Text(text=text, refusal=opened.kind == "refusal") if text else None
