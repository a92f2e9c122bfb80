"""Server-sent events as bytes: split where the wire may be cut anywhere, and never rewritten.

A meter reads a stream through `EventMeter`. A read that ends on an event's boundary and holds nothing of
interest passes as the very same object; otherwise its events are looked at one by one. What is not yet a
whole event waits, within `event_bytes_max`; from the terminal event on everything is held until `finish`.
"""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.core.errors import UpstreamError
from gateway.core.exchange import Reply, Said, Seen
from gateway.protocols.base import EVENT_BYTES_MAX, Tail
from gateway.protocols.reading import decode

# Atomic groups, so that CR LF is one end of line and never two.
_BLANK_LINE: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_END_OF_LINE: Final = re.compile(rb"\r\n|\n|\r")

_SEAM_BYTES: Final = 3
"""A blank line is at most four bytes, so that at most three of them are in what is carried."""

SKIMS_MAX: Final = 8
"""Searches for the next event of interest in one read; where there are more, each event is looked at."""

LOOKS_MAX: Final = 8
"""Events that are read at the start of a stream to learn how many bytes one has beside its text."""
LEARNED_FROM: Final = 3
"""Events with text that teach it: the first one is often longer than the others, by a role or a name."""

SAMPLE_BYTES: Final = 16 * 1024
"""How much of a stream's beginning is kept, with the read that passes it, for a tokenizer to learn from."""

PASS: Final = 0
DROP: Final = 1
END: Final = 2
"""What becomes of an event: released, removed, or held as the terminal one."""


def payload_of(event: bytes) -> bytes:
    """Return the joined `data` lines of one event; b"" if it has none (comments, other fields)."""
    if event.endswith(b"\n\n") and not event.count(b"\r"):  # nearly every event
        start = event.find(b"\n") + 1 if event.startswith(b"event: ") else 0
        if event.startswith(b"data: ", start) and event.count(b"\n", start) == 2:
            return event[start + 6 : -2]
    lines = []
    for line in _END_OF_LINE.split(event.removeprefix(b"\xef\xbb\xbf")):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)


def events_in(data: bytes) -> list[bytes]:
    """Return the whole events in `data`, without the blank lines that end them."""
    pieces = _BLANK_LINE.split(data) if data.count(b"\r") else data.split(b"\n\n")
    return [piece for piece in pieces if piece]


