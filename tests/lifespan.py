"""The life of a gateway in the test's own process: started, and stopped in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.api.inference import Doors


@asynccontextmanager
async def lifespan_of(app: Doors) -> AsyncIterator[None]:
    """Start the gateway, and stop it."""
    started, stopping, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not started.is_set():
            return {"type": "lifespan.startup"}
        await stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: dict[str, Any]) -> None:
        assert not message["type"].endswith("failed"), message
        (finished if started.is_set() else started).set()

    life = asyncio.ensure_future(app({"type": "lifespan"}, receive, send))
    await started.wait()
    try:
        yield
    finally:
        stopping.set()
        await life
        assert finished.is_set()
