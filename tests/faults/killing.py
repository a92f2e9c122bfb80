"""Killing: lives of a gateway in processes that die by SIGKILL at named points, and what is left of them.

    tests ──one scenario a line──▶ this process ──fork──▶ a life: scan, recover, serve, ship, close
                                        │                      │ SIGKILL at a point
                                        │◀─────────────────────┘
                                        └─ the next life … a clean life, the audit ─▶ one report a line

The process that forks has one thread and everything imported, so that a life costs milliseconds. What the
provider, the callers and the Collector saw stands in files that they append to with one write each: it
outlives the life that is killed, and none of it is the gateway's.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from gateway.billing import Prices, Target
from gateway.core.charge import Charge
from gateway.core.exchange import Call, Exchange, Identity, Reply
from gateway.pipeline import Serving
from gateway.pricing.catalogue import Catalogue, packaged_rates
from gateway.pricing.rating import charge
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect
from gateway.providers.upstream import Endpoint as Provider
from gateway.providers.upstream import Header, Timeouts, UpstreamReply
from gateway.recorder import JournalRecorder, recover
from gateway.release.relay import Caller, DrainBounds, Drains
from gateway.routing.choosing import Chooser
from gateway.routing.cooldown import Rules
from gateway.stages import Admitted, Lane, Stages
from otel.journal import Bounds, Durability, JournalWriter
from otel.journal.cursor import Cursor
from otel.journal.reader import Reader
from otel.journal.recovery import scan
from otel.journal.segments import locked
from otel.shipper import Endpoint, Shipper
from tests.faults.kill_audit import Facts, audit, facts_of
from tests.faults.kill_points import PointFiles, Points, Watch
from tests.gateway_process import attributes, spans_in

LIFE_S: Final = 30
"""A life that has not ended by then hangs."""
SEGMENT_BYTES: Final = 12 * 1024
"""Small, so that a handful of requests fills several segments and intents stay open across them."""
STEPS_MAX: Final = 50
NS: Final = 1_000_000_000
NOON_NS: Final = 20_454 * 86_400 * NS + 43_200 * NS
MIDNIGHT_NS: Final = 20_455 * 86_400 * NS
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
MODELS: Final = {CHAT: ("openai", "gpt-4o-mini"), MESSAGES: ("anthropic", "claude-sonnet-4-0")}
INPUT_TOKENS: Final = 11


class Kill(msgspec.Struct, frozen=True):
    """Where a life ends: at the `nth` passing (from 1) of `point`."""

    point: str
    nth: int = 1


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a life.

    Args:
        tokens: how many the provider makes, one a content event.
        leaves_after: after how many sends its caller leaves; None if it stays.
    """

    path: str = CHAT
    stream: bool = True
    tokens: int = 60
    leaves_after: int | None = None


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """One process: the requests that it serves, all at once, in two halves; `kill` None lets it end well."""

    asks: tuple[Ask, ...]
    kill: Kill | None = None


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """Successive lives on one folder; the last one is clean."""

    name: str
    lives: tuple[Life, ...]
    durability: Durability = "group"
    tick_ns: int = 1_000_000
    over_midnight: bool = False


class Report(msgspec.Struct, kw_only=True):
    """What became of a scenario.

    Args:
        killed: for each life the point at which it was killed, None if it ended by itself.
        passed: for each life that ended by itself how often it passed each point.
        wrong: what the audit found, for people.
    """

    name: str
    killed: list[str | None] = []
    passed: list[dict[str, int]] = []
    wrong: list[str] = []
    facts: Facts | None = None


