"""Several workers on one folder: whichever dies, the others serve on, and each request has one bill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from deploy.stack import _alive, wait_until
from otel.journal.audit import audit_folder
from tests.faults import recovery_killer
from tests.faults.kill_audit import Facts, audit
from tests.faults.kill_world import World
from tests.gateway_process import KEYS, Gateway, attributes, bills_in_journal, free_port

WORKERS = 3
CALLERS = 12
WAIT_S = 30.0
"""For anything that takes a second on a machine with nothing else to do."""


class Crew(Gateway):
    """A gateway with WORKERS workers."""

    module = "gateway"
    workers = WORKERS

    @property
    def arguments(self) -> list[str]:
        return [*super().arguments, "--workers", str(self.workers)]

    def await_ready(self) -> Gateway:
        """Wait until every worker serves, not just any."""
        super().await_ready()
        assert wait_until(lambda: len(self.pids()) == self.workers, WAIT_S, 0.02), self.log()
        return self

    def events(self, message: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def pids(self) -> dict[int, int]:
        """Return the living workers' process ids by number."""
        assert self.process is not None
        found = {event["worker"]: event["pid"] for event in self.events("a worker serves")}
        return {number: pid for number, pid in found.items() if _alive(pid)}

    def marks(self) -> set[str]:
        return {path.name for path in (self.journal / "writers").iterdir() if path.suffix != ".new"}

    def kill_worker(self, number: int) -> int:
        """Kill one worker; return its process id once it is gone."""
        pid = self.pids()[number]
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not _alive(pid), WAIT_S, 0.01)
        return pid

    def await_whole(self, without: str) -> None:
        """Wait until all workers serve, and the writer `without` is recovered."""
        assert wait_until(lambda: len(self.pids()) == self.workers, WAIT_S, 0.02), self.log()
        assert wait_until(lambda: without not in self.marks(), WAIT_S, 0.02), self.log()
        assert wait_until(lambda: len(self.marks()) == self.workers, WAIT_S, 0.02), self.log()


class Alone(Gateway):
    """The same folder with one process, whose start and end leave one mark."""


