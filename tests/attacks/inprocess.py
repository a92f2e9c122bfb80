"""The gateway in this process, its own transport and sockets included, and a caller that notes everything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from gateway.api.inference import Doors
from gateway.app import create_app
from gateway.core.usage import COUNT_MAX
from gateway.logs import LineWriter
from gateway.settings import (
    AdminSettings,
    JournalSettings,
    LoggingSettings,
    PricesSettings,
    ProviderSettings,
    RetriesSettings,
    RoutingSettings,
    Settings,
    UpstreamSettings,
)
from tests.attacks.chaos import Chaos
from tests.attacks.wires import MODEL, Wire
from tests.gateway_process import attributes, spans_in
from tests.lifespan import lifespan_of

KEY = "sk-attack-0001"
PROVIDER_KEY = "sk-provider-secret-0001"
ANSWER_S_MAX = 30.0
COUNTS = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.reasoning.output_tokens",
)
UNCOUNTED = frozenset({"unmetered", "estimated"})
"""Status of a bill whose usage the provider did not report; which of the two depends on what was received."""
RATES: dict[str, str | int] = {"input": "1", "output": "2", "cache_read": "0.1", "cache_write": "1.25"}


@dataclass
class Answer:
    """What one caller got."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    ended: bool = False
    bytes_in: int = 0

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def request_id(self) -> str:
        return dict(self.headers)[b"x-request-id"].decode()

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


def settings_for(
    folder: Path,
    chaos: Chaos,
    logging: LoggingSettings | None = None,
    admin: AdminSettings | None = None,
    **upstream: Any,
) -> Settings:
    return Settings(
        api_keys=SecretStr(f"mallory={KEY}"),
        journal=JournalSettings(directory=folder, durability="process"),
        logging=logging or LoggingSettings(requests=True),
        admin=admin or AdminSettings(),
        upstream=UpstreamSettings(transport="fast", **upstream),
        routing=RoutingSettings(retries=RetriesSettings(attempts_max=1)),  # each fault is met once
        prices=PricesSettings(overrides={f"chaos/{MODEL}": RATES}),
        providers={
            "chaos": ProviderSettings(
                base_url=chaos.url,
                api_key=SecretStr(PROVIDER_KEY),
                models=("chaos-*",),
                protocols=("chat_completions", "messages", "responses", "embeddings"),
            )
        },
    )


class Attacked:
    """A running gateway, its provider and its journal."""

    def __init__(self, app: Doors, chaos: Chaos, journal: Path) -> None:
        self.app = app
        self.chaos = chaos
        self.journal = journal
        self._offsets: dict[Path, int] = {}
        self._bills: dict[str, dict[str, Any]] = {}
        self._intents = 0

    async def ask(
        self,
        wire: Wire,
        body: bytes,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        key: str = KEY,
        method: str = "POST",
        keep: bool = True,
    ) -> Answer:
        """Send one request; `keep` False counts the body's bytes instead of keeping them."""
        answer = Answer()
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert not answer.status, "a second head"
                answer.status, answer.headers = message["status"], list(message["headers"])
                return
            assert not answer.ended, "bytes after the end"
            answer.bytes_in += len(message["body"])
            if keep:
                answer.pieces.append(message["body"])
            answer.ended = not message.get("more_body", False)

        scope = {
            "type": "http",
            "method": method,
            "path": wire.path,
            "raw_path": wire.path.encode(),
            "query_string": b"",
            "http_version": "1.1",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "headers": [(b"authorization", f"Bearer {key}".encode()), *headers],
            "client": ("127.0.0.1", 1),
        }
        async with asyncio.timeout(ANSWER_S_MAX):
            await self.app(scope, receive, send)
        await asyncio.sleep(0)  # a bill that nobody waits for is written at the end of the loop's turn
        return answer

    def bill(self, answer: Answer) -> dict[str, Any]:
        """Return the one bill of an answer, which must be honest whatever happened."""
        self._read_on()
        bill = self._bills[answer.request_id]
        assert_honest(bill)
        return bill

    def intents(self) -> int:
        self._read_on()
        return self._intents

    def _read_on(self) -> None:
        """Read what the journal has beyond the last look; no bill may stand twice."""
        for segment in sorted(self.journal.glob("[0-9]*-*/*.jsonl")):
            with segment.open("rb") as file:
                file.seek(self._offsets.get(segment, 0))
                lines = file.readlines()
                self._offsets[segment] = file.tell()
            for line in lines:
                assert line.endswith(b"\n"), "a line is written whole"
                value = json.loads(line)
                self._intents += value["j"]["k"] == "I"
                for span in spans_in(value):
                    bill = attributes(span)
                    assert bill["billing.record.id"] not in self._bills
                    self._bills[bill["billing.record.id"]] = bill


def assert_honest(bill: dict[str, Any]) -> None:
    """Check what holds of every bill: no negative money, no impossible count, unknown never called zero."""
    if "billing.cost.usd" in bill:
        cost = Decimal(bill["billing.cost.usd"])
        assert cost.is_finite()
        assert cost >= 0
    for name in COUNTS:
        if name in bill:
            assert type(bill[name]) is int
            assert 0 <= bill[name] <= COUNT_MAX
    assert bill["billing.attempts"] == 1
    if bill["billing.status"] == "unmetered":
        assert "billing.cost.usd" not in bill
    if bill["billing.status"] == "estimated":
        assert bill["billing.usage.source"] == "estimated"
    if bill["billing.outcome"] == "ok":
        assert "error.type" not in bill
    else:
        assert bill["error.type"]


@asynccontextmanager
async def attacked(
    folder: Path,
    chaos: Chaos,
    lines: LineWriter | None = None,
    logging: LoggingSettings | None = None,
    admin: AdminSettings | None = None,
    **upstream: Any,
) -> AsyncIterator[Attacked]:
    """Run a gateway whose only provider is `chaos`."""
    app = create_app(settings_for(folder, chaos, logging, admin, **upstream), environ={}, lines=lines)
    async with lifespan_of(app):
        yield Attacked(app, chaos, folder)