class Log:
    """A file that each event is appended to with one write: a killed process loses none of it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, event: dict[str, Any]) -> None:
        data = json.dumps(event).encode() + b"\n"
        assert os.write(self._fd, data) == len(data)


# the provider


def answer(path: str, record_id: str, ask: Ask) -> list[bytes]:
    """Return what the provider says, in the pieces that arrive; the last one ends it."""
    model = MODELS[path][1]
    if path == CHAT:
        usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": ask.tokens}
        if not ask.stream:
            text = "".join(f"word{n:04d} " for n in range(ask.tokens))
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return _halves({"id": record_id, "model": model, "choices": [choice], "usage": usage})
        frame = {"id": record_id, "object": "chat.completion.chunk", "created": 1, "model": model}
        events = [
            _data({**frame, "choices": [{"index": 0, "delta": {"content": f"word{n:04d} "}}], "usage": None})
            for n in range(ask.tokens)
        ]
        end = _data({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        return [*_pairs(events), end, _data({**frame, "choices": [], "usage": usage}) + b"data: [DONE]\n\n"]
    if not ask.stream:
        text = "".join(f"word{n:04d} " for n in range(ask.tokens))
        content = [{"type": "text", "text": text}]
        spent = {"input_tokens": INPUT_TOKENS, "output_tokens": ask.tokens}
        return _halves(
            {"type": "message", "id": record_id, "model": model, "content": content, "usage": spent}
        )
    begun = {"input_tokens": INPUT_TOKENS, "output_tokens": 1}
    start = {"id": record_id, "type": "message", "role": "assistant", "model": model, "content": []}
    block = {"type": "text", "text": ""}
    deltas = [
        _event("content_block_delta", index=0, delta={"type": "text_delta", "text": f"word{n:04d} "})
        for n in range(ask.tokens)
    ]
    return [
        _event("message_start", message={**start, "usage": begun}),
        _event("content_block_start", index=0, content_block=block),
        *_pairs(deltas),
        _event("content_block_stop", index=0),
        _event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": ask.tokens})
        + _event("message_stop"),
    ]


def _data(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _event(kind: str, **members: object) -> bytes:
    return b"event: " + kind.encode() + b"\n" + _data({"type": kind, **members})


def _pairs(events: list[bytes]) -> list[bytes]:
    return [b"".join(events[at : at + 2]) for at in range(0, len(events), 2)]


def _halves(value: object) -> list[bytes]:
    data = json.dumps(value).encode()
    return [data[: len(data) // 2], data[len(data) // 2 :]]


class Upstream:
    """A provider behind the transport's interface that counts its calls in a file."""

    def __init__(self, points: Points, watch: Watch, log: Log, asks: dict[str, Ask]) -> None:
        self._points = points
        self._watch = watch
        self._log = log
        self._asks = asks

    async def send(
        self, method: bytes, endpoint: Provider, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> UpstreamReply:
        record_id = dict(headers)[b"traceparent"].decode()
        self._points.hit("upstream.before")
        self._watch.calling(record_id)
        ask = self._asks[record_id]
        self._log.add({"id": record_id, "input": INPUT_TOKENS, "output": ask.tokens})
        self._points.hit("upstream.called")
        await asyncio.sleep(0)
        self._points.hit("upstream.head")
        return UpstreamAnswer(self._points, ask.stream, answer(ask.path, record_id, ask))

    async def aclose(self) -> None:
        pass


class UpstreamAnswer:
    status = 200

    def __init__(self, points: Points, stream: bool, pieces: list[bytes]) -> None:
        self.headers: Sequence[Header] = [
            (b"content-type", b"text/event-stream" if stream else b"application/json")
        ]
        self._points = points
        self._pieces = pieces
        self._stream = stream

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if not self._pieces:
            self._points.hit("upstream.after_last_byte_before_settle_write")
        elif self._stream:
            self._points.hit("stream.mid")
        return piece

    def close(self) -> None:
        pass


# the caller


class Client:
    """A caller behind the ASGI pair that notes in a file what it received."""

    def __init__(self, points: Points, watch: Watch, log: Log, record_id: str, ask: Ask) -> None:
        self._points = points
        self._watch = watch
        self._log = log
        self._id = record_id
        self._ask = ask
        self._status = 0
        self._sends = 0
        self._bytes = 0

    async def receive(self) -> dict[str, Any]:
        leaves = self._ask.leaves_after
        if leaves is not None and self._sends >= leaves:
            return {"type": "http.disconnect"}
        await _Forever()
        raise AssertionError("nobody wakes this")

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            return
        data, more = message["body"], message["more_body"]
        self._sends += 1
        self._bytes += len(data)
        ends = not more and self._status == 200
        if ends:
            self._points.hit("settle.synced_before_release")
            self._watch.ending(self._id)
        else:
            self._points.hit("release.before")
            if self._ask.stream:
                self._watch.releasing(self._id, self._bytes)
        complete = ends and (not self._ask.stream or b"[DONE]" in data or b"message_stop" in data)
        tokens = self._ask.tokens if complete and not self._ask.stream else content_events(data)
        self._log.add({"id": self._id, "bytes": len(data), "tokens": tokens, "end": complete})
        self._points.hit("after_release" if ends else "release.after")


def content_events(data: bytes) -> int:
    return data.count(b'"content":"word') + data.count(b'"text_delta"')


class _Forever:
    def __await__(self) -> Any:
        yield None


# a life


class Process:
    """One life of a gateway on `folder`, number `index` of its scenario; `live` tells it."""

    def __init__(self, folder: Path, scenario: Scenario, index: int, prices: Prices) -> None:
        life = scenario.lives[index]
        self._index = index
        self._life = life
        self._directory = folder / "journal"
        self.points = Points(None, 0) if life.kill is None else Points(life.kill.point, life.kill.nth)
        self._watch = Watch(scenario.durability)
        self._files = PointFiles(self.points, self._watch)
        self._asks: dict[str, Ask] = {}
        self._client_log = Log(folder / "client.jsonl")
        self._collector_log = Log(folder / "collector.jsonl")
        begin = MIDNIGHT_NS - 40 * scenario.tick_ns if scenario.over_midnight else NOON_NS
        wall = itertools.count(begin + index * 60 * NS, scenario.tick_ns)
        monotonic = itertools.count(NS, scenario.tick_ns)
        ids = itertools.count(1)
        self._now_ns: Callable[[], int] = lambda: next(wall)
        self._writer = JournalWriter(
            self._directory,
            boot=f"{index + 1:016x}",
            now_ns=self._now_ns,
            segment_id=lambda: f"{index:016x}{next(ids):016x}",
            durability=scenario.durability,
            bounds=Bounds(segment_bytes_max=SEGMENT_BYTES),
            files=self._files,
        )
        self._recorder = JournalRecorder(self._writer, {"service.name": "spanbill"}, "cache_write")
        self._stages = Stages(
            transport=Upstream(self.points, self._watch, Log(folder / "upstream.jsonl"), self._asks),
            recorder=self._recorder,
            prices=prices,
            observe=_nobody,
            span_id=lambda: f"{index:08x}{next(ids):08x}",
            now_ns=self._now_ns,
            monotonic_ns=lambda: next(monotonic),
            timeouts=Timeouts(),
            drains=Drains(DrainBounds(duration_ns=3600 * NS, bytes_max=1 << 20, count_max=10)),
            reply_bytes_max=1 << 20,
            chooser=Chooser(Rules(), 300.0, lambda: 0.5),
            toss=lambda: 0.5,
            pause=asyncio.sleep,
        )

    async def live(self) -> None:
        """Do what the gateway's lifespan does, with a handful of requests in the middle of it."""
        files, writer, points = self._files, self._writer, self.points
        with locked(self._directory):
            findings = scan(self._directory, files)
            points.hit("recovery.scanned")
            writer.open(findings.heads)
            files.recovering = True
            await recover(
                self._directory,
                findings,
                writer,
                self._recorder,
                self._stages.prices,
                self._stages.observe,
                files,
            )
            files.recovering = False
            shipper, reader = self._shipper()
            half = (len(self._life.asks) + 1) // 2
            await self._serve(0, self._life.asks[:half])
            self._ship(shipper)
            await self._serve(half, self._life.asks[half:])
            writer.tend()
            points.hit("close.before")
            files.closing = True
            writer.close()
            points.hit("close.after")
            for _ in range(STEPS_MAX):
                self._ship(shipper)
                if not reader.pending_bytes():
                    return
            raise AssertionError("the shipper does not come to an end")

    async def _serve(self, first: int, asks: Sequence[Ask]) -> None:
        await asyncio.gather(*[self._one(first + n, ask) for n, ask in enumerate(asks)])

    async def _one(self, number: int, ask: Ask) -> None:
        record_id = f"{self._index}-{number}"
        self._asks[record_id] = ask
        protocol = PROTOCOLS[ask.path]
        provider, model = MODELS[ask.path]
        said = [{"role": "user", "content": "Count."}]
        body = json.dumps(
            {"model": model, "max_tokens": 4096, "stream": ask.stream, "messages": said}
        ).encode()
        request = protocol.read_request(body)
        call = Call(
            record_id=record_id,
            trace_id=f"{self._index + 1:016x}{number + 1:016x}",
            span_id=f"{self._index + 1:08x}{number + 1:08x}",
            server_span_id=f"{self._index + 1:08x}{number + 4097:08x}",
            protocol=protocol.name,
            operation=protocol.operation,
            model=model,
            stream=ask.stream,
            identity=Identity(key_id="k", user_id="alice", source="key"),
            started_unix_ns=self._now_ns(),
            max_tokens=request.max_tokens,
            input_summary=request.summary,
        )
        lane = Lane(
            provider=provider,
            model=model,
            prices=provider,
            endpoint=Provider(scheme="http", host="provider", port=80, target=ask.path.encode()),
            dialect=Dialect(),
            headers=lambda headers, traceparent: [(b"traceparent", traceparent)],
        )
        admitted = Admitted(
            call=call,
            request=request,
            protocol=protocol,
            lanes=(lane,),
            body=body,
            headers=[],
            ids=[(b"x-request-id", record_id.encode())],
            started_ns=self._stages.monotonic_ns(),
            traceparent=lambda span_id: record_id.encode(),
        )
        client = Client(self.points, self._watch, self._client_log, record_id, ask)
        await Serving(self._stages, admitted, Caller(client.receive, client.send)).serve()

    def _shipper(self) -> tuple[Shipper, Reader]:
        cursor = Cursor(self._directory / "cursors" / "otlp.json", self._files)
        reader = Reader(self._directory, cursor, self._files)
        shipper = Shipper(
            reader,
            cursor,
            Endpoint(url="http://collector/v1/traces", headers={}, timeout_s=1, gzip=False, certificate=None),
            quarantine=self._directory / "quarantine",
            client=httpx.Client(transport=httpx.MockTransport(self._collect)),
            jitter=lambda: 0.5,
            now_ns=self._now_ns,
            files=self._files,
            lines_max=3,
        )
        return shipper, reader

    def _ship(self, shipper: Shipper) -> None:
        self.points.hit("ship.before")
        shipper.step()

    def _collect(self, request: httpx.Request) -> httpx.Response:
        self.points.hit("ship.sent_before_answer")
        accepted = json.loads(request.content)["resourceSpans"]
        for span in spans_in({"resourceSpans": accepted}):
            self._watch.shipping(attributes(span)["billing.record.id"])
        self._collector_log.add({"accepted": accepted})
        self.points.hit("ship.accepted_before_cursor")
        return httpx.Response(200, json={})


def _nobody(exchange: Exchange, status: int) -> None:
    pass


# scenarios


def run(scenario: Scenario, prices: Prices) -> Report:
    """Live all lives of a scenario in a folder of its own, and audit what they left."""
    report = Report(name=scenario.name)
    folder = Path(tempfile.mkdtemp(prefix="spanbill-kill-"))
    try:
        for index, life in enumerate(scenario.lives):
            status = _in_child(folder, scenario, index, prices)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and life.kill is not None:
                report.killed.append(life.kill.point)
                continue
            report.killed.append(None)
            if status != 0:
                why = (folder / "stderr").read_text(errors="replace")
                report.wrong.append(f"life {index} ended with wait status {status}:\n{why}")
                return report
            report.passed.append(json.loads((folder / "passed.json").read_bytes()))
        report.facts = facts_of(folder)
        report.wrong = audit(report.facts, [point for point in report.killed if point is not None])
    finally:
        shutil.rmtree(folder)
    return report


def _in_child(folder: Path, scenario: Scenario, index: int, prices: Prices) -> int:
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    code = 70
    try:
        gc.disable()
        signal.alarm(LIFE_S)
        process = Process(folder, scenario, index, prices)
        asyncio.run(process.live())
        (folder / "passed.json").write_text(json.dumps(process.points.passed))
        code = 0
    except BaseException:  # noqa: BLE001  # the boundary of a process: its parent tells what failed
        (folder / "stderr").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def real_prices() -> Prices:
    """Return the packaged rates of MODELS, without the gateway's assembly: a fork copies what is loaded."""
    catalogue = Catalogue(packaged_rates())
    cards = {
        provider: catalogue.card(provider, provider, model, NOON_NS // NS)
        for provider, model in MODELS.values()
    }

    def charge_of(target: Target, reply: Reply, at_unix_s: int) -> Charge | None:
        card = cards.get(target.provider)
        return None if card is None or reply.usage is None else charge(reply.usage, card, catalogue.hash)

    def context_window(target: Target, reply: Reply, at_unix_s: int) -> int | None:
        card = cards.get(target.provider)
        return None if card is None else card.context_window

    assert None not in cards.values()
    return Prices(charge=charge_of, context_window=context_window)


def main() -> None:
    """Read scenarios from standard input, one a line; write a report for each."""
    logging.basicConfig(
        handlers=[logging.NullHandler()]
    )  # each life says that it recovered: too much to read
    prices = real_prices()
    gc.collect()
    gc.freeze()
    for line in sys.stdin.buffer:
        report = run(msgspec.json.decode(line, type=Scenario), prices)
        os.write(1, msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main()
