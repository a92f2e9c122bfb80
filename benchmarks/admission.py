"""What admission costs: `admission.py` prints microseconds of processor time a request, in one process.

A whole gateway is built, with the simulated provider; what is timed is all that a door does before a provider
is called, from the key on: body, permission, route, price, limits and budget, and the giving back of what was
held. The first row has neither limits nor budget.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from gateway.api.correlation import begin
from gateway.api.inference import Doors
from gateway.app import create_app
from gateway.core.errors import SpanbillError
from gateway.protocols import PROTOCOLS
from gateway.settings import Settings

KEY: Final = "sk-admission-0123456789abcdef"
MODEL: Final = "sim-small"
ROUNDS: Final = 30
REQUESTS: Final = 500
START_S: Final = 30.0
BODY: Final = (
    b'{"model":"sim-small","max_tokens":64,"messages":[{"role":"user","content":"' + b"x" * 400 + b'"}]}'
)
LIMITS: Final = [
    {
        "id": "key",
        "key": "*",
        "requests_per_minute": 10**8,
        "tokens_per_minute": 10**10,
        "concurrent": 10**4,
    },
    {"id": "user", "user": "*", "requests_per_minute": 10**8, "tokens_per_minute": 10**10},
    {"id": "model", "model": "*", "requests_per_minute": 10**8},
]
BUDGETS: Final = [
    {"id": "each-user", "scope": "user", "limit_usd": "1000000", "period": "month"},
    {"id": "each-key", "scope": "key", "limit_usd": "1000000", "period": "day"},
]


def settings(folder: Path, *, bounded: bool) -> Settings:
    """Return the settings of a gateway whose callers are bounded, or not."""
    return Settings.model_validate(
        {
            "api_keys": f"alice={KEY}",
            "journal": {"directory": folder / "journal", "durability": "process"},
            "logging": {"requests": False},
            "prices": {"overrides": {f"simulated/{MODEL}": {"input": "1", "output": "2"}}},
            "limits": {"rules": LIMITS if bounded else [], "backend": "memory"},
            "budgets": {"definitions": BUDGETS if bounded else []},
        }
    )


async def admission_us(folder: Path, *, bounded: bool) -> float:
    """Return the median round, in microseconds of this thread's processor time a request."""
    doors = create_app(settings(folder, bounded=bounded), environ={})
    started, stop = asyncio.Event(), asyncio.Event()
    life = asyncio.create_task(_live(doors, started, stop))
    try:
        async with asyncio.timeout(START_S):
            await started.wait()
            while not await _admitted(doors):  # noqa: ASYNC110 - until what was spent is known; nobody tells
                await asyncio.sleep(0.05)
        rounds = []
        for _ in range(ROUNDS):
            before = time.thread_time()
            for _ in range(REQUESTS):
                assert await _admitted(doors)
            rounds.append((time.thread_time() - before) / REQUESTS * 1e6)
        return statistics.median(rounds)
    finally:
        stop.set()
        await life


async def _admitted(doors: Doors) -> bool:
    """Admit one request, and give back what it holds; False if it was refused."""
    protocol = PROTOCOLS["/v1/chat/completions"]
    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": protocol.path, "headers": headers}
    correlation = begin(headers, doors.ids, doors._traces, "POST")
    try:
        admitted = await doors._admit(
            doors._inforce.terms, protocol, scope, _body, correlation, 0, time.time_ns()
        )
    except SpanbillError:
        return False
    admitted.hold.release()
    return True


async def _body() -> dict[str, Any]:
    return {"type": "http.request", "body": BODY, "more_body": False}


async def _live(doors: Doors, started: asyncio.Event, stop: asyncio.Event) -> None:
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "lifespan.startup"}
        await stop.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "lifespan.startup.complete":
            started.set()

    await doors({"type": "lifespan"}, receive, send)


def main() -> None:
    table = Table(
        title="Admission: processor time a request, before a provider is called", title_justify="left"
    )
    table.add_column("")
    table.add_column("µs", justify="right")
    for bounded, name in ((False, "key and route"), (True, "key, route, 3 rules of limits, 2 budgets")):
        with tempfile.TemporaryDirectory() as folder:
            table.add_row(name, f"{asyncio.run(admission_us(Path(folder), bounded=bounded)):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
