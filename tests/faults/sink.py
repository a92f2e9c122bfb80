"""A Collector in a process of its own that takes everything as fast as it can: `python sink.py FILE`.

Prints its port. Told to end, it writes each accepted body as it came, one a line: OTLP/JSON lines. Not
before: a disk that others keep busy would hold up its answers.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path


async def collect() -> list[bytes]:
    """Take bodies until told to end."""
    bodies: list[bytes] = []
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:  # ends with the connection
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
                bodies.append(await reader.readexactly(length) + b"\n")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 23)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await told.wait()
    return bodies


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(b"".join(asyncio.run(collect())))
