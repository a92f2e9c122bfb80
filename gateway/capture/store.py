"""Store: captures as files, `<folder>/<day>/<record id>.json`, redacted and written beside requests.

Room is set aside when a request begins, so that a bill names a capture only where there is room for it; what
is in memory, of a day, and on the disk is bounded. A file has its name only when it is whole. One that the
disk refuses, or that dies with the process, is missing in spite of its name on the bill.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
import orjson

from gateway.capture.redaction import Header, Redactor, secrets_in, shown_headers
from gateway.daybook.keeping import Found, Policy, plan
from otel.journal.segments import day_of
from otel.journal.turn import Lock

log = logging.getLogger("spanbill.capture")

PENDING_MAX: Final = 64
"""Captures that have begun and are not on the disk; further requests are not captured, which is counted."""
SLACK_BYTES: Final = 8192
"""So much more is noted than is kept, so that a secret at the cut is seen whole."""
HEADS_BYTES: Final = 64 * 1024
"""What a file may take beside bodies."""
HALVINGS_MAX: Final = 12
DAY_NS: Final = 86_400 * 1_000_000_000
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ENDINGS: Final = (".json", ".json.new")


class Body:
    """The beginning of a body, and how long the whole of it is.

    Args:
        bytes_max: how much is kept.
    """

    __slots__ = ("_bytes_max", "_pieces", "_room", "size")

    def __init__(self, bytes_max: int) -> None:
        self.size = 0
        self._bytes_max = bytes_max
        self._room = bytes_max + SLACK_BYTES
        self._pieces: list[bytes] = []

    def take(self, piece: bytes) -> None:
        """Note a piece, as far as there is room."""
        self.size += len(piece)
        if self._room > 0 and piece:
            self._pieces.append(piece[: self._room])
            self._room -= len(piece)

    def shown(self, redactor: Redactor, secrets: Sequence[bytes], halvings: int) -> dict[str, object]:
        """Return it for the file: redacted, then cut."""
        clean = redactor.body(b"".join(self._pieces), secrets)
        kept = clean[: self._bytes_max >> halvings]
        return {
            "bytes": self.size,
            "truncated": len(kept) < len(clean) or self._room < 0,
            "text": kept.decode("utf-8", "replace"),
        }


class Tried:
    """What is noted of one attempt at a provider."""

    __slots__ = ("body_bytes", "error", "headers", "host", "path", "port", "reply_headers", "status")

    def __init__(self, host: str, port: int, path: bytes, headers: Sequence[Header], body_bytes: int) -> None:
        self.host = host
        self.port = port
        self.path = path
        self.headers = headers
        self.body_bytes = body_bytes
        self.status: int | None = None
        self.reply_headers: Sequence[Header] = ()
        self.error: str | None = None


class Noted(Protocol):
    """A capture that has ended, as it is written."""

    name: str
    facts: dict[str, object]
    request_headers: Sequence[Header]
    request: Body
    tried: list[Tried]
    status: int | None
    reply_headers: Sequence[Header]
    reply: Body
    ended: bool


class _Look(msgspec.Struct, frozen=True):
    """What the folder held when it was last looked at, and what had been written until then."""

    day: str
    captures: int
    bytes: int
    finished: int
    written_bytes: int


class CaptureStore:
    """The folder of captures; one thread begins and adds, one writes, one tends.

    Args:
        days: captures of so many days besides today's are kept.
        per_day: captures of one day.
        bytes_max: what all of them may take.
        body_bytes_max: what is kept of one body.
        now_ns: wall clock in Unix nanoseconds.

    Raises:
        OSError: the folder is there and cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        redactor: Redactor,
        *,
        days: int,
        per_day: int,
        bytes_max: int,
        body_bytes_max: int,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.refused = self.failed = self.written = 0
        self._folder = folder
        self._redactor = redactor
        self._days = days
        self._per_day = per_day
        self._bytes_max = bytes_max
        self._file_bytes_max = 4 * body_bytes_max + HEADS_BYTES
        self._now_ns = now_ns
        self._begun = 0
        self._written_bytes = 0
        self._queue: deque[Noted] = deque()
        self._lead = Lock(folder / ".lock")
        self._fault: str | None = None
        self._look = self._looked(0, 0, self._found())

    @property
    def dropped(self) -> int:
        """Captures that were asked for and do not exist."""
        return self.refused + self.failed

    # beside requests: nothing here touches the disk

    def reserve(self, unix_ns: int, record_id: str) -> str | None:
        """Set room aside for a capture; return its name below the folder, None where there is no room."""
        day = day_of(unix_ns)
        look = self._look
        pending = self._begun - self._finished
        today = self._begun - look.finished + (look.captures if day == look.day else 0)
        size = look.bytes + self._written_bytes - look.written_bytes + (pending + 1) * self._file_bytes_max
        if pending >= PENDING_MAX or today >= self._per_day or size > self._bytes_max:
            self.refused += 1
            return None
        self._begun += 1
        return f"{day}/{record_id}.json"

    def add(self, noted: Noted) -> None:
        """Take a capture for which there is room, to be written soon; never blocks."""
        self._queue.append(noted)

    # in threads

    def flush(self) -> None:
        """Write what was added."""
        for _ in range(len(self._queue)):
            noted = self._queue.popleft()
            try:
                self._write(noted)
                self._fault = None
            except OSError as fault:
                self.failed += 1
                self._tell(fault)

    def tend(self) -> None:
        """Remove what is due, if no other process does; look how much there is."""
        finished, written_bytes = (
            self._finished,
            self._written_bytes,
        )  # before the look: rather twice than not
        try:
            found = self._found()
            due = self._due(found)
            if due and self._lead.take():
                for day in due:
                    _remove(self._folder / day.name)
                found = self._found()
            self._look = self._looked(finished, written_bytes, found)
        except OSError as fault:
            self._tell(fault)

    def close(self) -> None:
        """Give up the lock, after the last flush."""
        self._lead.release()

    @property
    def _finished(self) -> int:
        return self.written + self.failed

    def _write(self, noted: Noted) -> None:
        path = self._folder / noted.name
        data = self._encoded(noted)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        new = path.with_name(path.name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            left = data
            while left:  # each write takes at least one byte or raises
                left = left[os.write(fd, left) :]
            os.replace(new, path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
        finally:
            os.close(fd)
        self._written_bytes += len(data)
        self.written += 1

    def _encoded(self, noted: Noted) -> bytes:
        secrets = secrets_in(
            [*noted.request_headers, *(header for tried in noted.tried for header in tried.headers)]
        )
        data = b""
        for halvings in range(HALVINGS_MAX):
            data = orjson.dumps(
                {
                    **noted.facts,
                    "request": {
                        **_headers(noted.request_headers),
                        "body": noted.request.shown(self._redactor, secrets, halvings),
                    },
                    "attempts": [_attempt(tried) for tried in noted.tried],
                    "reply": {
                        "status": noted.status,
                        "ended": noted.ended,
                        **_headers(noted.reply_headers),
                        "body": noted.reply.shown(self._redactor, secrets, halvings),
                    },
                },
                option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
            )
            if len(data) <= self._file_bytes_max:
                break
        return data

    def _found(self) -> list[tuple[Found, int]]:
        """Return each day that is here, with what it holds, and how many captures that is."""
        found: list[tuple[Found, int]] = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as days:
            for day in days:
                if _DAY.fullmatch(day.name) and day.is_dir(follow_symlinks=False):
                    sizes = _sizes(self._folder / day.name)
                    found.append((Found(day.name, day.name, sum(sizes)), len(sizes)))
        return found

    def _due(self, found: list[tuple[Found, int]]) -> tuple[Found, ...]:
        now_ns = self._now_ns()
        policy = Policy(
            today=day_of(now_ns),
            keep_from=day_of(now_ns - self._days * DAY_NS),
            pack_before="",
            bytes_max=max(0, self._bytes_max - max(self._bytes_max // 10, self._file_bytes_max)),
        )
        return plan([day for day, _ in found], policy).remove

    def _looked(self, finished: int, written_bytes: int, found: list[tuple[Found, int]]) -> _Look:
        today = day_of(self._now_ns())
        return _Look(
            today,
            sum(count for day, count in found if day.day == today),
            sum(day.bytes for day, _ in found),
            finished,
            written_bytes,
        )

    def _tell(self, fault: OSError) -> None:
        """Log a fault when it begins; it may go on for long."""
        reason = fault.strerror or type(fault).__name__
        if reason != self._fault:
            log.error("captures cannot be kept", extra={"path": str(self._folder), "why": reason})
        self._fault = reason


def _headers(headers: Sequence[Header]) -> dict[str, object]:
    shown, others = shown_headers(headers)
    return {"headers": shown, "other_headers": others}


def _attempt(tried: Tried) -> dict[str, object]:
    return {
        "host": tried.host,
        "port": tried.port,
        "path": tried.path.decode("latin-1"),
        "request": {**_headers(tried.headers), "body_bytes": tried.body_bytes},
        "status": tried.status,
        "error": tried.error,
        "reply": _headers(tried.reply_headers),
    }


def _sizes(folder: Path) -> list[int]:
    sizes = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as files:
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(file.stat(follow_symlinks=False).st_size)
    return sizes


def _remove(folder: Path) -> None:
    """Remove a day's captures, and its folder if nothing else is in it."""
    with os.scandir(folder) as files:
        names = [file.name for file in files if file.name.endswith(_ENDINGS)]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else stands in it
        folder.rmdir()
