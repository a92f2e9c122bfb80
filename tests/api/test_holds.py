"""However a request ends, what it held is settled or released: one of the two, once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from gateway.admission.guards import Aim, Header
from gateway.api.inference import Doors
from gateway.app import create_app
from gateway.core.errors import CallerError, GatewayFault
from gateway.core.exchange import Call, Exchange
from gateway.settings import JournalSettings, LoggingSettings, Settings, UpstreamSettings
from tests.lifespan import lifespan_of

KEY = "sk-holds-0001"


class Held:
    """A hold that notes what becomes of it."""

    headers: Sequence[Header] = ((b"x-held", b"1"),)

    def __init__(self, story: list[str]) -> None:
        self.story = story

    def settle(self, exchange: Exchange) -> None:
        self.story.append(f"settled {exchange.outcome}")

    def release(self) -> None:
        self.story.append("released")


class Guarding:
    """Lets in whoever is not refused by `refusal`."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.refusal: CallerError | None = None

    async def admit(self, call: Call, aims: Sequence[Aim]) -> Held:
        if self.refusal is not None:
            raise self.refusal
        self.story.append("held")
        return Held(self.story)


def replace_terms(app: Doors, **changed: Any) -> None:
    """Have other stages or another guard from the next request on."""
    app._inforce.terms = msgspec.structs.replace(app._inforce.terms, **changed)


class Client:
    """Sends one request and leaves, or is cut off, when it has got `pieces_max` pieces."""

    def __init__(self, app: Doors, body: dict[str, Any], *, leaves_after: int | None = None) -> None:
        self.app = app
        self.body = json.dumps(body).encode()
        self.leaves_after = leaves_after
        self.pieces = 0
        self.status = 0
        self.headers: list[Header] = []
        self.begun = asyncio.Event()
        self.asked = False
        self.gone = asyncio.Event()
        if leaves_after == 0:
            self.gone.set()

    async def run(self) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"authorization", b"Bearer " + KEY.encode())],
            "query_string": b"",
            "client": ("127.0.0.1", 1),
        }
        await self.app(scope, self.receive, self.send)

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        elif message.get("body"):
            self.pieces += 1
            self.begun.set()
            if self.pieces == self.leaves_after:
                self.gone.set()


@contextlib.asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[Doors, Guarding]]:
    settings = Settings(
        api_keys=SecretStr(f"alice={KEY}"),
        journal=JournalSettings(directory=folder / "data" / "journal", durability="process"),
        logging=LoggingSettings(requests=False),
        upstream=UpstreamSettings(drain_s=0.05),
    )
    app = create_app(settings, environ={})
    guard = Guarding()
    replace_terms(app, guard=guard)
    async with lifespan_of(app):
        yield app, guard


def body(model: str = "sim-small", *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hello, hello"}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "outcome"),
    [
        ("sim-small", "ok"),
        ("sim-err-500", "upstream_error"),
        ("sim-err-429", "upstream_error"),
        ("sim-cut", None),
        ("sim-midstream-error", None),
        ("sim-nousage", "ok"),
    ],
)
async def test_an_answer_or_an_error_of_the_provider_settles(
    tmp_path: Path, model: str, outcome: str | None, stream: bool
) -> None:
    async with gateway(tmp_path) as (app, guard):
        client = Client(app, body(model, stream=stream))
        await client.run()
    assert guard.story[0] == "held"
    assert len(guard.story) == 2
    assert guard.story[1].startswith("settled")
    if outcome is not None:
        assert guard.story[1] == f"settled {outcome}"
    if client.status == 200:
        assert (b"x-held", b"1") in client.headers


@pytest.mark.parametrize("leaves_after", [0, 1, 3])
async def test_a_caller_that_leaves_settles(tmp_path: Path, leaves_after: int) -> None:
    async with gateway(tmp_path) as (app, guard):
        await Client(app, body("sim-slow", stream=True), leaves_after=leaves_after).run()
    assert guard.story == ["held", "settled client_disconnected"]


async def test_a_shutdown_in_the_middle_settles(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (app, guard):
        client = Client(app, body("sim-slow", stream=True))
        serving = asyncio.ensure_future(client.run())
        await client.begun.wait()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert guard.story == ["held", "settled interrupted"]


async def test_a_gateway_that_stops_releases_what_it_does_not_let_in(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (app, guard):
        app.gate.closed = True
        client = Client(app, body())
        await client.run()
    assert client.status == 503
    assert guard.story == ["held", "released"]


@pytest.mark.parametrize("owed", [False, True])
async def test_an_intent_that_fails_releases_unless_there_will_be_a_bill(tmp_path: Path, owed: bool) -> None:
    async with gateway(tmp_path) as (app, guard):

        def refuse(_: Call) -> int:
            raise GatewayFault("journal_unavailable", "full", status=503, owed=owed)

        broken(app, intent=refuse)
        client = Client(app, body())
        await client.run()
    assert client.status == 503
    assert guard.story[0] == "held"
    assert len(guard.story) == 2
    assert guard.story[1].startswith("settled" if owed else "released")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bill_that_is_not_durable_is_a_bill_all_the_same(tmp_path: Path, stream: bool) -> None:
    async with gateway(tmp_path) as (app, guard):

        async def refuse(_: int) -> None:
            raise GatewayFault("journal_unavailable", "bad disk", status=503)

        broken(app, durable=refuse)
        await Client(app, body(stream=stream)).run()
    assert guard.story[0] == "held"
    assert len(guard.story) == 2
    assert guard.story[1].startswith("settled")


async def test_a_fault_in_pricing_settles_once(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (app, guard):
        faults = 0

        def fail(*_: object) -> None:
            nonlocal faults
            faults += 1
            raise ZeroDivisionError

        stages = app._inforce.terms.stages
        prices = msgspec.structs.replace(stages.prices, charge=fail)
        replace_terms(app, stages=msgspec.structs.replace(stages, prices=prices))
        client = Client(app, body())
        await client.run()
    assert faults
    assert client.status == 500
    assert guard.story == ["held", "settled internal_error"]


async def test_a_fault_before_the_call_ends_the_hold_once(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (app, guard):

        def fail(_: Call) -> int:
            raise ZeroDivisionError

        broken(app, intent=fail)
        client = Client(app, body())
        await client.run()
    assert client.status == 500
    assert guard.story[0] == "held"
    assert len(guard.story) == 2


async def test_who_is_refused_holds_nothing(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (app, guard):
        nobody = Client(app, body("no-such-model"))
        await nobody.run()
        guard.refusal = CallerError("budget_exceeded", "spent", status=402)
        guard.refusal.headers = ((b"x-should-retry", b"false"),)
        refused = Client(app, body())
        await refused.run()
    assert (nobody.status, refused.status) == (404, 402)
    assert (b"x-should-retry", b"false") in refused.headers
    assert guard.story == []


class Broken:
    """A recorder of which some methods are others."""

    def __init__(self, recorder: Any, **others: Callable[..., Any]) -> None:
        self._recorder = recorder
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)


def broken(app: Doors, **others: Callable[..., Any]) -> None:
    stages = app._inforce.terms.stages
    recorder: Any = Broken(stages.recorder, **others)
    replace_terms(app, stages=msgspec.structs.replace(stages, recorder=recorder))
