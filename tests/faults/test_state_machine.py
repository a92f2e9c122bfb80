"""Journal, recovery and shipper against a model, on a disk that keeps only what it must.

Whatever crashes, tears, fills up or answers oddly, and in which order: every intent has one bill after
recovery, what was promised is there, nothing is shipped that a power loss could still take, and in the end
the Collector has each bill.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.billing import Prices
from gateway.core.errors import GatewayFault
from gateway.core.exchange import Attempt, Call, Exchange, Identity, Progress, Reply
from gateway.recorder import JournalRecorder, recover
from otel.journal import Bounds, JournalUnavailable, JournalWriter
from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.lines import GENESIS, Damage, chain, lines_in, parse, previous_of, spans_of
from otel.journal.reader import Reader
from otel.journal.recovery import scan
from otel.journal.segments import MARKS, REVISER, SUFFIX, name_of
from otel.journal.syncing import Done, SyncJob, do
from otel.schema import encode_attribute
from otel.shipper import Endpoint, Shipper
from tests.faults.memory_files import SHORT, Killed, MemoryFiles
from tests.gateway_process import attributes

FOLDER = Path("/journal")
ENDPOINT = Endpoint(url="http://c/v1/traces", headers={}, timeout_s=1, gzip=False, certificate=None)
PRICES = Prices(charge=lambda *_: None, context_window=lambda *_: None)
NOON_NS = 20_000 * 86_400 * 10**9 + 43_200 * 10**9
ATTEMPT = Attempt(
    span_id="d" * 16, provider="p", model="m", host="h", port=1, path="/", started_unix_ns=1, ended_unix_ns=2
)
TURNS_MAX = 200
STEPS_MAX = 500
DESCRIPTORS_MAX = 40


class SyncByHand:
    """Syncs when told to, and answers then; `early` jobs are done when submitted and answered later."""

    def __init__(self, files: Files, done: Done, early: Callable[[], bool]) -> None:
        self._files = files
        self._done = done
        self._early = early
        self.waiting: collections.deque[SyncJob] = collections.deque()
        self.answers: collections.deque[tuple[SyncJob, OSError | None]] = collections.deque()

    def submit(self, job: SyncJob) -> None:
        self.waiting.append(job)
        if self._early():
            self._do_all()

    def soon(self, act: Callable[[], None]) -> None:
        act()

    def run_one(self) -> None:
        if not self.answers and self.waiting:
            job = self.waiting.popleft()
            self.answers.append((job, do(self._files, job)))
        if self.answers:
            self._done(*self.answers.popleft())

    def close(self) -> None:
        self._do_all()  # the loop hears of it later

    def _do_all(self) -> None:
        while self.waiting:  # each turn takes one away
            job = self.waiting.popleft()
            self.answers.append((job, do(self._files, job)))


class Collector:
    """Answers as told, and keeps what it took."""

    def __init__(self, machine: JournalMachine) -> None:
        self.machine = machine
        self.mode = "accept"
        self.taken: dict[str, list[bytes]] = collections.defaultdict(list)
        self.poison: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.mode == "503":
            return httpx.Response(503, headers={"retry-after": "7"})
        if self.mode == "garbage":
            return httpx.Response(200, text="<html>")
        spans = [bytes(raw) for raw in msgspec.json.decode(request.content, type=_Sent).resourceSpans]
        if self.mode == "413" and len(spans) > 1:
            return httpx.Response(413)
        if self.mode == "half":
            self.take(spans[: len(spans) // 2])
            raise httpx.RemoteProtocolError("closed")
        bad = [span for span in spans if key_of(span) in self.poison]
        if bad and self.mode == "400":
            return httpx.Response(400)
        self.take([span for span in spans if span not in bad])
        if self.mode == "closed":
            raise httpx.ReadError("closed")
        if self.mode == "killed":
            self.machine.files.kill_in = 0
        if bad:
            return httpx.Response(200, json={"partialSuccess": {"rejectedSpans": str(len(bad))}})
        return httpx.Response(200, json={})

    def take(self, spans: list[bytes]) -> None:
        for span in spans:
            if self.machine.durability != "process":
                assert self.machine.files.safe(span), "shipped, and a power loss could still take it"
            self.taken[key_of(span)].append(span)


class _Sent(msgspec.Struct):
    resourceSpans: list[msgspec.Raw]  # noqa: N815  # OTLP's own name


def bill_of(resource_spans: bytes) -> dict[str, Any]:
    return attributes(json.loads(resource_spans)["scopeSpans"][0]["spans"][0])


def key_of(resource_spans: bytes) -> str:
    """Return the id of a bill, or that of a revision's bill with the revision's number."""
    found = bill_of(resource_spans)
    return str(found.get("billing.record.id") or revision_key(found))


def revision_key(found: dict[str, Any]) -> str:
    return f"{found['billing.revision.of']}#{found['billing.revision.number']}"


def revision_body(record_id: str, number: int) -> str:
    of, n = [
        encode_attribute(name, value)
        for name, value in (("billing.revision.of", record_id), ("billing.revision.number", number))
    ]
    return f'{{"scopeSpans":[{{"spans":[{{"spanId":"{number:016x}","attributes":[{of},{n}]}}]}}]}}'


class JournalMachine(RuleBasedStateMachine):
    """The model: what was accepted, and what was promised."""

    @initialize(
        seed=st.integers(0, 2**32),
        durability=st.sampled_from(["group", "group", "strict", "process"]),
        segment_bytes_max=st.sampled_from([4096, 16_384, 1 << 26]),
    )
    def begin(self, seed: int, durability: str, segment_bytes_max: int) -> None:
        self.files = MemoryFiles(seed)
        self.durability: Any = durability
        self.bounds = Bounds(segment_bytes_max=segment_bytes_max)
        self.now_ns = NOON_NS
        self.loop = asyncio.new_event_loop()
        self.collector = Collector(self)
        self.ids = itertools.count(1)
        self.up = False
        self.early = False
        self.boots = 0
        self.calls: dict[str, Call] = {}
        self.released: dict[str, int] = {}
        self.refused: set[str] = set()
        self.accepted: set[str] = set()
        self.billed: set[str] = set()
        self.promised: set[tuple[str, str]] = set()
        self.waits: list[tuple[str, str, asyncio.Task[None]]] = []
        self.lossy = False
        self.boot()

    # the gateway's life

    def boot(self) -> None:
        self.boots += 1
        self.syncer: SyncByHand | None = None
        self.writer = JournalWriter(
            FOLDER,
            boot=f"{self.boots:08x}",
            now_ns=lambda: self.now_ns,
            segment_id=lambda: f"{next(self.ids):032x}",
            durability=self.durability,
            bounds=self.bounds,
            files=self.files,
            syncer=self.make_syncer,
        )
        self.recorder = JournalRecorder(self.writer, {"service.name": "model"}, "cache_write")
        try:
            self.loop.run_until_complete(self.open_and_recover())
            cursor = Cursor(FOLDER / "cursors" / "otlp.json", self.files)
        except (OSError, JournalUnavailable, Killed):
            self.end()
            return
        self.shipper = Shipper(
            Reader(FOLDER, cursor, self.files),
            cursor,
            ENDPOINT,
            quarantine=FOLDER / "quarantine",
            client=httpx.Client(transport=httpx.MockTransport(self.collector)),
            jitter=lambda: 0.0,
            now_ns=lambda: self.now_ns,
            files=self.files,
            lines_max=4,
        )
        self.up = True
        self.check_recovered()

    def make_syncer(self, files: Files, done: Done) -> SyncByHand:
        self.syncer = SyncByHand(files, done, lambda: self.early)
        return self.syncer

    async def open_and_recover(self) -> None:
        findings = scan(FOLDER, self.files)
        self.writer.open(findings.heads)
        await self.pumped(
            recover(
                FOLDER,
                findings,
                self.writer,
                self.recorder,
                PRICES,
                lambda exchange, status: None,
                self.files,
            ),
            lambda: self.syncer,
        )

    async def pumped(self, work: Awaitable[Any], syncer: Callable[[], SyncByHand | None]) -> None:
        task = asyncio.ensure_future(work)
        for _ in range(TURNS_MAX):
            await asyncio.sleep(0)
            if task.done():
                break
            by_hand = syncer()
            assert by_hand is not None
            try:
                by_hand.run_one()
            except Killed:
                task.cancel()
                raise
        await task

    def end(self, *, power: bool = False) -> None:
        """End the process where it stands."""
        self.up = False
        for _, _, task in self.waits:
            task.cancel()
        self.waits = []
        self.loop.run_until_complete(asyncio.sleep(0))
        if power and self.durability != "process":
            self.lossy = True
            self.files.cut_power()
        else:
            self.files.crash()

    @contextlib.contextmanager
    def living(self) -> Any:
        """Do one thing as the gateway: it may die of it."""
        try:
            yield
            self.turn()
        except Killed:
            self.end()

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))
        left = []
        for kind, record_id, task in self.waits:
            if not task.done():
                left.append((kind, record_id, task))
            elif task.exception() is None:
                self.promised.add((kind, record_id))
            elif not isinstance(task.exception(), GatewayFault):
                raise Killed
        self.waits = left

    def wait_for(self, kind: str, record_id: str, number: int) -> None:
        self.waits.append((kind, record_id, self.loop.create_task(self.recorder.durable(number))))

    # requests

    @precondition(lambda self: self.up)
    @rule(poison=st.sampled_from([False, False, False, True]))
    def intent(self, poison: bool) -> None:
        self.begin_one(poison=poison)

    def begin_one(self, *, poison: bool) -> None:
        record_id = f"r{next(self.ids)}"
        call = self.calls[record_id] = Call(
            record_id=record_id,
            trace_id="a" * 32,
            span_id=f"{next(self.ids):016x}",
            server_span_id="c" * 16,
            protocol="chat_completions",
            operation="chat",
            model="m",
            stream=True,
            identity=Identity(key_id="k", user_id="u", source="key"),
            started_unix_ns=self.now_ns,
        )
        if poison:
            self.collector.poison.add(record_id)
        with self.living():
            try:
                number = self.recorder.intent(call)
            except GatewayFault as fault:
                if fault.owed:
                    self.settle_one(record_id)
                else:
                    self.refused.add(record_id)
            else:
                self.accepted.add(record_id)
                self.wait_for("I", record_id, number)

    def unbilled(self) -> list[str]:
        return sorted(self.accepted - self.billed, key=lambda record_id: int(record_id[1:]))

    @precondition(lambda self: self.up and self.accepted - self.billed)
    @rule(which=st.integers(0, 10**6))
    def progress(self, which: int) -> None:
        ids = self.unbilled()
        record_id = ids[which % len(ids)]
        events = self.released.get(record_id, 0) + 1
        reply = Reply(output_summary={"events": events})
        with self.living(), contextlib.suppress(GatewayFault):
            self.recorder.progress(
                self.calls[record_id],
                Progress(at_unix_ns=self.now_ns, prices="p", attempt=ATTEMPT, reply=reply),
            )
            self.released[record_id] = events

    @precondition(lambda self: self.up and self.accepted - self.billed)
    @rule(which=st.integers(0, 10**6))
    def settle(self, which: int) -> None:
        ids = self.unbilled()
        with self.living():
            self.settle_one(ids[which % len(ids)])

    def settle_one(self, record_id: str) -> None:
        self.billed.add(record_id)
        exchange = Exchange(
            call=self.calls[record_id],
            attempts=(),
            reply=Reply(),
            outcome="ok",
            status="unmetered",
            ended_unix_ns=self.now_ns,
            latency_ns=1,
        )
        self.wait_for("S", record_id, self.recorder.settle(exchange))

    @precondition(lambda self: self.up and self.billed)
    @rule(which=st.integers(0, 10**6), count=st.integers(1, 3))
    def revise(self, which: int, count: int) -> None:
        """Write revisions beside the gateway, as another writer that then ends."""
        bills = sorted(self.billed)
        made: list[SyncByHand] = []

        def make_syncer(files: Files, done: Done) -> SyncByHand:
            made.append(SyncByHand(files, done, lambda: False))
            return made[0]

        writer = JournalWriter(
            FOLDER,
            boot=f"{REVISER}{next(self.ids):08x}",
            now_ns=lambda: self.now_ns,
            segment_id=lambda: f"{next(self.ids):032x}",
            durability=self.durability,
            bounds=self.bounds,
            files=self.files,
            syncer=make_syncer,
        )
        numbers = [next(self.ids) for _ in range(count)]
        record_id = bills[which % len(bills)]

        async def write() -> None:
            for number in numbers:
                newest = writer.append("R", record_id, revision_body(record_id, number))
            await self.pumped(writer.durable(newest), lambda: made[0])
            self.promised.update(("R", f"{record_id}#{number}") for number in numbers)

        with self.living(), contextlib.suppress(OSError, JournalUnavailable):
            with contextlib.suppress(OSError, JournalUnavailable):
                writer.open()
                self.loop.run_until_complete(write())
            writer.close()

    @precondition(lambda self: self.up)
    @rule(count=st.integers(1, 4))
    def serve(self, count: int) -> None:
        for _ in range(count):
            if self.up:
                self.begin_one(poison=False)
            if self.up and self.unbilled():
                with self.living():
                    self.settle_one(self.unbilled()[-1])
            if self.up:
                self.run_syncs(2)

    @precondition(lambda self: self.up)
    @rule(count=st.sampled_from([1, 1, 3, 50]))
    def sync(self, count: int) -> None:
        self.run_syncs(count)

    def run_syncs(self, count: int) -> None:
        with self.living():
            for _ in range(count):
                assert self.syncer is not None
                self.syncer.run_one()
                self.turn()

    @precondition(lambda self: self.up)
    @rule(passes_s=st.sampled_from([0, 1, 5, -3600, 3600, 86_400]))
    def tend(self, passes_s: int) -> None:
        self.now_ns += passes_s * 10**9
        with self.living():
            self.writer.tend()

    # faults

    @rule(
        operation=st.sampled_from(
            [
                "write",
                "write",
                "sync",
                "sync",
                "create",
                "reserve",
                "sync_directory",
                "replace",
                "append",
                "mark",
            ]
        ),
        code=st.sampled_from([errno.EIO, errno.ENOSPC, SHORT]),
        count=st.sampled_from([1, 2, 4]),
    )
    def break_disk(self, operation: str, code: int, count: int) -> None:
        if operation == "sync":
            if self.durability == "process":
                return
            self.lossy = True
        if code == SHORT and operation != "write":
            code = errno.EIO
        self.files.broken[operation] = [code] * count

    @rule(room=st.sampled_from([0, 500, 9_000, 20_000, 1 << 40, 1 << 40]))
    def fill(self, room: int) -> None:
        self.files.capacity = self.files.used + room

    @rule(evicts=st.booleans(), early=st.booleans())
    def habits(self, evicts: bool, early: bool) -> None:
        self.early = early
        self.files.evicts = evicts

    @precondition(lambda self: self.up)
    @rule(how=st.sampled_from(["kill", "power", "stop", "die_in"]), operations=st.integers(0, 12))
    def end_somehow(self, how: str, operations: int) -> None:
        if how == "stop":
            self.stop()
        elif how == "die_in":
            self.files.kill_in = operations
        else:
            self.end(power=how == "power")

    def stop(self) -> None:
        with self.living():
            self.writer.close()
            self.turn()
            assert self.syncer is not None
            while self.syncer.answers:  # each turn takes one away
                self.syncer.run_one()
            self.turn()
            assert not self.waits, "who waits at the end must be told"
            self.end()

    @precondition(lambda self: not self.up)
    @rule(kill_in=st.none() | st.integers(0, 40))
    def start(self, kill_in: int | None) -> None:
        self.files.kill_in = kill_in
        self.boot()

    # delivery

    @precondition(lambda self: self.up)
    @rule(
        mode=st.sampled_from(["accept", "accept", "503", "garbage", "413", "400", "half", "closed", "killed"])
    )
    def ship(self, mode: str) -> None:
        self.collector.mode = mode
        with self.living(), contextlib.suppress(OSError):
            self.shipper.step()

    # what must hold

    def lines(self) -> dict[str, list[bytes]]:
        """Return all whole records by writer, copies included, in the order of the segments."""
        found: dict[str, list[bytes]] = collections.defaultdict(list)
        for path in self.files.paths():
            if path.suffix != SUFFIX or not path.parent.name[:1].isdigit():
                continue
            for item in lines_in(self.files.contents(path)):
                if not isinstance(item, Damage) and not item[1].startswith(b'{"j":{"k":"H"'):
                    found[name_of(path).writer].append(item[1])
        return found

    def check_recovered(self) -> None:
        everything = self.lines()
        bills: dict[str, set[bytes]] = collections.defaultdict(set)
        intents = set()
        revisions: dict[str, set[bytes]] = collections.defaultdict(set)
        for lines in everything.values():
            self.check_chain(lines)
            for line in lines:
                record = parse(line)
                if record.k == "S":
                    bills[record.id].add(spans_of(line) or b"")
                elif record.k == "I":
                    intents.add(record.id)
                elif record.k == "R":
                    spans = spans_of(line) or b""
                    revisions[key_of(spans)].add(spans)
        assert all(len(found) == 1 for found in bills.values()), "two different bills of one request"
        assert intents <= set(bills), "an intent without a bill after recovery"
        for kind, record_id in self.promised:
            held = {"S": bills, "I": intents, "R": revisions}[kind]
            assert record_id in held, f"promised and lost: {kind} {record_id}"
        outcomes = {record_id: bill_of(next(iter(found))) for record_id, found in bills.items()}
        for kind, record_id in self.promised:
            if kind == "S":
                assert outcomes[record_id]["billing.outcome"] == "ok", "a bill was replaced by recovery's"
        if not self.lossy:
            assert self.accepted <= set(bills), "accepted, a provider called, and no bill"
            for record_id, events in self.released.items():
                bill = outcomes[record_id]
                if bill["billing.outcome"] == "interrupted":
                    assert bill["billing.output.summary.events"] >= events, "released and not billed"
        assert not self.refused & (set(bills) | intents), "refused, and billed all the same"
        self.billed |= set(bills)
        self.accepted &= set(bills)
        marks = [path.name for path in self.files.paths() if path.parent.name == MARKS]
        assert marks == [self.writer.name], "a dead writer was not retired"

    def check_chain(self, lines: list[bytes]) -> None:
        by_number: dict[int, bytes] = {}
        for line in lines:
            assert by_number.setdefault(parse(line).n, line) == line, "one number, two records"
        numbers = sorted(by_number)
        if not self.lossy:
            assert numbers == list(range(1, len(numbers) + 1)), "a gap in the sequence"
        for number in numbers:
            before = by_number.get(number - 1)
            if before is not None:
                assert previous_of(by_number[number]) == chain(before + b"\n"), "the chain is broken"
            elif number == 1:
                assert previous_of(by_number[number]) == GENESIS

    @invariant()
    def descriptors_are_bounded(self) -> None:
        assert self.files.open_fds <= DESCRIPTORS_MAX

    def teardown(self) -> None:
        """Heal everything: then each bill must come to the Collector, or stand in quarantine."""
        if not hasattr(self, "files"):
            return
        try:
            self.end()
            self.check_all_arrives()
        finally:
            self.loop.close()

    def check_all_arrives(self) -> None:
        self.files.capacity = 1 << 40
        self.files.evicts = self.early = False
        self.boot()
        assert self.up
        self.collector.mode = "accept"
        for _ in range(STEPS_MAX):
            if self.shipper.step() > 0:
                break
        bills = {
            key_of(spans): spans
            for lines in self.lines().values()
            for line in lines
            if (spans := spans_of(line)) is not None
        }
        aside = self.quarantined()
        assert set(self.collector.taken) | set(aside) == set(bills), "a bill is at nobody's"
        assert set(aside) <= self.collector.poison
        for record_id, copies in self.collector.taken.items():
            assert set(copies) == {bills[record_id]}, "a copy differs from the journal"
        assert set(aside.values()) <= {1}, "put aside twice"
        self.end()

    def quarantined(self) -> dict[str, int]:
        path = FOLDER / "quarantine" / "refused.jsonl"
        if path not in self.files.paths():
            return {}
        lines = [json.loads(line) for line in self.files.contents(path).splitlines()]
        return collections.Counter(key_of(json.dumps(line["resourceSpans"][0]).encode()) for line in lines)


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(
    max_examples=1000,
    stateful_step_count=60,
    deadline=None,
    phases=[Phase.generate],  # the steps of the failing example are printed; shrinking takes minutes
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
