"""A provider that misbehaves to order: raw sockets in a thread of its own, and a log that no gateway writes.

A request's model names its script; a script is a list of steps. `Call.steps` counts the steps that were
begun, so that a test can prove that its fault fired.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

SCRIPT_S_MAX = 60.0
"""No script runs longer; a test that needs this long has failed anyway."""


@dataclass(frozen=True)
class Repeat:
    """Send the same bytes again and again until the peer is gone or `times` is reached."""

    data: bytes
    times: int = 1_000_000
    every_s: float = 0.0


@dataclass(frozen=True)
class Stall:
    """Say nothing more, and keep the connection until the peer drops it."""


@dataclass(frozen=True)
class Reset:
    """Drop the connection with RST."""


@dataclass(frozen=True)
class Close:
    """Close the connection in order, with FIN."""


@dataclass(frozen=True)
class AfterPause:
    """Send bytes after a pause: as a segment of its own."""

    data: bytes
    pause_s: float = 0.02


Step = bytes | Repeat | Stall | Reset | Close | AfterPause


@dataclass
class Call:
    """One request as it arrived here."""

    path: str
    model: str
    headers: dict[str, str]
    body: bytes
    steps: int = 0
    sent: int = 0
    left: bool = False
    """The peer was gone before the script's end."""
    done: threading.Event = field(default_factory=threading.Event)


class Chaos:
    """The server; `scripts` may change at any time, `calls` only grows."""

    def __init__(self) -> None:
        self.scripts: dict[str, Sequence[Step]] = {}
        self.later: dict[str, list[Sequence[Step]]] = {}
        self.calls: list[Call] = []
        self.connections = 0
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Chaos:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, name: str, *steps: Step) -> str:
        """Set what happens to requests of the model `name`; return the name."""
        self.scripts[name] = steps
        return name

    def turns(self, name: str, *scripts: Sequence[Step]) -> str:
        """Set what happens to requests of the model `name`, one after another; the last one stays."""
        self.scripts[name], *self.later[name] = scripts
        return name

    def called(self, model: str) -> list[Call]:
        return [call for call in self.calls if call.model == model]

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:  # each turn is one request; the peer ends it
                call = await _request(reader)
                self.calls.append(call)
                script = self.scripts[call.model]
                if self.later.get(call.model):
                    self.scripts[call.model] = self.later[call.model].pop(0)
                try:
                    async with asyncio.timeout(SCRIPT_S_MAX):
                        await _play(script, call, reader, writer)
                finally:
                    call.done.set()
        except (OSError, EOFError, asyncio.CancelledError, TimeoutError):
            pass
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> Call:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    body = await reader.readexactly(int(headers["content-length"]))
    value: Any = json.loads(body, parse_int=str)  # integers of any length
    return Call(path=head[0].split(" ")[1], model=value["model"], headers=headers, body=body)


async def _play(
    steps: Sequence[Step], call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        for step in steps:
            call.steps += 1
            await _do(step, call, reader, writer)
    except OSError:
        call.left = True
        raise


async def _do(step: Step, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    match step:
        case bytes():
            await _write(step, call, writer)
        case AfterPause():
            await asyncio.sleep(step.pause_s)  # the fault itself: a segment of its own
            await _write(step.data, call, writer)
        case Repeat():
            for _ in range(step.times):
                await _write(step.data, call, writer)
                if step.every_s:
                    await asyncio.sleep(step.every_s)  # the fault itself
        case Stall():
            while await reader.read(65536):
                pass
            call.left = True
        case Reset():
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        case Close():
            writer.close()
            await writer.wait_closed()


async def _write(data: bytes, call: Call, writer: asyncio.StreamWriter) -> None:
    if writer.transport.is_closing():
        raise ConnectionResetError
    writer.write(data)
    call.sent += len(data)
    await writer.drain()
