"""One seeded world: lives of a gateway on one disk, ended by crashes, power losses and a last quiet one.

The product's own story, recorder, journal, recovery, reader and shipper run; the disk, the provider, the
caller, the Collector, the clock and the sync thread are the simulator's. `Ledger` is what is known outside
the gateway, and outlives every crash.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from gateway.billing import Prices
from gateway.core.charge import Charge, Line
from gateway.core.errors import GatewayFault, UpstreamError
from gateway.core.exchange import Call, Identity
from gateway.metering.settle import INTERRUPTED
from gateway.pipeline import Serving
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect
from gateway.providers.upstream import Endpoint, Header, Timeouts
from gateway.recorder import JournalRecorder, recover
from gateway.release.relay import Caller, DrainBounds, Drains
from gateway.stages import Admitted, Lane, Stages
from otel.journal import Bounds, JournalUnavailable, JournalWriter
from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.policy import Durability
from otel.journal.reader import Reader
from otel.journal.recovery import scan
from otel.journal.syncing import Done, SyncJob, do
from otel.shipper import Endpoint as CollectorEndpoint
from otel.shipper import Shipper
from tests.simulator.disk import Crash, Faults, SimDisk

ROOT = Path("/sim")
PATHS = ("/v1/chat/completions", "/v1/messages")
CONTENT = {
    PATHS[0]: b'data: {"id":"c","model":"m","choices":[{"delta":{"content":"%b"}}]}\n\n',
    PATHS[1]: b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"%b"}}\n\n',
}
TOKEN = b"word"
"""The simulated provider counts four bytes as one token, and says only this one."""
TOKENS_A_PIECE = 40
PIECE = TOKEN * TOKENS_A_PIECE
ENDS = (b"data: [DONE]\n\n", b'{"type":"message_stop"}\n\n', b"}}")
"""What the last piece of a whole answer ends with: the terminal event, or the usage of a JSON body."""
STALL_S = 5.0
"""A life takes milliseconds; one that takes this long waits for something that will not happen."""
HOUR_NS = 3600 * 10**9


class Ledger:
    """What provider, callers and Collector know: it is outside of the gateway and never lost."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()
        self.lost_power_after: dict[str, int] = {}
        self.reported: dict[str, int] = {}
        self.released: Counter[str] = Counter()
        self.ended: set[str] = set()
        self.accepted: list[bytes] = []
        self.requests = 0
        self.crashes = 0
        self.power_losses = 0
        self.stalls = 0


class SimSyncer:
    """Does each job some turns of the loop later, as a thread would; the order of jobs stays."""

    def __init__(self, files: Files, done: Done, rng: random.Random) -> None:
        self._files = files
        self._done = done
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._jobs: list[SyncJob] = []

    def submit(self, job: SyncJob) -> None:
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._later(self._rng.randrange(4))

    def _later(self, turns: int) -> None:
        self._loop.call_soon(self._later, turns - 1) if turns else self._loop.call_soon(self._run)

    def _run(self) -> None:
        if not self._jobs:
            return
        job = self._jobs.pop(0)
        try:
            failed = do(self._files, job)
            self._done(job, failed)
        except Crash:
            self._loop.stop()
            return
        if self._jobs:
            self._later(self._rng.randrange(4))

    def close(self) -> None:
        while self._jobs:  # each turn takes one away
            job = self._jobs.pop(0)
            self._done(job, do(self._files, job))


