"""Logs: JSON lines for operators on standard output, one per request; written beside the event loop.

A line never carries a key, a prompt, a reply or a header's value. Lines go through a bounded queue to a
thread, because a pipe that nobody reads would otherwise stop the gateway; the bill is in the journal, so a
log line may be lost (and is then counted), a bill may not.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import Final

import orjson

LINES_MAX: Final = 50_000
"""Lines waiting for the writer; further ones are counted and dropped."""
FLUSH_S: Final = 0.05
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class LineWriter:
    """A bounded queue of lines and the thread that writes them to a file descriptor."""

    def __init__(self, fd: int = 1) -> None:
        self.dropped = 0
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
        self._lines.append(line)

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
        data = b"\n".join([self._lines.popleft() for _ in range(count)]) + b"\n"
        try:
            while data:  # bounded: each write takes at least one byte or raises
                data = data[os.write(self._fd, data) :]
        except OSError:
            self.dropped += count


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
    """Hands formatted records to a LineWriter."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(JSONFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        self._writer.write(self.format(record).encode())


def timestamp(unix_ns: int) -> str:
    """Return RFC 3339 in UTC with milliseconds."""
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    t = time.gmtime(seconds)
    return f"{t[0]:04d}-{t[1]:02d}-{t[2]:02d}T{t[3]:02d}:{t[4]:02d}:{t[5]:02d}.{ns // 1_000_000:03d}Z"


def configure(level: str, writer: LineWriter) -> None:
    """Send all logging of the process through `writer` as JSON lines."""
    root = logging.getLogger()
    root.handlers[:] = [LineHandler(writer)]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("httpx").setLevel(logging.WARNING)