class Caller:
    """One caller with one connection at a time.

    `broken` has an entry for each time that it broke: the request whose answer had begun, or None.
    """

    def __init__(self, url: str, seed: str) -> None:
        self.ids: list[str] = []
        self.broken: list[str | None] = []
        self.refused = 0
        self.draw = random.Random(seed)
        self.client = httpx.AsyncClient(
            base_url=url,
            timeout=WAIT_S,
            limits=httpx.Limits(max_connections=1),
            event_hooks={"response": [self._note]},
        )

    async def _note(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            self.ids.append(response.headers["x-request-id"])
        else:
            self.refused += 1

    async def call(self, world: World, until: asyncio.Event) -> None:
        async with self.client:
            while not until.is_set():  # ends with the test
                begun = len(self.ids)
                try:
                    await world.ask(self.client, self.draw)
                except httpx.ConnectError:
                    return
                except httpx.TransportError:
                    self.broken.append(self.ids[begun] if len(self.ids) > begun else None)
                except AssertionError:
                    assert self.refused == 1, (
                        "an answer is neither 200 nor the refusal of a gateway that stops"
                    )
                    return


@contextlib.asynccontextmanager
async def traffic(world: World, url: str) -> AsyncIterator[list[Caller]]:
    """Keep CALLERS busy until the block ends, or the gateway."""
    callers = [Caller(url, f"caller {number}") for number in range(CALLERS)]
    until = asyncio.Event()
    tasks = [asyncio.create_task(caller.call(world, until)) for caller in callers]
    try:
        yield callers
    finally:
        until.set()
        await asyncio.gather(*tasks)


def crew(folder: Path, world: World, kind: type[Gateway] = Crew) -> Any:
    return kind(folder, port=None, **world.environment(), SPANBILL_JOURNAL__SEGMENT_BYTES_MAX="65536")


def writers_of_intents(journal: Path) -> dict[str, str]:
    """Return by bill the writer whose intent it is."""
    found = {}
    for path in journal.glob("2*/*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:  # what is behind the last newline is being written
            if line.startswith(b'{"j":{"k":"I"'):
                found[json.loads(line)["j"]["id"]] = path.stem.rpartition("-")[0]
    return found


def busiest(journal: Path) -> tuple[str, int]:
    """Return the writer with the most intents and its worker's number."""
    counts = Counter(writers_of_intents(journal).values())
    assert len(counts) > 1, "one worker has all connections"
    writer = counts.most_common(1)[0][0]
    return writer, int(writer.rpartition("-")[2])


async def in_thread(do: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(do)


async def conclude(folder: Path, world: World) -> Facts:
    """Start and end the gateway once more with one process, audit all, and return what is known."""
    last = crew(folder, world, Alone)
    await in_thread(last.start)
    assert await in_thread(last.stop) == 0
    report = audit_folder(last.journal, strict=True)
    assert report.complete, report.findings
    assert report.intact, report.findings
    facts = world.facts(last.journal)
    assert audit(facts, None) == []
    return facts


async def test_a_killed_worker_costs_only_its_own_requests_and_each_of_them_has_one_bill(
    tmp_path: Path,
) -> None:
    async with World() as world:
        gateway = crew(tmp_path, world)
        await in_thread(gateway.start)
        async with traffic(world, gateway.url) as callers:
            await world.moment(500)
            victim, number = busiest(gateway.journal)
            await in_thread(lambda: gateway.kill_worker(number))
            await in_thread(lambda: gateway.await_whole(without=victim))
            await world.moment(500)
        assert await in_thread(gateway.stop) == 0
        facts = await conclude(tmp_path, world)
    owner = writers_of_intents(gateway.journal)
    broken = [record_id for caller in callers for record_id in caller.broken]
    assert {owner[record_id] for record_id in broken if record_id} == {victim}
    assert max(len(caller.broken) for caller in callers) == 1, "one death, one broken connection"
    for bill in facts.journal.bills:
        if owner[bill.id] == victim and bill.outcome == "interrupted":
            assert bill.writer != victim
        else:
            assert bill.outcome in ("ok", "client_disconnected")
            assert bill.id in world.got or owner[bill.id] == victim, "a sibling's caller got no answer"
    assert any(bill.outcome == "interrupted" for bill in facts.journal.bills), "the kill hit nothing"


async def test_a_recovery_beside_requests_that_is_killed_twice_in_the_middle_bills_once(
    tmp_path: Path,
) -> None:
    class Killing(Crew):
        def start(self) -> Gateway:
            with (self.folder / "gateway.log").open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.recovery_killer", *self.arguments],
                    cwd=self.folder,
                    stdout=log,
                    stderr=log,
                    env=self.whole_environment(),
                )
            return self.await_ready()

    async with World() as world:
        gateway = crew(tmp_path, world, Killing)
        await in_thread(gateway.start)
        first = gateway.marks()
        async with traffic(world, gateway.url):
            await world.moment(500)
            victim, number = busiest(gateway.journal)
            await in_thread(lambda: gateway.kill_worker(number))
            fired = [tmp_path / name for name in recovery_killer.FIRED]
            assert await in_thread(lambda: wait_until(lambda: all(p.exists() for p in fired), WAIT_S, 0.02))
            await in_thread(lambda: gateway.await_whole(without=victim))
            await world.moment(200)
        assert len(gateway.events("a worker ended; it is started again")) == 3
        assert await in_thread(gateway.stop) == 0
        facts = await conclude(tmp_path, world)
    owner = writers_of_intents(gateway.journal)
    interrupted = [bill for bill in facts.journal.bills if bill.outcome == "interrupted"]
    assert victim in first
    assert any(owner[bill.id] == victim for bill in interrupted)


async def test_workers_end_in_order_when_their_supervisor_is_killed_and_the_next_start_works(
    tmp_path: Path,
) -> None:
    async with World() as world:
        gateway = crew(tmp_path, world)
        await in_thread(gateway.start)
        first, pids = gateway.marks(), gateway.pids()
        for pid in pids.values():
            both = sockets_of(pid) & sockets_of(gateway.process.pid)
            assert len(both) == 1, "only the listening socket: else one worker hides the death from another"
        second = await in_thread(lambda: other_gateway(tmp_path, gateway))
        assert second.returncode == 78
        assert f"held by the gateway with process id {gateway.process.pid};" in second.stderr
        assert second.stdout == ""
        async with traffic(world, gateway.url):
            await world.moment(300)
            gateway.kill()
            assert await in_thread(
                lambda: wait_until(lambda: not any(map(_alive, pids.values())), WAIT_S, 0.02)
            )
        assert len(gateway.events("the supervisor is gone; this worker stops")) == WORKERS
        await in_thread(gateway.start)
        assert not gateway.marks() & first
        async with httpx.AsyncClient(base_url=gateway.url, timeout=WAIT_S) as client:
            for _ in range(10):
                await world.ask(client, random.Random(7))
        assert await in_thread(gateway.stop) == 0
        facts = await conclude(tmp_path, world)
    outcomes = Counter(bill.outcome for bill in facts.journal.bills)
    assert outcomes["ok"] > 10
    assert not outcomes["interrupted"], "what was inside could not end"


def sockets_of(pid: int) -> set[str]:
    """Return the sockets that a process has open, as the kernel names them."""
    names = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return {name for name in names if name.startswith("socket:")}


def other_gateway(folder: Path, gateway: Gateway, *, port: int | None = None) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--workers", "2", "--port", str(port or free_port())],
        cwd=folder,
        env=gateway.whole_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_a_gateway_that_is_told_to_stop_lets_all_workers_end_what_is_inside(tmp_path: Path) -> None:
    async with World() as world:
        gateway = crew(tmp_path, world)
        await in_thread(gateway.start)
        pids = gateway.pids()
        async with traffic(world, gateway.url) as callers:
            await world.moment(300)
            gateway.process.send_signal(signal.SIGTERM)
            assert await in_thread(lambda: gateway.process.wait(WAIT_S)) == 0
        assert not any(map(_alive, pids.values()))
        assert not any(record_id for caller in callers for record_id in caller.broken), "an answer was cut"
        facts = await conclude(tmp_path, world)
    outcomes = Counter(bill.outcome for bill in facts.journal.bills)
    assert outcomes["ok"] > CALLERS
    assert not outcomes["interrupted"]


async def test_when_the_process_that_delivers_dies_another_one_delivers_and_every_bill_arrives(
    tmp_path: Path,
) -> None:
    async with World() as world:
        gateway = crew(tmp_path, world)
        await in_thread(gateway.start)
        lock = gateway.journal / "cursors" / "otlp.lock"
        async with traffic(world, gateway.url):
            await world.moment(200)
            leader = holder_of(lock)
            assert leader is not None
            assert leader == gateway.behind()
            workers = gateway.pids()
            os.kill(leader, signal.SIGKILL)
            assert await in_thread(
                lambda: wait_until(lambda: holder_of(lock) not in (None, leader), WAIT_S, 0.02)
            )
            sent = len(world.accepted)
            assert await in_thread(lambda: wait_until(lambda: len(world.accepted) > sent, WAIT_S, 0.02))
            await world.moment(200)
            assert holder_of(lock) == gateway.behind(), "a worker delivers"
            assert gateway.pids() == workers
        assert await in_thread(gateway.stop) == 0
        bills = set(bills_in_journal(gateway.journal))
        arrived = {attributes(json.loads(span))["billing.record.id"] for span in world.accepted}
        assert bills <= arrived, "the last one to stop left bills for the next start"
        await conclude(tmp_path, world)


def holder_of(lock: Path) -> int | None:
    """Return the process that has a lock, as the kernel tells it."""
    inode = f":{lock.stat().st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(inode):
            return int(fields[4])
    return None


def page(url: str) -> dict[str, float]:
    """Return `/metrics` of some worker: each call has a connection of its own."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=WAIT_S) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith("llm_gateway"))
        if not name.split("{")[0].endswith("_created")
    }


def test_metrics_are_the_whole_gateways_on_every_worker_and_outlive_one(tmp_path: Path) -> None:
    with Crew(tmp_path) as gateway:
        total = 'llm_gateway_records_total{status="final"}'
        before: dict[str, float] = {}

        def pages_until(bills: int, workers: int) -> None:
            nonlocal before
            right = 0
            for _ in range(round(WAIT_S / 0.02)):
                now = page(gateway.url)
                fallen = {
                    n: v for n, v in before.items() if n.partition("{")[0].endswith(RISING) and now[n] < v
                }
                assert fallen == {}
                before = now
                right = right + 1 if (now.get(total), now["llm_gateway_workers"]) == (bills, workers) else 0
                if right == 10:  # in a row, on whatever workers
                    return
                wait_until(lambda: False, 0.02, 0.02)
            raise AssertionError(f"not {bills} bills and {workers} workers: {before}")

        ask_simulated(gateway, 30)
        pages_until(30, WORKERS)
        assert len({*writers_of_intents(gateway.journal).values()}) > 1, "one worker served all"
        victim, number = busiest(gateway.journal)
        gateway.kill_worker(number)
        ask_simulated(gateway, 10)
        pages_until(40, WORKERS)
        gateway.await_whole(without=victim)
        ask_simulated(gateway, 5)
        pages_until(45, WORKERS)
        assert before["llm_gateway_journal_writable"] == 1
        assert {line.get("worker") for line in gateway.events("request billed")} == set(range(WORKERS))
        assert gateway.stop() == 0


RISING = ("_total", "_bucket", "_count", "_sum")


def ask_simulated(gateway: Gateway, count: int) -> None:
    """Send requests, each over a connection of its own."""
    for _ in range(count):
        answered = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {KEYS['alice']}"},
            json={"model": "sim-small", "messages": [{"role": "user", "content": "Hello"}]},
            timeout=WAIT_S,
        )
        assert answered.status_code == 200


def test_a_worker_that_is_stopped_alone_is_replaced_and_its_requests_end(tmp_path: Path) -> None:
    with Crew(tmp_path) as gateway:
        ask_simulated(gateway, 5)
        first = gateway.pids()
        os.kill(first[1], signal.SIGTERM)
        assert wait_until(lambda: gateway.pids().get(1) not in (None, first[1]), WAIT_S, 0.02)
        ask_simulated(gateway, 5)
        (ended,) = gateway.events("a worker ended; it is started again")
        assert (ended["worker"], ended["status"]) == (1, 0)
        assert gateway.stop() == 0
    report = audit_folder(gateway.journal)
    assert (report.complete, report.intact, report.facts.bills) == (True, True, 10)


def test_what_keeps_the_gateway_from_starting_is_said_once(tmp_path: Path) -> None:
    wrong = Gateway(tmp_path, SPANBILL_ROUTING__DEFAULT_PROVIDER="nobody")
    ended = other_gateway(tmp_path, wrong)
    assert ended.returncode == 78
    assert ended.stderr.count("nobody") == 1
    assert "Traceback" not in ended.stderr + ended.stdout
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = other_gateway(tmp_path, Gateway(tmp_path), port=taken.getsockname()[1])
    assert ended.returncode == 78
    assert ended.stderr.count("cannot listen on 127.0.0.1") == 1
