"""What comes behind the journal has a process of its own, which may die, and which ends with its gateway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.stack import _alive, wait_until
from otel.journal.audit import audit_folder
from tests.faults.collectors import Collector, never
from tests.faults.test_workers import holder_of
from tests.gateway_process import END_S, Gateway, bills_in_journal
from tests.ledger.test_totals import Labels, agrees, in_ledger, page, pico, served

WORKERS = pytest.mark.parametrize("workers", ["1", "2"])
LOST = "what comes behind the journal has lost its process; this one goes on with it"
HANGS = "what comes behind the journal does not end and is killed"
BEGUN_AGAIN = "a worker ended; it is started again"
CHANGED = """
import sys
from gateway import apart, behind
{change}
from gateway.cli.main import main
sys.argv = ["spanbill", *sys.argv[1:]]
main()
"""


class Changed(Gateway):
    """A gateway with a line of Python that changes it."""

    change = ""

    @property
    def program(self) -> list[str]:
        return ["-c", CHANGED.format(change=self.change)]


def gateway(
    folder: Path, collector: Collector, workers: str, change: str = "", **environment: str
) -> Gateway:
    made = Changed(
        folder,
        SPANBILL_SERVER__WORKERS=workers,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_TRACES_SAMPLER="always_off",
        **environment,
    )
    made.change = change
    return made


def behind(gateway: Gateway) -> int:
    """Return the process behind the journal, once it is at work."""
    assert wait_until(lambda: gateway.behind() is not None, END_S, 0.01), gateway.log()
    pid = gateway.behind()
    assert pid is not None
    return pid


def told(gateway: Gateway, message: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in gateway.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["message"] == message]


def whole(gateway: Gateway) -> tuple[int, int]:
    """Return how many bills the journal has, and what they come to."""
    bills = bills_in_journal(gateway.journal)
    return len(bills), sum(map(pico, bills.values()))


def delivered(gateway: Gateway, collector: Collector) -> bool:
    """Say whether the Collector has all bills, and each always the same."""
    assert all(len(set(copies)) == 1 for copies in collector.taken.values())
    return set(collector.taken) == set(bills_in_journal(gateway.journal))


def sound(gateway: Gateway) -> None:
    report = audit_folder(gateway.journal, strict=True)
    assert report.complete, report.findings
    assert report.intact, report.findings


@contextmanager
def never_falling(gateway: Gateway) -> Iterator[None]:
    """Read the metrics over and over; no count may fall."""
    until = threading.Event()
    fell: list[str] = []
    pages = 0

    def watch() -> None:
        nonlocal pages
        before: dict[str, dict[Labels, float]] = {}
        while not until.is_set():  # ends with the block
            now = page(gateway)
            for name, samples in before.items():
                if name.endswith(("_total", "_bucket", "_sum", "_count")):
                    fell.extend(name for labels, n in samples.items() if now[name].get(labels, -1.0) < n)
            before = now
            pages += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        until.set()
        thread.join()
    assert pages > 2
    assert fell == []


@WORKERS
def test_its_death_stops_neither_ledger_nor_delivery_and_no_bill_is_lost_or_doubled(
    tmp_path: Path, workers: str
) -> None:
    with Collector() as collector, gateway(tmp_path, collector, workers) as killed:
        assert served(killed, 20) == 20
        victim = behind(killed)
        assert wait_until(lambda: agrees(killed), END_S, 0.1)
        with never_falling(killed):
            os.kill(victim, signal.SIGKILL)
            assert served(killed, 20) == 20
            assert wait_until(lambda: in_ledger(killed) == whole(killed), END_S, 0.05), killed.log()
            assert wait_until(lambda: delivered(killed, collector), END_S, 0.05), killed.log()
            assert wait_until(lambda: agrees(killed), END_S, 0.1)
        if workers == "1":
            assert killed.behind() is None
            assert [(line["pid"], line["status"]) for line in told(killed, LOST)] == [(victim, -9)]
        else:
            assert behind(killed) != victim
            assert [(line["pid"], line["status"]) for line in told(killed, BEGUN_AGAIN)] == [(victim, -9)]
        assert served(killed, 6) == 6
        assert killed.stop() == 0
        assert in_ledger(killed) == whole(killed)
        assert delivered(killed, collector)
        assert whole(killed)[0] == 46
        sound(killed)


@WORKERS
def test_it_holds_nothing_that_a_gateway_needs_which_is_killed_and_started_again_at_once(
    tmp_path: Path, workers: str
) -> None:
    with Collector() as collector:
        killed = gateway(tmp_path, collector, workers).start()
        assert served(killed, 20) == 20
        left = behind(killed)
        others = [pid for pid in killed.children() if pid != left]
        os.kill(left, signal.SIGSTOP)  # so that it cannot end, and keeps all that it has
        try:
            assert killed.process is not None
            killed.process.kill()
            killed.process.wait()
            assert wait_until(lambda: not any(map(_alive, others)), END_S, 0.01), "workers stay"
            killed.start()
            assert served(killed, 20) == 20
            assert _alive(left)
        finally:
            os.kill(left, signal.SIGCONT)
        assert wait_until(lambda: not _alive(left), END_S, 0.01), "it outlives its gateway"
        assert wait_until(lambda: agrees(killed), END_S, 0.1)
        assert killed.stop() == 0
        assert in_ledger(killed) == whole(killed)
        assert delivered(killed, collector)
        assert whole(killed)[0] == 40
        sound(killed)


@WORKERS
def test_told_to_stop_like_all_others_it_ends_after_them_with_the_last_bills(
    tmp_path: Path, workers: str
) -> None:
    late = {"SPANBILL_TELEMETRY__SHIP_INTERVAL_S": "60"}  # it ships at its end, and not before
    with Collector() as collector, gateway(tmp_path, collector, workers, **late) as stopped:
        pid = behind(stopped)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        assert served(stopped, 20) == 20
        os.kill(pid, signal.SIGTERM)
        assert collector.taken == {}
        children = stopped.children()
        assert pid in children
        with ThreadPoolExecutor(1) as side:
            under_way = side.submit(served, stopped, 12, model="sim-slow")
            assert wait_until(lambda: whole(stopped)[0] > 22, END_S, 0.01)
            settled = whole(stopped)[0]
            assert stopped.stop() == 0
            assert under_way.result() <= 12
        assert not any(map(_alive, children))
        assert in_ledger(stopped) == whole(stopped)
        assert delivered(stopped, collector)
        assert told(stopped, LOST) == told(stopped, BEGUN_AGAIN) == []
        assert whole(stopped)[0] > settled, "nothing was under way"
        sound(stopped)


@WORKERS
def test_it_goes_with_its_gateway_though_it_has_bills_to_deliver(tmp_path: Path, workers: str) -> None:
    for_ever = "behind.STOP_SHIPPING_S = apart.STOP_S = 600.0"
    with Collector(always=never) as collector:
        patient = {"OTEL_EXPORTER_OTLP_TIMEOUT": "600"}
        with gateway(tmp_path, collector, workers, for_ever, **patient) as killed:
            pid = behind(killed)
            assert served(killed, 10) == 10
            assert wait_until(lambda: collector.requests == 1, END_S, 0.01)
            assert killed.process is not None
            killed.process.send_signal(signal.SIGTERM)
            assert wait_until(lambda: in_ledger(killed) == whole(killed), END_S, 0.05)
            following = killed.journal / "cursors" / "ledger.lock"
            assert wait_until(lambda: holder_of(following) is None, END_S, 0.01), "it was not told to stop"
            assert _alive(pid)
            killed.kill()
            assert not _alive(pid)


@WORKERS
def test_it_is_killed_where_it_does_not_end(tmp_path: Path, workers: str) -> None:
    impatient = "from gateway.cli import supervisor; apart.STOP_S = supervisor.STRAGGLER_S = 0.5"
    grace = {"SPANBILL_SERVER__SHUTDOWN_GRACE_S": "1"}
    with Collector() as collector, gateway(tmp_path, collector, workers, impatient, **grace) as stopped:
        pid = behind(stopped)
        assert served(stopped, 5) == 5
        os.kill(pid, signal.SIGSTOP)
        assert stopped.stop() == 0
        assert not _alive(pid)
        assert len(told(stopped, HANGS)) == (workers == "1")
        sound(stopped)


def test_where_it_cannot_begin_the_process_that_serves_does_its_work(tmp_path: Path) -> None:
    refused = (
        "from gateway.core.errors import CannotStartError\n"
        "def refuse(*_): raise CannotStartError('for a test')\n"
        "apart.Behind = refuse"
    )
    with Collector() as collector, gateway(tmp_path, collector, "1", refused) as alone:
        assert served(alone, 10) == 10
        assert wait_until(lambda: agrees(alone), END_S, 0.1)
        assert [(line["status"], line["why"]) for line in told(alone, LOST)] == [(1, "for a test")]
        assert alone.stop() == 0
        assert in_ledger(alone) == whole(alone)
        assert delivered(alone, collector)


def test_a_gateway_that_cannot_start_leaves_nothing_behind(tmp_path: Path) -> None:
    with Gateway(tmp_path) as first:
        second = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--port", str(first.port)],
            cwd=_folder(tmp_path / "second"),
            env=first.whole_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = second.communicate(timeout=END_S)  # ends when nobody has its output any more
        assert second.returncode == 78, said


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
