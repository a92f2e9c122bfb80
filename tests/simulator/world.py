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
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from gateway.billing import Prices
from gateway.core.charge import Charge, Line
from gateway.core.errors import GatewayFault, UpstreamError
from gateway.core.exchange import Call, Identity
from gateway.metering.settle import INTERRUPTED
from gateway.pipeline import Serving
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect
from gateway.providers.upstream import Endpoint, Timeouts
from gateway.recorder import JournalRecorder, recover
from gateway.release.relay import Caller, DrainBounds, Drains
from gateway.routing.choosing import Chooser
from gateway.routing.cooldown import Rules
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
from tests.simulator.disk import Crash
from tests.simulator.parties import PATHS, Client, Collector, Ledger, Provider, Surroundings

ROOT = Path("/sim")
STALL_S = 20.0
"""A life takes milliseconds; one that takes this long waits for something that will not happen."""
STEPS_MAX = 200
"""Steps of the shipper that deliver any world; each one delivers up to fifty batches."""
HOUR_NS = 3600 * 10**9
MORNING_S = 1_800_000_000
"""Eight o'clock, UTC."""
EVENING_S = MORNING_S + 57_590
"""Ten seconds before midnight: here a clock that is set back goes to the day before."""


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

    def soon(self, act: Callable[[], None]) -> None:
        def acted() -> None:
            try:
                act()
            except Crash:  # a loop goes on after a callback's fault; a dead process does not
                self._loop.stop()

        self._loop.call_soon(acted)

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


class Worker(NamedTuple):
    """One writer, and what serves requests with it."""

    writer: JournalWriter
    stages: Stages


