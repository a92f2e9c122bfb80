"""Metrics of several workers: exact sums, on every page, that never fall, whoever dies when."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from otel.metrics import Metrics, Reading, counter, gauge
from otel.observation import Observation
from otel.shared_metrics import _HEAD, FRESH_S, SHARE, Board, SharedMetrics
from otel.totals import Totals

NAMES = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Worker:
    """One worker's metrics, with two health readings."""

    def __init__(self, board: Board, place: int, clock: Clock) -> None:
        self.records = 0
        self.writable = 1
        self.metrics = Metrics(self.readings)
        self.name = f"b{next(NAMES)}-{place}"
        self.totals: Totals | None = None
        self.shared = SharedMetrics(self.metrics, board, place, clock, self.name, lambda: self.totals)
        self.registry = CollectorRegistry()
        self.registry.register(self.shared)

    def readings(self) -> Iterable[Reading]:
        yield counter("journal_records", "…", self.records)
        yield gauge("journal_writable", "…", self.writable, least=True)
        yield gauge("workers", "…", 1)
        yield gauge("totals_loaded", "…", 1, most=True)

    def bill(self, cost_pico_usd: int = 1, model: str = "m") -> None:
        self.records += 2
        self.metrics.observe(
            Observation(
                api_key_id="k",
                provider="p",
                model=model,
                status="200",
                bill_status="final",
                latency_ns=1_500_000_000,
                cost_pico_usd=cost_pico_usd,
                tokens={"input": 3},
                time_to_first_chunk_ns=60_000_000,
            )
        )
        self.metrics.refuse("some_code")

    def page(self) -> dict[str, float]:
        lines = generate_latest(self.registry).decode().splitlines()
        rows = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in rows}


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_whoever_is_asked_tells_the_counts_of_all(clock: Clock) -> None:
    board = Board(3)
    workers = [Worker(board, place, clock) for place in range(3)]
    for count, worker in enumerate(workers, start=1):
        for _ in range(count):
            worker.bill()
        worker.shared.tend()
    pages = [worker.page() for worker in workers]
    assert pages[0] == pages[1] == pages[2]
    assert pages[0]['llm_gateway_requests_total{api_key_id="k",provider="p",status="200"}'] == 6
    assert pages[0]['llm_gateway_tokens_total{api_key_id="k",model="m",provider="p",type="input"}'] == 18
    assert pages[0]['llm_gateway_latency_seconds_bucket{api_key_id="k",le="1.0",provider="p"}'] == 0
    assert pages[0]['llm_gateway_latency_seconds_bucket{api_key_id="k",le="2.0",provider="p"}'] == 6
    assert pages[0]['llm_gateway_latency_seconds_sum{api_key_id="k",provider="p"}'] == 9
    assert pages[0]['llm_gateway_refused_total{code="some_code"}'] == 6
    assert pages[0]["journal_records_total"] == 12
    assert pages[0]["workers"] == 3
    assert pages[0]["totals_loaded"] == 1
    assert pages[0]["journal_writable"] == 1


def test_a_page_is_what_one_process_would_have_told_of_the_same_bills(clock: Clock) -> None:
    one = Worker(Board(1), 0, clock)
    board = Board(2)
    two = [Worker(board, place, clock) for place in range(2)]
    for number in range(20):
        cost = 10**24 + number  # beyond any double, and any 64 bits
        for worker in (one, two[number % 2]):
            worker.bill(cost, f"m{number % 3}")
    for worker in two:
        worker.shared.publish()
    whole = two[0].page()
    assert whole.pop("workers") == 2
    page = one.page()
    assert page.pop("workers") == 1
    assert whole == page


def test_a_worker_that_cannot_write_shows_though_others_can(clock: Clock) -> None:
    board = Board(2)
    well, ill = Worker(board, 0, clock), Worker(board, 1, clock)
    ill.writable = 0
    ill.shared.tend()
    assert well.page()["journal_writable"] == 0


def test_what_a_dead_worker_counted_stays_and_its_successor_goes_on_from_there(clock: Clock) -> None:
    board = Board(2)
    living, dying = Worker(board, 0, clock), Worker(board, 1, clock)
    for _ in range(5):
        dying.bill()
    dying.writable = 0
    dying.shared.tend()
    living.bill()
    clock.now_s += FRESH_S + 1
    page = living.page()
    name = 'llm_gateway_requests_total{api_key_id="k",provider="p",status="200"}'
    assert page[name] == 6
    assert page["journal_records_total"] == 12
    assert page["workers"] == 1, "a gauge of a dead worker says nothing"
    assert page["journal_writable"] == 1
    successor = Worker(board, 1, clock)
    successor.bill()
    for page in (successor.page(), living.page()):
        assert page[name] == 7
        assert page["journal_records_total"] == 14
        assert page["workers"] == 2
        assert page["journal_writable"] == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["bill", "tend", "page", "die"])), max_size=40))
def test_no_count_ever_falls_from_page_to_page(steps: list[tuple[int, str]]) -> None:
    clock = Clock()
    board = Board(3)
    workers = [Worker(board, place, clock) for place in range(3)]
    before: dict[str, float] = {}
    for place, step in steps:
        clock.now_s += 0.1
        if step == "bill":
            workers[place].bill()
        elif step == "tend":
            workers[place].shared.tend()
        elif step == "die":
            workers[place] = Worker(board, place, clock)
        else:
            page = workers[place].page()
            for name, value in before.items():
                if name not in ("workers", "journal_writable"):
                    assert page[name] >= value, name
            before = page


@pytest.mark.parametrize("at", [0, 8, 16, _HEAD.size, _HEAD.size + 5])
def test_a_writer_that_dies_while_it_publishes_leaves_what_it_published_before(at: int) -> None:
    board = Board(2, bytes_max=100)
    assert board.read(1) is None
    assert board.write(1, b"first")
    assert board.write(1, b"second")
    assert board.write(0, b"neighbour")
    where = board._at(1, 3)  # the half that the third one would go to
    board._memory[where + at] ^= 0xFF
    assert board.read(1) == b"second"
    assert board.write(1, b"third")
    assert board.read(1) == b"third"
    assert board.read(0) == b"neighbour"


def test_a_forked_process_publishes_for_the_others() -> None:
    board = Board(2)
    pid = os.fork()
    if not pid:
        os._exit(0 if board.write(1, b"from the child") else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert board.read(1) == b"from the child"


def test_too_many_series_stand_still_and_are_told_of_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board(1, bytes_max=2000)
    worker = Worker(board, 0, clock)
    worker.bill()
    before = worker.page()
    for number in range(100):
        worker.bill(model=f"model-{number}")
    assert worker.page() == before
    worker.shared.publish()
    assert len(caplog.records) == 1


def test_publishing_takes_a_bounded_share_of_the_time() -> None:
    class Slow(Clock):
        def __call__(self) -> float:
            self.now_s += 0.01  # each publishing looks at the clock twice: it takes a hundredth of a second
            return self.now_s

    clock = Slow()
    worker = Worker(Board(1), 0, clock)
    worker.shared.publish()
    began_s = clock.now_s
    published = []
    for _ in range(200):
        worker.bill()
        worker.shared.tend()
        published.append(worker.shared._publish_at)
    assert len(set(published)) <= 1 + (clock.now_s - began_s) / (0.01 * SHARE)
    assert len(set(published)) > 1