class Provider:
    """The simulated provider: counts each call, and sends what the request's plan says."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def send(
        self, method: bytes, endpoint: Endpoint, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> ProviderReply:
        request_id = dict(headers)[b"x-id"].decode()
        self._world.ledger.called[request_id] += 1
        await self._world.pause()
        if self._world.rng.random() < 0.03:
            raise UpstreamError("upstream_timeout", "late", status=504, retryable=True, sent=True)
        return ProviderReply(self._world, request_id, json.loads(body)["stream"], endpoint.target.decode())

    async def aclose(self) -> None:
        pass


class ProviderReply:
    def __init__(self, world: World, request_id: str, stream: bool, path: str) -> None:
        self._world = world
        rng = world.rng
        pieces = rng.randrange(1, 60) if rng.random() < 0.2 else rng.randrange(1, 6)
        tokens = pieces * TOKENS_A_PIECE
        self.status = 200
        self.headers = [(b"content-type", b"text/event-stream" if stream else b"application/json")]
        self._reads = list(_stream(path, pieces, tokens) if stream else [_whole(path, pieces, tokens)])
        if rng.random() < 0.05:
            self._reads = self._reads[: rng.randrange(len(self._reads) + 1)]
        elif rng.random() < 0.3:  # many events in one read
            self._reads = [b"".join(self._reads)]
        world.ledger.reported[request_id] = tokens

    async def read(self) -> bytes:
        await self._world.pause()
        return self._reads.pop(0) if self._reads else b""

    def close(self) -> None:
        pass


def _stream(path: str, pieces: int, tokens: int) -> Iterator[bytes]:
    if path == PATHS[1]:
        yield (
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"x","model":"m",'
            b'"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
        )
    for _ in range(pieces):
        yield CONTENT[path] % PIECE
    if path == PATHS[1]:
        yield (
            b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
            b'"usage":{"output_tokens":%d}}\n\n' % tokens
        )
        yield b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    else:
        usage = {"prompt_tokens": 7, "completion_tokens": tokens}
        yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def _whole(path: str, pieces: int, tokens: int) -> bytes:
    text = (PIECE * pieces).decode()
    if path == PATHS[1]:
        content = [{"type": "text", "text": text}]
        usage = {"input_tokens": 7, "output_tokens": tokens}
        return json.dumps({"id": "x", "model": "m", "content": content, "usage": usage}).encode()
    choices = [{"message": {"content": text}, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 7, "completion_tokens": tokens}
    return json.dumps({"id": "c", "model": "m", "choices": choices, "usage": usage}).encode()


class Client:
    """One caller: counts the text that it got, and whether it saw the end."""

    def __init__(self, world: World, request_id: str, *, patience: int) -> None:
        self._world = world
        self._id = request_id
        self._patience = patience
        self._status = 0

    async def receive(self) -> dict[str, Any]:
        if self._patience <= 0:
            return {"type": "http.disconnect"}
        await _Forever()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        await self._world.pause()
        if message["type"] == "http.response.start":
            self._status = message["status"]
            return
        if self._patience <= 0:
            return
        self._patience -= 1
        body: bytes = message["body"]
        ledger = self._world.ledger
        ledger.released[self._id] += body.count(TOKEN)
        if self._status == 200 and not message["more_body"] and body.endswith(ENDS):
            ledger.ended.add(self._id)


class _Forever:
    def __await__(self) -> Any:
        yield None


class Collector:
    """The simulated Collector, as the client that the shipper posts with."""

    def __init__(self, world: World) -> None:
        self._world = world

    @contextmanager
    def stream(self, method: str, url: str, *, content: bytes, headers: dict[str, str]) -> Iterator[Any]:
        self._world.disk._step("post")
        rng, ledger = self._world.rng, self._world.ledger
        chance = rng.random() if self._world.faulty else 1.0
        if chance < 0.1:
            raise httpx.ConnectError("away")
        if chance < 0.2:
            yield httpx.Response(503, headers={"retry-after": "1"}, content=b"")
            return
        spans = [item["scopeSpans"][0]["spans"][0] for item in json.loads(content)["resourceSpans"]]
        ledger.accepted += [json.dumps(span).encode() for span in spans]
        if chance < 0.3:
            raise httpx.ReadError("the answer was lost")
        self._world.disk._step("accepted")
        yield httpx.Response(200, content=b"{}")


class World:
    """A disk, and the lives on it.

    Args:
        seed: decides everything.
        lives: how many are ended by a crash; one more ends quietly.
        requests: in each life.
    """

    def __init__(self, seed: int, *, lives: int, requests: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.lives = lives
        self.requests = requests
        self.faults = Faults(self.rng, 0.0)
        self.disk = SimDisk(self.faults)
        self.ledger = Ledger()
        self.durability: Durability = self.rng.choice(("group", "group", "strict", "process"))
        self.faults.dooms = self.durability != "process"
        self.faulty = True
        self.now_ns = 1_800_000_000 * 10**9
        self.monotonic_ns = 10**9
        self.ids = itertools.count(1)

    def run(self) -> Ledger:
        """Live all lives; the last one is without faults and ships everything."""
        for _ in range(self.lives):
            self.faulty = True
            self.faults.error_rate = self.rng.choice((0.0, 0.0, 0.003, 0.03))
            self._live(self.rng.randrange(1, 20 * self.requests), self.requests)
            self.ledger.crashes += self.disk.dead
            if self.durability != "process" and self.rng.random() < 0.4:
                self._lose_power()
        self.faulty, self.faults.error_rate, self.faults.full_until = False, 0.0, -1
        self._live(None, 1)
        return self.ledger

    def _lose_power(self) -> None:
        self.ledger.power_losses += 1
        for request_id in self.ledger.called:
            self.ledger.lost_power_after.setdefault(request_id, self.ledger.released[request_id])
        self.disk.lose_power()

    # time

    def wall_ns(self) -> int:
        self.now_ns += self.rng.randrange(1, 10_000_000)
        if self.rng.random() < 0.001:
            self.now_ns += self.rng.choice((-HOUR_NS, HOUR_NS, 24 * HOUR_NS))
        return self.now_ns

    def duration_ns(self) -> int:
        self.monotonic_ns += self.rng.randrange(1, 20_000_000)
        return self.monotonic_ns

    async def pause(self) -> None:
        """Let others run for some turns; the process may die here, too."""
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        self.disk._step("pause")

    # one life

    def _live(self, crash_at: int | None, requests: int) -> None:
        self.disk.begin_life(crash_at)
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._life(requests))
        task.add_done_callback(lambda _: loop.stop())
        watch = loop.call_later(STALL_S, loop.stop)
        try:
            loop.run_forever()
            self.ledger.stalls += not task.done() and not self.disk.dead
            if task.done() and not task.cancelled() and (fault := task.exception()) is not None:
                raise fault
        except Crash:
            pass
        finally:
            watch.cancel()
            self._bury(loop)

    def _bury(self, loop: asyncio.AbstractEventLoop) -> None:
        """Throw away what a dead process had in memory; nothing of it may still act on the world."""
        dead, self.disk.dead = self.disk.dead, True
        for task in asyncio.all_tasks(loop):
            task.cancel()
            task.add_done_callback(lambda t: t.cancelled() or t.exception())
        loop.call_soon(loop.stop)
        for _ in range(3):
            loop.call_soon(loop.stop)
            try:
                loop.run_forever()
            except Crash:
                continue
        loop.close()
        self.disk.dead = dead

    async def _life(self, requests: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        disk, rng = self.disk, self.rng
        writer = JournalWriter(
            ROOT,
            boot=f"{rng.getrandbits(64):016x}",
            now_ns=self.wall_ns,
            segment_id=lambda: f"{rng.getrandbits(128):032x}",
            durability=self.durability,
            bounds=Bounds(segment_bytes_max=rng.choice((20_000, 200_000)), free_bytes_min=1),
            files=disk,
            syncer=lambda files, done: SimSyncer(files, done, rng),
        )
        recorder = JournalRecorder(writer, {"service.name": "spanbill"}, "cache_write")
        prices = Prices(charge=_charge, context_window=lambda target, reply, at: None)
        try:
            findings = scan(ROOT, disk)
            writer.open(findings.heads)
            await recover(ROOT, findings, writer, recorder, prices, lambda exchange, status: None, disk)
            cursor = Cursor(ROOT / "cursors" / "otlp.json", disk)
        except (OSError, JournalUnavailable):
            if not self.faulty:
                raise
            return  # the gateway could not start; the next life tries again
        shipper = self._shipper(cursor)
        stages = self._stages(recorder)
        running: set[asyncio.Task[None]] = set()
        for _ in range(requests):
            if self.faulty and rng.random() < 0.003 and self.faults.error_rate:
                self.faults.full_until = disk.operations + rng.randrange(400)
            running.add(asyncio.ensure_future(self._request(stages)))
            await self.pause()
            if len(running) >= 8 or rng.random() < 0.3:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if rng.random() < 0.05:
                writer.tend()
                _quietly(shipper.step)
        if running:
            for task in (await asyncio.wait(running))[0]:
                task.result()
        if self.faulty:
            writer.close()
            return
        writer.tend()
        await writer.durable(writer.number)
        writer.close()
        for _ in range(200):
            _quietly(shipper.step)
        assert not Reader(ROOT, Cursor(ROOT / "cursors" / "otlp.json", disk), disk).pending_bytes()

    def _shipper(self, cursor: Cursor) -> Shipper:
        return Shipper(
            Reader(ROOT, cursor, self.disk),
            cursor,
            CollectorEndpoint(
                url="http://c/v1/traces", headers={}, timeout_s=1, gzip=False, certificate=None
            ),
            quarantine=ROOT / "quarantine",
            client=Collector(self),  # type: ignore[arg-type]
            jitter=self.rng.random,
            now_ns=self.wall_ns,
            files=self.disk,
            lines_max=self.rng.choice((1, 7, 200)),
        )

    def _stages(self, recorder: JournalRecorder) -> Stages:
        return Stages(
            transport=Provider(self),
            recorder=recorder,
            prices=Prices(charge=_charge, context_window=lambda target, reply, at: None),
            observe=lambda exchange, status: None,
            span_id=lambda: f"{self.rng.getrandbits(63) + 1:016x}",
            now_ns=self.wall_ns,
            monotonic_ns=self.duration_ns,
            timeouts=Timeouts(),
            drains=Drains(DrainBounds(duration_ns=10**9, bytes_max=20_000, count_max=3)),
            reply_bytes_max=1 << 20,
        )

    async def _request(self, stages: Stages) -> None:
        rng, ledger = self.rng, self.ledger
        ledger.requests += 1
        request_id = f"r{next(self.ids)}"
        path, stream = rng.choice(PATHS), rng.random() < 0.6
        protocol = PROTOCOLS[path]
        body = json.dumps({"model": "m", "messages": [], "stream": stream, "max_tokens": 100_000}).encode()
        request = protocol.read_request(body)
        call = Call(
            record_id=request_id,
            trace_id=f"{rng.getrandbits(127) + 1:032x}",
            span_id=f"{rng.getrandbits(63) + 1:016x}",
            server_span_id=f"{rng.getrandbits(63) + 1:016x}",
            protocol=protocol.name,
            operation="chat",
            model="m",
            stream=stream,
            identity=Identity(
                key_id="k",
                user_id="alice",
                source="key",
                on_disconnect=rng.choice(("drain", "cancel")),
            ),
            started_unix_ns=self.wall_ns(),
            max_tokens=request.max_tokens,
            input_summary=request.summary,
        )
        lane = Lane(
            provider="p",
            model="m",
            prices="p",
            endpoint=Endpoint(scheme="http", host="h", port=1, target=path.encode()),
            dialect=Dialect(),
            headers=lambda headers, traceparent: [(b"x-id", request_id.encode())],
        )
        patience = rng.randrange(5) if rng.random() < 0.2 else 1_000_000
        client = Client(self, request_id, patience=patience)
        admitted = Admitted(
            call=call,
            request=request,
            protocol=protocol,
            lanes=(lane,),
            body=body,
            headers=[],
            ids=[],
            started_ns=self.duration_ns(),
            traceparent=lambda span_id: b"",
        )
        serving = Serving(stages, admitted, Caller(client.receive, client.send))
        try:
            await serving.serve()
        except (GatewayFault, UpstreamError):
            return
        except asyncio.CancelledError:
            serving.abandon(INTERRUPTED)
            raise


def _quietly(step: Callable[[], object]) -> None:
    try:
        step()
    except OSError:
        return


def _charge(target: object, reply: Any, at: int) -> Charge:
    counts = reply.usage.counts
    lines = tuple(
        Line(
            dimension=name,
            units=counts[name],
            rate_atto_per_million=10**18,
            cost_pico_usd=counts[name] * 1_000_000,
        )
        for name in ("input", "output")
    )
    return Charge(lines=lines, price_id="x", catalog="y")
