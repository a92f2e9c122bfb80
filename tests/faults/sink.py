"""A Collector in a process of its own that takes everything as fast as it can: `python sink.py FILE`.

Prints its port. Each accepted body goes to the file as it came, one a line: OTLP/JSON lines.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


async def main(path: Path) -> None:
    with path.open("ab", buffering=0) as file:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:  # ends with the connection
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
                    file.write(await reader.readexactly(length) + b"\n")
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 23)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
