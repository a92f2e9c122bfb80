"""A gateway in this process whose file of settings changes while it serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from gateway.admission.virtual_keys import KeyEntry
from gateway.api.inference import Doors
from gateway.app import create_app
from gateway.reloading import Source, stamp_of
from gateway.settings import load_settings
from tests.gateway_process import bills_in_journal
from tests.lifespan import lifespan_of

WAIT_S = 60.0
KEY = "sk-reload-0001"


class Pause:
    """Where a request waits until the test goes on: before its body, or in the middle of its answer."""

    def __init__(self, at: Literal["body", "answer"]) -> None:
        self.at = at
        self.reached = asyncio.Event()
        self.over = asyncio.Event()

    async def wait(self, at: Literal["body", "answer"]) -> None:
        if at == self.at:
            self.reached.set()
            await self.over.wait()


class Living:
    """The gateway, and its file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "spanbill.yaml"
        self.app: Doors
        self.source: Source

    def write(self, settings: Mapping[str, Any]) -> None:
        base = {"journal": {"directory": str(self.folder / "journal"), "durability": "process"}}
        self.file.write_text(yaml.safe_dump({**base, "api_keys": f"alice={KEY}", **settings}))

    async def get(self, path: str, key: str = KEY) -> tuple[int, Any]:
        status, body, _ = await self._ask("GET", path, b"", key)
        return status, json.loads(body) if body.startswith(b"{") else body.decode()

    async def ask(
        self, model: str = "m", key: str = KEY, pause: Pause | None = None, **more: Any
    ) -> tuple[int, Any, str]:
        """Return status, answer and the request's id."""
        content = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        status, body, request_id = await self._ask(
            "POST", "/v1/chat/completions", json.dumps(content).encode(), key, pause
        )
        return status, body if more.get("stream") else json.loads(body), request_id

    async def post(self, path: str, content: Mapping[str, Any], key: str) -> int:
        return (await self._ask("POST", path, json.dumps(content).encode(), key))[0]

    async def _ask(
        self, method: str, path: str, body: bytes, key: str, pause: Pause | None = None
    ) -> tuple[int, bytes, str]:
        head: dict[str, Any] = {}
        pieces: list[bytes] = []
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                if pause is not None:
                    await pause.wait("body")
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
                return
            pieces.append(message["body"])
            if pause is not None:
                await pause.wait("answer")

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "http_version": "1.1",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "headers": [(b"authorization", f"Bearer {key}".encode())],
            "client": ("127.0.0.1", 1),
        }
        await asyncio.sleep(0)  # nothing else here gives way: no socket, no disk that is waited for
        async with asyncio.timeout(WAIT_S):
            await self.app(scope, receive, send)
        found = dict(head["headers"])
        return head["status"], b"".join(pieces), found.get(b"x-request-id", b"").decode()

    async def count(self, result: str) -> int:
        """Return how many configurations had this result."""
        _, text = await self.get("/metrics")
        name = f'llm_gateway_config_reloads_total{{result="{result}"}} '
        return sum(int(float(line.removeprefix(name))) for line in text.splitlines() if line.startswith(name))

    async def reload(self, result: str) -> None:
        """Have the file read, and wait until it was."""
        before = await self.count(result)
        assert self.app.reload is not None
        self.app.reload()
        await self.until(result, before + 1)

    async def until(self, result: str, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while await self.count(result) < count:  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.01)

    def bills(self) -> dict[str, dict[str, Any]]:
        return bills_in_journal(self.folder / "journal")


@asynccontextmanager
async def living(
    folder: Path, settings: Mapping[str, Any], keys: Sequence[KeyEntry] = ()
) -> AsyncIterator[Living]:
    """Run a gateway; no variable of its settings may be set."""
    found = Living(folder)
    found.write(settings)

    def load() -> Any:
        return load_settings({"SPANBILL_CONFIG": str(found.file)})

    seen = stamp_of(found.file)
    found.source = Source(load(), load, found.file, seen)
    found.app = create_app(found.source.settings, environ={}, keys=keys, source=found.source)
    async with lifespan_of(found.app):
        yield found
