"""A disk that breaks in each of its operations, under the whole gateway: nothing lost, nothing sold unbilled.

The faults are injected where the journal meets its disk; all else is the product.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from gateway.api.inference import Doors
from gateway.app import SETTLE_CHECK_S, create_app
from gateway.providers.upstream import Endpoint, Header, Timeouts
from gateway.settings import JournalSettings, PricesSettings, RetriesSettings, RoutingSettings, Settings
from otel.journal.audit import audit_folder
from otel.journal.files import Files
from tests.faults.paced_upstream import INPUT, OUTPUT, chat_pieces, messages_pieces, whole_body
from tests.faults.paced_world import PATHS, bills

KEY = "sk-disk-0001"
RESUME_S = 5.0
LOOK_S = 0.01
WAIT_S = 30.0
REQUESTS_MAX = 20
"""Requests that a broken disk may take before the first refusal: a sync fails later than its write."""
PIECES = {"chat_completions": chat_pieces, "messages": messages_pieces}
ENDS = {"chat_completions": b"[DONE]", "messages": b'"message_stop"'}
Durability = Literal["group", "process", "strict"]


class BreakingFiles(Files):
    """A disk whose operations fail as `broken` says, and a count of how often each did."""

    def __init__(self) -> None:
        self.broken: dict[str, int] = {}
        self.short = False
        self.times: int | None = None
        self.free: int | None = None
        self.fired: Counter[str] = Counter()
        self.closed = 0

    def _may(self, operation: str) -> None:
        if operation in self.broken and (self.times is None or self.fired[operation] < self.times):
            self.fired[operation] += 1
            raise OSError(self.broken[operation], os.strerror(self.broken[operation]))

    def create(self, path: Path) -> int:
        self._may("create")
        return super().create(path)

    def write(self, fd: int, data: bytes) -> int:
        if self.short:
            self.fired["short"] += 1
            return super().write(fd, data[: len(data) // 2])
        self._may("write")
        return super().write(fd, data)

    def reserve(self, fd: int, offset: int, length: int) -> bool:
        self._may("reserve")
        return super().reserve(fd, offset, length)

    def sync(self, fd: int) -> None:
        self._may("sync")
        super().sync(fd)

    def close(self, fd: int) -> None:
        self.closed += 1
        super().close(fd)

    def sync_directory(self, path: Path) -> None:
        self._may("sync_directory")
        super().sync_directory(path)

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(path) if self.free is None else self.free

    def heal(self) -> None:
        self.broken, self.short, self.free = {}, False, None


class Provider:
    """The transport: whole replies at once, streams as the test says."""

    def __init__(self) -> None:
        self.calls = 0
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()

    async def send(
        self, method: bytes, endpoint: Endpoint, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> Stream:
        self.calls += 1
        stream = Stream(b"application/json")
        if json.loads(body).get("stream"):
            stream = Stream(b"text/event-stream")
            self._streams.put_nowait(stream)
        else:
            protocol = "messages" if endpoint.target.endswith(b"/messages") else "chat_completions"
            stream.tell(whole_body(protocol), b"")
        return stream

    async def stream(self) -> Stream:
        """Wait for a request for a stream."""
        async with asyncio.timeout(WAIT_S):
            return await self._streams.get()

    async def aclose(self) -> None:
        pass


class Stream:
    """One reply."""

    def __init__(self, kind: bytes) -> None:
        self.status = 200
        self.headers: Sequence[Header] = [(b"content-type", kind)]
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()

    def tell(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    async def read(self) -> bytes:
        return await self._pieces.get()

    def close(self) -> None:
        pass


class Asked:
    """One request on its way, and what its caller got."""

    def __init__(self, world: World, path: str, body: bytes | None) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.whole = False
        self._some = asyncio.Condition()
        self._sent = [body or b""]
        scope = {
            "type": "http",
            "method": "GET" if body is None else "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "http_version": "1.1",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "headers": [(b"authorization", b"Bearer " + KEY.encode()), (b"host", b"gateway")],
            "client": ("127.0.0.1", 1),
        }
        self.task = asyncio.create_task(world.app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._sent:
            return {"type": "http.request", "body": self._sent.pop(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._some:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                self.body += message.get("body", b"")
                self.whole = not message.get("more_body", False)
            self._some.notify_all()

    async def until(self, text: bytes) -> None:
        async with self._some, asyncio.timeout(WAIT_S):
            await self._some.wait_for(lambda: text in self.body)

    async def done(self) -> Asked:
        async with asyncio.timeout(WAIT_S):
            await self.task
        return self


class World:
    """A gateway in this process, on a disk that can break, before a provider that counts."""

    def __init__(self, folder: Path, durability: Durability, **journal: Any) -> None:
        self.folder = folder
        self.files = BreakingFiles()
        self.provider = Provider()
        self.served: set[str] = set()
        self.stopping = asyncio.Event()
        self.stopped = asyncio.Event()
        settings = Settings(
            api_keys=SecretStr(f"alice={KEY}"),
            routing=RoutingSettings(retries=RetriesSettings(attempts_max=1)),
            prices=PricesSettings(overrides={"simulated/paced": {"input": "1", "output": "2"}}),
            journal=JournalSettings(
                directory=folder, durability=durability, **{"min_free_bytes": 0, **journal}
            ),
        )
        self.app: Doors = create_app(settings, environ={}, transport=self.provider, files=self.files)

    def ask(self, protocol: str, *, stream: bool = False) -> Asked:
        content = {"model": "sim-small", "max_tokens": 64, "stream": stream, "messages": []}
        return Asked(self, PATHS[protocol], json.dumps(content).encode())

    async def serve(self, protocol: str) -> None:
        answer = await self.ask(protocol).done()
        assert answer.status == 200, answer.body
        self.served.add(answer.headers["x-request-id"])

    async def readiness(self) -> tuple[bool, str]:
        answer = await Asked(self, "/ready", None).done()
        return answer.status == 200, json.loads(answer.body)["checks"]["journal"]

    async def becomes(self, ready: bool) -> None:
        """Wait for service to end or to come back by itself: no request is sent meanwhile."""
        for _ in range(round(RESUME_S / LOOK_S)):
            if (await self.readiness())[0] is ready:
                return
            await asyncio.sleep(LOOK_S)
        raise AssertionError(f"ready is not {ready} within {RESUME_S} s")

    async def refused_without_a_call(self, protocol: str) -> bool:
        calls = self.provider.calls
        answer = await self.ask(protocol).done()
        if answer.status == 200:
            self.served.add(answer.headers["x-request-id"])
            return False
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        error = json.loads(answer.body)["error"]
        if protocol == "messages":
            assert error["type"] == "overloaded_error"
        else:
            assert error["code"] == "journal_unavailable"
        return self.provider.calls == calls

    async def live(self, started: asyncio.Event) -> None:
        async def receive() -> dict[str, Any]:
            if not started.is_set():
                return {"type": "lifespan.startup"}
            await self.stopping.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: dict[str, Any]) -> None:
            assert not message["type"].endswith("failed"), message
            (self.stopped if started.is_set() else started).set()

        await self.app({"type": "lifespan"}, receive, send)

    def check(self) -> None:
        """Each call has its bill, each served request a final one, and the auditor finds nothing."""
        check_sound(self.folder)
        found = bills(self.folder)
        assert {found[id_]["billing.status"] for id_ in self.served} == {"final"}
        assert sum(bill["billing.attempts"] for bill in found.values()) == self.provider.calls


def check_sound(folder: Path) -> None:
    report = audit_folder(folder, strict=True)
    assert report.complete, report.findings
    assert report.intact, report.findings


@asynccontextmanager
async def living(folder: Path, durability: Durability = "group", **journal: Any) -> AsyncIterator[World]:
    world = World(folder, durability, **journal)
    started = asyncio.Event()
    life = asyncio.create_task(world.live(started))
    async with asyncio.timeout(WAIT_S):
        await started.wait()
    try:
        yield world
    finally:
        world.stopping.set()
        async with asyncio.timeout(WAIT_S):
            await life


def write_fails(files: BreakingFiles) -> None:
    files.broken = {"write": errno.EIO}


def write_is_short(files: BreakingFiles) -> None:
    files.short = True


def disk_is_full(files: BreakingFiles) -> None:
    files.broken = dict.fromkeys(("write", "reserve", "create"), errno.ENOSPC)


def is_read_only(files: BreakingFiles) -> None:
    files.broken = dict.fromkeys(("write", "reserve", "create", "sync_directory"), errno.EROFS)


def sync_fails(files: BreakingFiles) -> None:
    files.broken = {"sync": errno.EIO}


def all_fails(files: BreakingFiles) -> None:
    names = ("write", "reserve", "create", "sync", "sync_directory")
    files.broken = dict.fromkeys(names, errno.EIO)


FAULTS = [write_fails, write_is_short, disk_is_full, is_read_only, sync_fails, all_fails]


@pytest.mark.parametrize("spoil", FAULTS)
async def test_on_a_broken_disk_nothing_is_sold_unbilled_and_nothing_is_lost(
    tmp_path: Path, spoil: Callable[[BreakingFiles], None]
) -> None:
    durabilities: list[Durability] = ["group", "strict", "process"]
    if spoil is sync_fails:
        durabilities.remove("process")  # it promises nothing of a disk that does not sync
    await asyncio.gather(
        *[
            break_and_heal(tmp_path / f"{durability}-{protocol}", spoil, durability, protocol)
            for durability in durabilities
            for protocol in PATHS
        ]
    )


async def break_and_heal(
    folder: Path, spoil: Callable[[BreakingFiles], None], durability: Durability, protocol: str
) -> None:
    async with living(folder, durability) as world:
        await world.serve(protocol)
        open_ = world.ask(protocol, stream=True)
        stream = await world.provider.stream()
        *content, usage, end = PIECES[protocol](2)
        stream.tell(*content)
        await open_.until(b"word ")

        spoil(world.files)
        for _ in range(REQUESTS_MAX):
            if await world.refused_without_a_call(protocol):
                break
        for _ in range(50):
            assert await world.refused_without_a_call(protocol), "a provider was called for nothing"
        ready, why = await world.readiness()
        assert not ready
        assert why != "ok"

        stream.tell(usage, end, b"")
        await open_.done()
        assert ENDS[protocol] not in open_.body, "reported as complete without a bill"
        assert b"journal_unavailable" in open_.body or b"bills cannot be written" in open_.body
        assert world.files.fired, "the fault did not fire"

        world.files.heal()
        await world.becomes(ready=True)
        await world.serve(protocol)
    world.check()
    bill = bills(folder)[open_.headers["x-request-id"]]
    assert (bill["gen_ai.usage.input_tokens"], bill["gen_ai.usage.output_tokens"]) == (INPUT, OUTPUT)


@pytest.mark.parametrize("protocol", list(PATHS))
async def test_where_no_more_space_can_be_set_aside_open_streams_still_end(
    tmp_path: Path, protocol: str
) -> None:
    async with living(tmp_path, segment_bytes_max=16_384) as world:
        open_ = world.ask(protocol, stream=True)
        stream = await world.provider.stream()
        world.files.broken = {"reserve": errno.ENOSPC, "create": errno.ENOSPC}
        for _ in range(REQUESTS_MAX):
            if await world.refused_without_a_call(protocol):
                break
        calls = world.provider.calls
        assert await world.refused_without_a_call(protocol)
        assert not (await world.readiness())[0]
        stream.tell(*PIECES[protocol](2), b"")
        await open_.done()
        assert ENDS[protocol] in open_.body, "there was space for its bill"
        assert world.files.fired["create"]
        assert world.provider.calls == calls
        world.files.heal()
        await world.becomes(ready=True)
        await world.serve(protocol)
    world.served.add(open_.headers["x-request-id"])
    world.check()


async def test_below_the_watermark_nothing_is_admitted_and_above_it_everything_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with living(tmp_path, min_free_bytes=1_000_000) as world:
        await world.serve("messages")
        world.files.free = 999_999
        await world.becomes(ready=False)
        assert (await world.readiness())[1] == "only 999999 bytes of the disk are free; 1000000 must be"
        for protocol in PATHS:
            assert await world.refused_without_a_call(protocol)
        world.files.free = 1_000_000
        await world.becomes(ready=True)
        await world.serve("chat_completions")
        for _ in range(round(RESUME_S / LOOK_S)):
            if len(told := [record for record in caplog.records if record.name == "spanbill.app"]) == 2:
                break
            await asyncio.sleep(LOOK_S)
        assert [record.getMessage().partition(";")[0] for record in told] == [
            "bills cannot be written",
            "bills can be written again",
        ]
        assert vars(told[0])["why"] == "only 999999 bytes of the disk are free; 1000000 must be"
    world.check()


async def test_a_bill_whose_sync_fails_once_is_written_again_the_same_and_its_caller_waits(
    tmp_path: Path,
) -> None:
    async with living(tmp_path) as world:
        await world.serve("messages")
        world.files.broken = {"sync": errno.EIO}
        world.files.times = 1
        answer = await world.ask("chat_completions").done()
        assert answer.status == 200
        assert world.files.fired["sync"] == 1
        world.served.add(answer.headers["x-request-id"])
    world.check()
    report = audit_folder(tmp_path)
    assert report.facts.again > 0, "nothing was written twice"


async def test_stopped_on_a_broken_disk_a_gateway_says_that_its_next_start_owes_bills(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with living(tmp_path) as world:
        open_ = world.ask("chat_completions", stream=True)
        stream = await world.provider.stream()
        stream.tell(chat_pieces(1)[0])
        await open_.until(b"word ")
        all_fails(world.files)
        stream.tell(*chat_pieces(0), b"")
        await open_.done()
        assert b"[DONE]" not in open_.body
    assert world.files.fired["write"]
    (line,) = [line for line in caplog.records if line.name == "spanbill.app"]
    assert line.levelname == "ERROR"
    assert line.getMessage() == "bills could not be written; the next start writes them, as interrupted"
    assert bills(tmp_path) == {}
    async with living(tmp_path):
        assert [bill["billing.outcome"] for bill in bills(tmp_path).values()] == ["interrupted"]
    check_sound(tmp_path)


async def test_the_journal_is_closed_when_the_last_request_has_left(tmp_path: Path) -> None:
    async with living(tmp_path) as world:
        await world.serve("messages")
        world.app.gate.enter()
        world.stopping.set()
        await asyncio.sleep(10 * SETTLE_CHECK_S)
        assert not world.stopped.is_set()
        assert world.files.closed == 0, "closed before a bill that was still to come"
        world.app.gate.leave()
        async with asyncio.timeout(WAIT_S):
            await world.stopped.wait()
        assert world.files.closed > 0


async def test_a_request_that_never_leaves_does_not_hold_the_journal_open(tmp_path: Path) -> None:
    async with living(tmp_path) as world:
        world.app.gate.enter()
        world.stopping.set()
        async with asyncio.timeout(WAIT_S):
            await world.stopped.wait()
        assert world.files.closed > 0


@pytest.mark.parametrize("spoil", [fault for fault in FAULTS if fault is not sync_fails])
async def test_a_start_on_a_broken_disk_says_so_in_one_line(
    tmp_path: Path, spoil: Callable[[BreakingFiles], None]
) -> None:
    world = World(tmp_path, "group")
    spoil(world.files)
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    await world.app({"type": "lifespan"}, receive, send)
    assert told == [{"type": "lifespan.startup.failed", "message": ""}]
    assert world.app.start_fault is not None
    assert world.app.start_fault.startswith(f"the journal's folder {tmp_path} cannot be used: E")
    assert world.app.start_fault.endswith("or give the gateway another folder (journal.directory)")
    assert world.files.fired


async def test_a_request_that_is_told_to_stop_is_billed_before_the_journal_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection to the provider takes some turns of the loop to go; the lifespan's end takes fewer."""
    reached, gone = asyncio.Event(), asyncio.Event()

    async def lingering(*_: Any) -> Stream:
        world.provider.calls += 1
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _turn in range(200):
                await asyncio.sleep(0)
            gone.set()
        raise AssertionError

    async with living(tmp_path) as world:
        await world.serve("messages")
        monkeypatch.setattr(world.provider, "send", lingering)
        asked = world.ask("chat_completions")
        await reached.wait()
        asked.task.cancel()
        await asyncio.sleep(0)
        assert not gone.is_set()
    assert gone.is_set()
    world.check()
    with pytest.raises(asyncio.CancelledError):
        await asked.task
