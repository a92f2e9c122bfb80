"""The shipper: whatever the Collector does, every bill arrives, and the cursor never runs ahead."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from otel.journal.cursor import Cursor
from otel.journal.lines import GENESIS, encode_line
from otel.journal.reader import Reader
from otel.journal.turn import Lock
from otel.otlp import (
    Accepted,
    Endpoint,
    EndpointError,
    Rejected,
    TryAgain,
    backoff_s,
    endpoint_from_env,
    judge,
)
from otel.shipper import Shipper

BILLS = [f"bill-{n}" for n in range(25)]


class Collector:
    """A Collector that answers to order and remembers what it accepted."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.requests = 0
        self.behave: Callable[[Collector, list[str]], httpx.Response] = Collector.accept

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return self.behave(self, [item["id"] for item in json.loads(request.content)["resourceSpans"]])

    def accept(self, ids: list[str]) -> httpx.Response:
        self.accepted += ids
        return httpx.Response(200, json={})


def make(
    folder: Path, collector: Collector, lines_max: int = 10, lead: Lock | None = None, interval_s: float = 0.2
) -> Shipper:
    cursor = Cursor(folder / "cursors" / "otlp.json")
    return Shipper(
        Reader(folder, cursor),
        cursor,
        Endpoint(url="http://collector/v1/traces", headers={}, timeout_s=1, gzip=False, certificate=None),
        quarantine=folder / "quarantine",
        client=httpx.Client(transport=httpx.MockTransport(collector)),
        jitter=lambda: 0.5,
        now_ns=lambda: 1,
        lines_max=lines_max,
        interval_s=interval_s,
        lead=lead,
    )


def pending_bytes(folder: Path) -> int:
    return Reader(folder, Cursor(folder / "cursors" / "otlp.json")).pending_bytes()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    number = itertools.count(1)
    for segment, (day, part) in enumerate((("2026-01-01", BILLS[:7]), ("2026-01-02", BILLS[7:])), start=1):
        folder = tmp_path / day
        folder.mkdir()
        first = next(number)
        lines = [encode_line("H", "s", first, GENESIS, "{}"), encode_line("I", "i", first, GENESIS, "{}")]
        lines += [encode_line("S", b, next(number), GENESIS, json.dumps({"id": b})) for b in part]
        (folder / f"boot-0-{segment:06d}.jsonl").write_bytes(b"".join(lines))
    return tmp_path


def test_everything_arrives_once_and_in_order(journal: Path) -> None:
    collector = Collector()
    shipper = make(journal, collector)
    shipper.step()
    shipper.step()
    assert collector.accepted == BILLS
    assert collector.requests == 3
    assert pending_bytes(journal) == 0


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_retryable_answer_moves_nothing_and_respects_retry_after(journal: Path, status: int) -> None:
    collector = Collector()
    collector.behave = lambda _, __: httpx.Response(status, headers={"retry-after": "7"})
    shipper = make(journal, collector)
    assert shipper.step() == 7
    assert collector.requests == 1, "the fault did not fire"
    assert shipper.stats.shipped == 0
    collector.behave = Collector.accept
    make(journal, collector).step()  # after a restart
    assert collector.accepted == BILLS


def test_an_outage_backs_off_and_loses_nothing(journal: Path) -> None:
    collector = Collector()

    def refuse(_: Collector, __: list[str]) -> httpx.Response:
        raise httpx.ConnectError("refused")

    collector.behave = refuse
    shipper = make(journal, collector)
    waits = [shipper.step() for _ in range(8)]
    assert collector.requests == 8, "the fault did not fire"
    assert waits == sorted(waits)
    assert waits[-1] <= 30
    collector.behave = Collector.accept
    shipper.step()
    assert collector.accepted == BILLS


def test_an_answer_lost_after_acceptance_repeats_the_batch_and_nothing_else(journal: Path) -> None:
    collector = Collector()
    lost = []

    def accept_and_close(c: Collector, ids: list[str]) -> httpx.Response:
        c.accepted += ids
        lost.extend(ids)
        c.behave = Collector.accept
        raise httpx.RemoteProtocolError("closed")

    collector.behave = accept_and_close
    shipper = make(journal, collector)
    shipper.step()
    shipper.step()
    assert lost, "the fault did not fire"
    assert collector.accepted == lost + BILLS


def test_partly_refused_batches_are_halved_until_the_bad_bill_is_alone(journal: Path) -> None:
    collector = Collector()
    bad = {"bill-3", "bill-11"}

    def partial(c: Collector, ids: list[str]) -> httpx.Response:
        hit = len(bad & set(ids))
        c.accepted += [i for i in ids if i not in bad]
        answer = {"partialSuccess": {"rejectedSpans": str(hit), "errorMessage": "bad"}} if hit else {}
        return httpx.Response(200, json=answer)

    collector.behave = partial
    shipper = make(journal, collector)
    shipper.step()
    assert set(collector.accepted) == set(BILLS) - bad
    aside = [json.loads(line) for line in (journal / "quarantine" / "refused.jsonl").read_text().splitlines()]
    assert {item["resourceSpans"][0]["id"] for item in aside} == bad
    assert all("bad" in item["reason"] for item in aside)
    assert shipper.stats.quarantined == 2
    assert pending_bytes(journal) == 0


