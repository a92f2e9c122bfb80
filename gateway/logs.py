"""Logs: JSON lines for operators on standard output, one per request; written beside the event loop.

A line never carries a key, a prompt, a reply or a header's value. Lines go through a bounded queue to a
thread, because a pipe that nobody reads would otherwise stop the gateway; the bill is in the journal, so a
log line may be lost (and is then counted), a bill may not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, Protocol

import orjson

from otel.metrics import Reading, counter

LINES_MAX: Final = 50_000
"""Lines waiting for the writer; further ones are counted and dropped."""
FLUSH_S: Final = 0.05
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class Lines(Protocol):
    """Where log lines go."""

    def write(self, line: bytes) -> None:
        """Take one line, a JSON object, without its newline."""
        ...


class DirectLines:
    """Writes each line at once, for a process that may have no thread; drops it where nobody reads."""

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd

    def write(self, line: bytes) -> None:
        """Write one line if that does not block."""
        with contextlib.suppress(OSError):
            if select.select([], [self._fd], [], 0)[1]:
                os.write(self._fd, line + b"\n")


class LineWriter:
    """A bounded queue of lines and the thread that writes them to a file descriptor.

    A write is no larger than what a pipe takes in one piece: several processes may write to one descriptor.

    Args:
        worker: the number or name that each line carries.
    """

    def __init__(self, fd: int = 1, worker: int | str | None = None) -> None:
        self.dropped = 0
        self._worker = b"" if worker is None else b'{"worker":%b,' % orjson.dumps(worker)
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue one line without its newline; never blocks."""
        if len(self._lines) >= LINES_MAX:
            self.dropped += 1
            return
        self._lines.append(self._worker + line[1:] if self._worker else line)

    def close(self) -> None:
        """Write what is queued and stop; waits at most a second for a reader that does not read."""
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        count = len(self._lines)
        if not count:
            return
        try:
            for data in self._pieces(count):
                while data:  # bounded: each write takes at least one byte or raises
                    data = data[os.write(self._fd, data) :]
        except OSError:
            self.dropped += count

    def _pieces(self, count: int) -> Iterator[bytes]:
        """Take `count` lines off the queue, as many in a piece as one write may have."""
        piece: list[bytes] = []
        size = 0
        for _ in range(count):
            line = self._lines.popleft() + b"\n"
            if piece and size + len(line) > select.PIPE_BUF:
                yield b"".join(piece)
                piece, size = [], 0
            piece.append(line)
            size += len(line)
        yield b"".join(piece)


def lines_health(lines: LineWriter) -> Iterable[Reading]:
    """Yield what the metrics say of a process's lines."""
    yield counter("llm_gateway_log_lines_dropped", "Log lines that nobody read in time.", lines.dropped)


class JSONFormatter(logging.Formatter):
    """One record, one JSON object: time, level, logger, message, and the facts given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline."""
        line: dict[str, object] = {
            "time": timestamp(time.time_ns()),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class LineHandler(logging.Handler):
    """Hands formatted records on as lines."""

    def __init__(self, writer: Lines) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(JSONFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        self._writer.write(self.format(record).encode())


def timestamp(unix_ns: int) -> str:
    """Return RFC 3339 in UTC with milliseconds."""
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    return f"{_second(seconds)}.{ns // 1_000_000:03d}Z"


@lru_cache(4)  # nearly every line has the second of the one before it
def _second(unix_s: int) -> str:
    t = time.gmtime(unix_s)
    return f"{t[0]:04d}-{t[1]:02d}-{t[2]:02d}T{t[3]:02d}:{t[4]:02d}:{t[5]:02d}"


def configure(level: str, writer: Lines) -> None:
    """Send all logging of the process through `writer` as JSON lines."""
    root = logging.getLogger()
    root.handlers[:] = [LineHandler(writer)]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
    for name in ("httpx", "alembic"):  # one line a call, and six at every start
        logging.getLogger(name).setLevel(logging.WARNING)
