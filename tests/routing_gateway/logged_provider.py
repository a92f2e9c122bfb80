"""A provider in a process of its own that notes what it is asked: `python logged_provider.py PORT LOG`.

Each line of the log stands for a request as it came in: how many were answered before it by this process,
and how many are inside with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import TextIO

TAKES_S = 0.05
"""How long an answer takes: long enough for requests to be inside at the same time."""
BODY = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


class Provider:
    """The server."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._answered = 0
        self._inside = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:  # ends with the connection
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]))
                self._inside += 1
                line = {"answered": self._answered, "inside": self._inside}
                self._log.write(json.dumps(line) + "\n")
                self._log.flush()
                await asyncio.sleep(TAKES_S)  # the answer is being made
                self._inside -= 1
                self._answered += 1
                writer.write(REPLY)
                await writer.drain()
        writer.close()


async def run(port: int, log: TextIO) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Provider(log).serve, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with Path(sys.argv[2]).open("a") as out:
        asyncio.run(run(int(sys.argv[1]), out))
