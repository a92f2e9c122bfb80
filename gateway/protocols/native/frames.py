r"""Frames: how a native stream is cut into JSON events, whatever pieces the wire delivers.

    text/event-stream                    data: {...}\n\n
    application/x-ndjson, stream+json    {...}\n
    application/json                     [{...},\\n{...}]   or one object
    application/vnd.amazon.eventstream   total u32 | headers u32 | crc u32 | headers | payload | crc u32

Nothing here raises: what cannot be a frame ends the reading and is named in `broken`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from gateway.protocols.base import EVENT_BYTES_MAX

_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?=[\s\S])")
"""A CR that ends what has come so far may yet become CR LF."""
_MARK: Final = re.compile(rb'["\\{}\[\]]')
_PRELUDE: Final = struct.Struct(">III")
_CRC_BYTES: Final = 4


class Frames(Protocol):
    """Cuts one stream; one per stream."""

    broken: str | None
    """An anomaly's word once the stream cannot be read on; what came before stands."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that became whole."""
        ...

    def finish(self) -> list[bytes]:
        """Return what the end of the stream makes whole; call once."""
        ...


class _Buffer:
    """What has come and is not yet a whole event, within EVENT_BYTES_MAX."""

    def __init__(self) -> None:
        self.broken: str | None = None
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that became whole."""
        if self.broken is not None:
            return []
        self._data += data
        events = self._cut()
        if len(self._data) > EVENT_BYTES_MAX:
            self.broken = "event_too_large"
        if self.broken is not None:
            self._data.clear()
        return events

    def finish(self) -> list[bytes]:
        """Return what the end of the stream makes whole."""
        return []

    def _cut(self) -> list[bytes]:
        raise NotImplementedError


class Lines(_Buffer):
    """A JSON value a line."""

    def _cut(self) -> list[bytes]:
        if b"\n" not in self._data:
            return []
        *lines, self._data = self._data.split(b"\n")
        return [bytes(line) for line in lines if line.strip()]

    def finish(self) -> list[bytes]:
        """Return a last line that has no end."""
        return [bytes(self._data)] if self._data.strip() else []


class ServerSentEvents(_Buffer):
    """The joined `data` of each event."""

    def __init__(self) -> None:
        super().__init__()
        self._said: list[bytes] = []
        self._said_bytes = 0
        self._searched = 0
        self._first = True

    def _cut(self) -> list[bytes]:
        events: list[bytes] = []
        at = 0
        for end in _LINE_END.finditer(self._data, self._searched):
            self._line(bytes(self._data[at : end.start()]), events)
            at = end.end()
        del self._data[:at]
        self._searched = max(len(self._data) - 1, 0)  # the last byte may be a CR
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        if self._first:
            line, self._first = line.removeprefix(b"\xef\xbb\xbf"), False
        if line.startswith(b"data:"):
            self._said_bytes += len(line)
            if self._said_bytes > EVENT_BYTES_MAX:
                self.broken, self._said = "event_too_large", []
            else:
                self._said.append(line[5:].removeprefix(b" "))
        elif not line and self._said:
            events.append(b"\n".join(self._said))
            self._said, self._said_bytes = [], 0

    def finish(self) -> list[bytes]:
        """Return a last event that has no blank line."""
        events: list[bytes] = []
        self._line(bytes(self._data.rstrip(b"\r")), events)
        self._line(b"", events)
        return events


class Objects(_Buffer):
    """The objects of a JSON array as they become whole, or one bare object."""

    def __init__(self) -> None:
        super().__init__()
        self._at = 0
        self._start = -1  # of the object that is open
        self._depth = 0
        self._quoted = False

    def _cut(self) -> list[bytes]:
        objects: list[bytes] = []
        while found := _MARK.search(self._data, self._at):  # each turn moves on by a byte at least
            mark, self._at = found[0], found.end()
            if mark == b'"':
                self._quoted = not self._quoted
            elif self._quoted:
                self._at += mark == b"\\"
            elif mark in b"{[":
                if mark == b"{" and not self._depth:
                    self._start = found.start()
                self._depth += bool(self._depth) or mark == b"{"
            elif mark in b"}]" and self._depth:
                self._depth -= 1
                if not self._depth:
                    objects.append(bytes(self._data[self._start : self._at]))
                    self._start = -1
        self._at = max(self._at, len(self._data))
        self._forget()
        return objects

    def _forget(self) -> None:
        passed = len(self._data) if self._start < 0 else self._start
        del self._data[:passed]
        self._at -= passed
        if self._start >= 0:
            self._start = 0


class AwsEvents(_Buffer):
    """The payloads of AWS event-stream messages; both checksums must hold."""

    def __init__(self) -> None:
        super().__init__()
        self._needed = _PRELUDE.size  # bytes without which the next message is not whole

    def _cut(self) -> list[bytes]:
        if len(self._data) < self._needed:
            return []
        payloads: list[bytes] = []
        data, at, self._needed = bytes(self._data), 0, _PRELUDE.size
        while len(data) - at >= _PRELUDE.size:  # each turn takes one message
            total, headers, crc = _PRELUDE.unpack_from(data, at)
            least = _PRELUDE.size + headers + _CRC_BYTES
            if crc != zlib.crc32(data[at : at + 8]) or not least <= total <= EVENT_BYTES_MAX:
                self.broken = "frame_unreadable"
                return payloads
            if len(data) - at < total:
                self._needed = total
                break
            end = at + total - _CRC_BYTES
            if int.from_bytes(data[end : end + _CRC_BYTES], "big") != zlib.crc32(data[at:end]):
                self.broken = "frame_unreadable"
                return payloads
            payloads.append(data[at + _PRELUDE.size + headers : end])
            at += total
        self._data = bytearray(data[at:])
        return payloads


FRAMES: Final[dict[str, Callable[[], Frames]]] = {
    "text/event-stream": ServerSentEvents,
    "application/x-ndjson": Lines,
    "application/x-jsonlines": Lines,
    "application/jsonl": Lines,
    "application/stream+json": Lines,
    "application/json": Objects,
    "application/vnd.amazon.eventstream": AwsEvents,
}
"""How each media type is cut."""


def frames_of(content_type: str | None) -> Frames:
    """Return the cutter of a media type; what is unknown is read as JSON."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return FRAMES.get(kind, Objects)()