class World(Surroundings):
    """A disk, and the lives on it.

    Args:
        seed: decides everything.
        lives: how many are ended by a crash; one more ends quietly.
        requests: in each life.
    """

    def __init__(self, seed: int, *, lives: int, requests: int) -> None:
        super().__init__(seed)
        self.lives = lives
        self.requests = requests
        self.durability: Durability = self.rng.choice(("group", "group", "strict", "process"))
        self.faults.dooms = self.promises = self.durability != "process"
        self.now_ns = self.rng.choice((MORNING_S, EVENING_S)) * 10**9
        self.monotonic_ns = 10**9
        self.ids = itertools.count(1)

    def run(self) -> Ledger:
        """Live all lives; the last one is without faults and ships everything."""
        for _ in range(self.lives):
            self.faulty = True
            self.faults.error_rate = self.rng.choice((0.0, 0.0, 0.003, 0.03))
            soon = self.rng.random() < 0.3  # while it recovers
            self._live(self.rng.randrange(1, 40 if soon else 20 * self.requests), self.requests)
            self.ledger.crashes += self.disk.dead
            if self.durability != "process" and self.rng.random() < 0.4:
                self._lose_power()
        self.faulty, self.faults.error_rate, self.faults.full_for = False, 0.0, 0
        self._live(None, 1)
        return self.ledger

    def _lose_power(self) -> None:
        self.ledger.power_losses += 1
        for request_id in self.ledger.called:
            self.ledger.lost_power_after.setdefault(request_id, self.ledger.released[request_id])
        self.disk.lose_power()

    def digest(self) -> str:
        """Return one hash of all that has happened."""
        ledger = self.ledger
        facts = {**vars(ledger), "ended": sorted(ledger.ended), "fired": self.faults.fired}
        digest = blake2b(repr((facts, self.disk.operations)).encode(), digest_size=16)
        for path, file in sorted(self.disk.files.items()):
            digest.update(f"{path} {file.synced}".encode() + file.data)
        return digest.hexdigest()

    # time

    def wall_ns(self) -> int:
        self.now_ns += self.rng.randrange(1, 10_000_000)
        if self.rng.random() < 0.002:
            self.ledger.clock_jumps += 1
            self.now_ns += self.rng.choice((-24, -1, 1, 24)) * HOUR_NS
        return self.now_ns

    def duration_ns(self) -> int:
        self.monotonic_ns += self.rng.randrange(1, 20_000_000)
        return self.monotonic_ns

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
        chance = self.rng.getstate()  # the dead are buried in no order
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
        self.rng.setstate(chance)

    async def _life(self, requests: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        disk, rng = self.disk, self.rng
        try:
            workers = [await self._worker(0)]
            cursor = Cursor(ROOT / "cursors" / "otlp.json", disk)
        except (OSError, JournalUnavailable):
            if not self.faulty:
                raise
            return  # the gateway could not start; the next life tries again
        shipper = self._shipper(cursor)
        joins_at = rng.randrange(3 * requests) if self.faulty else -1
        running: set[asyncio.Task[None]] = set()
        for turn in range(requests):
            if turn == joins_at:
                await self._join(workers)
            if self.faults.error_rate and rng.random() < 0.03:
                self.faults.fill(rng.randrange(rng.choice((10, 30, 100, 400))))
            if rng.random() < 0.3:
                self.now_ns += rng.randrange(5 * 10**9)  # a quiet while: a writer tries its disk again
            running.add(asyncio.ensure_future(self._request(rng.choice(workers).stages)))
            await self.pause()
            if len(running) >= 8 or rng.random() < 0.3:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if rng.random() < 0.05:
                for worker in workers:
                    worker.writer.tend()
                _quietly(shipper.step)
        if running:
            for task in (await asyncio.wait(running))[0]:
                task.result()
        for worker in workers:
            if not self.faulty:
                worker.writer.tend()
                await worker.writer.durable(worker.writer.number)
            if len(worker.writer._open):
                self.ledger.broken.append(f"{worker.writer.name}: an intent stays open, and nobody serves it")
            worker.writer.close()
        if self.faulty:
            return
        for _ in range(STEPS_MAX):
            if shipper.step() > 0:
                break  # all is delivered
        assert not Reader(ROOT, Cursor(ROOT / "cursors" / "otlp.json", disk), disk).pending_bytes()

    async def _worker(self, index: int) -> Worker:
        """Start a writer as a gateway does: look for the dead, open, and bill what they left."""
        disk, rng = self.disk, self.rng
        writer = JournalWriter(
            ROOT,
            boot=f"{rng.getrandbits(64):016x}",
            worker=index,
            now_ns=self.wall_ns,
            segment_id=lambda: f"{rng.getrandbits(128):032x}",
            durability=self.durability,
            bounds=Bounds(segment_bytes_max=rng.choice((6_000, 20_000, 200_000)), free_bytes_min=1),
            files=disk,
            syncer=lambda files, done: SimSyncer(files, done, rng),
        )
        recorder = JournalRecorder(writer, {"service.name": "spanbill"}, "cache_write")
        prices = Prices(charge=_charge, context_window=lambda target, reply, at: None)
        findings = scan(ROOT, disk)
        try:
            writer.open(findings.heads)
            await recover(ROOT, findings, writer, recorder, prices, lambda exchange, status: None, disk)
        except (OSError, JournalUnavailable):
            writer.close()
            raise
        return Worker(writer, self._stages(recorder))

    async def _join(self, workers: list[Worker]) -> None:
        """Start a second writer while the first has requests in hand."""
        try:
            workers.append(await self._worker(1))
            self.ledger.joined += 1
        except (OSError, JournalUnavailable):
            return  # it could not start; the first goes on alone

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
            transport=Provider(self),  # type: ignore[arg-type]  # its replies come from memory
            recorder=recorder,
            prices=Prices(charge=_charge, context_window=lambda target, reply, at: None),
            observe=lambda exchange, status: None,
            span_id=lambda: f"{self.rng.getrandbits(63) + 1:016x}",
            now_ns=self.wall_ns,
            monotonic_ns=self.duration_ns,
            timeouts=Timeouts(),
            drains=Drains(DrainBounds(duration_ns=10**9, bytes_max=20_000, count_max=3)),
            reply_bytes_max=1 << 20,
            chooser=Chooser(Rules(), 300.0, lambda: 0.5),
            toss=lambda: 0.5,
            pause=asyncio.sleep,
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