class EventMeter:
    """The part of a stream meter that all protocols share.

    A subclass says with `first_interest` where in a read the first event of interest may begin, and with
    `on_event` what becomes of it.
    """

    event_bytes_max = EVENT_BYTES_MAX
    """What may wait for the end of an event, and what may be held from the terminal event on."""

    def __init__(self) -> None:
        self.ended = False
        self.events = 0
        self.fed = 0
        self._carry: list[bytes] = []
        self._carry_bytes = 0
        self._seam = b""  # the last bytes of what is carried: a blank line may be cut in two
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._looks = LOOKS_MAX
        self._lessons = LEARNED_FROM
        self._wrapping: int | None = None  # fewest bytes that an event with text has beside its text
        self._other_events = 0  # events without content
        self._other_bytes = 0
        self._sample: list[bytes] = []
        self._sample_bytes = 0

    def first_interest(self, data: bytes) -> int:
        """Return an index at or before the first thing of interest in `data`, or -1 if there is none."""
        raise NotImplementedError

    def on_event(self, event: bytes) -> int:
        """Look at one whole event; return PASS, DROP or END."""
        raise NotImplementedError

    def reply(self) -> Reply:
        """Return what the stream has amounted to so far."""
        raise NotImplementedError

    def said_in(self, value: dict[str, Any]) -> str:
        """Return the text, reasoning and tool arguments of one event's JSON object."""
        raise NotImplementedError

    def said(self) -> Said | None:
        """Return the text of the stream's beginning."""
        events = [decode(payload_of(event)) for event in self._sampled()]
        text = "".join([self.said_in(value) for value in events if isinstance(value, dict)])
        return Said(text=text, bytes=self._sample_bytes, of=self.fed) if text else None

    def _sampled(self) -> list[bytes]:
        """Return the events of the stream's beginning; the last one may be cut."""
        return _BLANK_LINE.split(b"".join(self._sample))

    @property
    def pieces(self) -> int:
        """How many events came that are not known to be without content."""
        return self.events - self._other_events

    def seen(self) -> Seen | None:
        """Return how much content came, without having looked at each event: a close upper figure."""
        events = self.pieces
        if events <= 0:
            return None
        text = self.fed - self._other_bytes - events * (self._wrapping or 0)
        return Seen(events=events, text_bytes=max(text, 0))

    def _note(self, event: bytes, text_bytes: int) -> None:
        """Note an event that was read: how much text it holds, 0 for none."""
        self._looks -= 1
        if text_bytes <= 0:
            self._other_events += 1
            self._other_bytes += len(event)
            return
        self._lessons -= 1
        wrapping = max(len(event) - text_bytes, 0)
        self._wrapping = wrapping if self._wrapping is None else min(self._wrapping, wrapping)

    @property
    def _learning(self) -> bool:
        return self._lessons > 0 and self._looks > 0

    def feed(self, data: bytes) -> bytes:
        """Return what may be released now.

        Raises:
            UpstreamError: an event grew past EVENT_BYTES_MAX.
        """
        self.fed += len(data)
        if self._sample_bytes < SAMPLE_BYTES:
            self._sample.append(data)
            self._sample_bytes += len(data)
        if self.ended:
            self._hold(data)
            return b""
        if self._carry:
            return self._feed_carried(data)
        # Counting is the cheapest search of bytes in CPython.
        if data.endswith(b"\n\n") and not data.count(b"\r") and not data.endswith(b"\n\n\n"):
            at = self.first_interest(data)
            if at < 0:
                self.events += data.count(b"\n\n")
                return data
            if not data.count(b"\n\n\n"):
                return self._skim(data)
        return self._each_event(data)

    def _skim(self, data: bytes) -> bytes:
        """Pass a read of whole events; only those of interest are cut out and looked at."""
        released: list[bytes] = []
        for _ in range(SKIMS_MAX):
            at = self.first_interest(data)
            if at < 0:
                self.events += data.count(b"\n\n")
                released.append(data)
                break
            cut = data.rfind(b"\n\n", 0, at) + 2 if at else 0
            if cut >= 2:
                self.events += data.count(b"\n\n", 0, cut)
                released.append(data[:cut])
            else:
                cut = 0
            end = data.index(b"\n\n", cut) + 2
            event, data = data[cut:end], data[end:]
            self.events += 1
            fate = self.on_event(event)
            if fate == PASS:
                released.append(event)
            elif fate == END:
                self.ended = True
                self._hold(event)
            if self.ended and data:
                self._hold(data)
            if self.ended or not data:
                break
        else:
            released.append(self._each_event(data))
        return released[0] if len(released) == 1 else b"".join(released)

    def _feed_carried(self, data: bytes) -> bytes:
        # Only the new bytes are searched: a large event in small reads must not cost its square.
        if _BLANK_LINE.search(self._seam + data) is None:
            self._wait(data)
            return b""
        whole = b"".join((*self._carry, data))
        self._carry, self._carry_bytes = [], 0
        return self._each_event(whole)

    def _each_event(self, data: bytes) -> bytes:
        released: list[bytes] = []
        start = 0
        while True:  # each turn takes one event
            found = _BLANK_LINE.search(data, start)
            if found is None or (found.end() == len(data) and data.endswith(b"\r")):
                break  # a lone CR may yet become CR LF
            event = data[start : found.end()]
            start = found.end()
            self.events += 1
            fate = self.on_event(event)
            if fate == PASS:
                released.append(event)
            elif fate == END:
                self.ended = True
                self._hold(data[start - len(event) :])
                return b"".join(released)
        if start < len(data):
            self._wait(data[start:])
        return b"".join(released)

    def _wait(self, data: bytes) -> None:
        self._carry.append(data)
        self._carry_bytes += len(data)
        self._seam = (self._seam + data)[-_SEAM_BYTES:] if len(self._carry) > 1 else data[-_SEAM_BYTES:]
        if self._carry_bytes > self.event_bytes_max:
            raise UpstreamError(
                "upstream_protocol",
                f"the provider sent an event of more than {self.event_bytes_max} bytes",
                retryable=False,
                sent=True,
            )

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > self.event_bytes_max:
            raise UpstreamError(
                "upstream_protocol",
                f"the provider sent more than {self.event_bytes_max} bytes after its end event",
                retryable=False,
                sent=True,
            )

    def finish(self) -> Tail:
        """Return the held bytes and the reply; an event that never became whole is among the held bytes."""
        carry = b"".join(self._carry)
        self._carry, self._carry_bytes = [], 0
        if carry and not self.ended:
            # The last event may lack its blank line: the end of the stream ends it too.
            self.events += 1
            fate = self.on_event(carry)
            self.ended = fate == END
            if fate != DROP:
                self._held.append(carry)
        held = b"".join(self._held)
        if self.ended:
            held = self._after_the_end(held)
        return Tail(held=held, reply=self.reply())

    def _after_the_end(self, held: bytes) -> bytes:
        """Read on behind the terminal event: recorded streams hold a second message there."""
        first = _BLANK_LINE.search(held)
        start = len(held) if first is None else first.end()
        kept = [held[:start]]
        while start < len(held):  # each turn takes one event
            found = _BLANK_LINE.search(held, start)
            end = len(held) if found is None else found.end()
            self.events += 1
            fate = self.on_event(held[start:end])
            self.ended = self.ended or fate == END
            if fate != DROP:
                kept.append(held[start:end])
            start = end
        return b"".join(kept)


def interest(data: bytes, key: bytes) -> int:
    """Return where `key` (with its quotes) first has a value other than null; -1 if nowhere.

    Counting first keeps the common read, where every chunk says null, at the cost of three byte searches.
    A spelling that is not recognised returns 0: look at everything.
    """
    others = data.count(key)
    if others:
        others -= data.count(key + b":null")
    return first_value(data, key, others) if others else -1


def first_value(data: bytes, key: bytes, count: int) -> int:
    """As `interest`, where it is known that `key` stands there `count` times other than as `key:null`."""
    at = len(data)
    for opening in (b":{", b": null", b':"', b": {", b': "'):  # the likely ones first: each is a search
        literal = key + opening
        found = data.find(literal)
        if found >= 0:
            count -= data.count(literal, found)
            if opening != b": null":
                at = min(at, found)
            if not count:
                return at if at < len(data) else -1
    return 0