def test_a_batch_too_large_for_the_collector_is_halved(journal: Path) -> None:
    collector = Collector()
    fired = []

    def small_only(c: Collector, ids: list[str]) -> httpx.Response:
        if len(ids) > 2:
            fired.append(len(ids))
            return httpx.Response(413)
        return c.accept(ids)

    collector.behave = small_only
    make(journal, collector).step()
    assert fired, "the fault did not fire"
    assert collector.accepted == BILLS


def test_a_login_page_is_no_acceptance(journal: Path) -> None:
    collector = Collector()
    collector.behave = lambda _, __: httpx.Response(200, text="<html>log in</html>")
    shipper = make(journal, collector)
    shipper.step()
    assert collector.requests == 1
    assert pending_bytes(journal) > 0


def test_damage_is_counted_and_hides_no_later_bill(journal: Path) -> None:
    segment = journal / "2026-01-01" / "boot-0-000001.jsonl"
    data = segment.read_bytes()
    at = data.index(b"bill-2")
    segment.write_bytes(data[:at] + b"X" + data[at + 1 :] + b'{"torn')
    collector = Collector()
    shipper = make(journal, collector)
    shipper.step()
    assert collector.accepted == [b for b in BILLS if b != "bill-2"]
    assert shipper.stats.damaged == 2


def test_verdicts() -> None:
    assert judge(200, b"", {}, 0) == Accepted()
    assert judge(200, b'{"partialSuccess":{}}', {}, 0) == Accepted()
    assert isinstance(judge(200, b'{"partialSuccess":{"rejectedSpans":2}}', {}, 0), Rejected)
    assert isinstance(judge(400, b"", {}, 0), Rejected)
    assert isinstance(judge(401, b"", {}, 0), TryAgain)
    assert isinstance(judge(404, b"", {}, 0), TryAgain)
    assert judge(503, b"", {"retry-after": "5"}, 0) == TryAgain("HTTP 503", 5.0)
    assert [round(backoff_s(n, 1.0), 2) for n in (1, 2, 3, 50)] == [0.5, 1.0, 2.0, 30.0]


def test_the_standard_variables_say_where_bills_go() -> None:
    assert endpoint_from_env({}) is None
    endpoint = endpoint_from_env(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/",
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20x,a=b",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
            "OTEL_SDK_DISABLED": "true",
            "OTEL_TRACES_SAMPLER": "always_off",
        }
    )
    assert endpoint is not None
    assert (endpoint.url, endpoint.timeout_s, endpoint.gzip) == ("http://c:4318/v1/traces", 3.0, True)
    assert endpoint.headers == {"authorization": "Bearer x", "a": "b"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ENDPOINT", "collector:4318"),
        ("ENDPOINT", "http://"),
        ("ENDPOINT", "http://collector..local:4318"),
        ("ENDPOINT", f"http://{'a' * 64}.local"),
        ("ENDPOINT", "http://[::1"),
        ("ENDPOINT", "http://c:port"),
        ("ENDPOINT", "http://c d"),
        ("ENDPOINT", "http://c\x7f"),
        ("HEADERS", "authorization=ü"),
        ("HEADERS", "authorization=a%0D%0Ab"),
        ("HEADERS", "a b=c"),
        ("TIMEOUT", "soon"),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "nan"),
        ("TIMEOUT", "inf"),
    ],
)
def test_a_variable_that_could_never_work_is_refused_by_its_name(variable: str, value: str) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", f"OTEL_EXPORTER_OTLP_{variable}": value}
    with pytest.raises(EndpointError, match=f"^OTEL_EXPORTER_OTLP_{variable}: "):
        endpoint_from_env(environ)


def lead(folder: Path) -> Lock:
    return Lock(folder / "cursors" / "otlp.lock")


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come")


def test_of_two_shippers_one_delivers_and_the_other_goes_on_where_it_ended(journal: Path) -> None:
    collector = Collector()
    first = make(journal, collector, lines_max=5, lead=lead(journal), interval_s=0.01)
    second = make(journal, collector, lines_max=5, lead=lead(journal), interval_s=0.01)
    first.start()
    wait_for(lambda: len(collector.accepted) == len(BILLS))
    second.start()  # its cursor says that nothing is delivered yet
    wait_for(lambda: not lead(journal).take())
    assert second.stats.posts == 0
    first.stop(30)
    newer = journal / "2026-01-03"
    newer.mkdir()
    line = encode_line("S", "late", len(BILLS) + 3, GENESIS, json.dumps({"id": "late"}))
    (newer / "boot-0-000003.jsonl").write_bytes(line)
    wait_for(lambda: "late" in collector.accepted)
    second.stop(30)
    assert collector.accepted == [*BILLS, "late"]
    assert second.stats.shipped == 1


def test_a_shipper_that_stands_by_delivers_at_the_end_what_the_one_before_it_left(journal: Path) -> None:
    collector = Collector()
    holder = lead(journal)
    assert holder.take()
    shipper = make(journal, collector, lead=lead(journal))
    shipper.start()
    stopping = threading.Thread(target=shipper.stop, args=(30,))
    stopping.start()
    assert collector.requests == 0
    holder.release()
    stopping.join(30)
    assert collector.accepted == BILLS


def test_a_shipper_that_never_gets_the_lead_delivers_nothing(journal: Path) -> None:
    collector = Collector()
    holder = lead(journal)
    assert holder.take()
    shipper = make(journal, collector, lead=lead(journal))
    shipper.start()
    shipper.stop(0.2)
    holder.release()
    assert shipper._thread is not None
    shipper._thread.join(30)
    assert not shipper._thread.is_alive()
    assert collector.requests == 0
