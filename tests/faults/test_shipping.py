"""Whatever the Collector, the network, the disk and the clock do, every bill arrives at the other end."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest

from otel.journal.audit import Logs, audit_folder
from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.lines import Damage, lines_in, parse, spans_of
from otel.journal.reader import Reader
from otel.journal.segments import segments_in
from otel.otlp import BACKOFF_FIRST_S, BACKOFF_MAX_S, RETRY_AFTER_MAX_S, Endpoint
from otel.shipper import BATCHES_A_STEP_MAX, RESPONSE_BYTES_MAX, Shipper
from tests.faults.collectors import (
    Collector,
    Fault,
    bomb,
    closes,
    dripping,
    endless,
    endless_head,
    garbage,
    half,
    larger_than,
    never,
    poisoned,
    status,
    takes_and_closes,
    takes_and_says_nothing,
    without_gzip,
)
from tests.journals import DAY_NS, NOON_NS, Book, FailingSync, copy_of, record_id

STEPS_MAX = 500
LINES = 5
"""Bills in a POST."""
BILLS = 60


class Clocks:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now_ns(self) -> int:
        return NOON_NS + round(self.passed_s * 1e9)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a dead gateway left: three segments, and a sync that failed."""
    folder = tmp_path_factory.mktemp("sound") / "journal"
    files = FailingSync(30)

    async def write() -> None:
        with Book(folder, "b6", files=files, bytes_max=120_000) as book:
            for number in range(BILLS):
                book.intent(number)
                await book.durable(book.bill(number))

    asyncio.run(write())
    assert files.failed == 1
    return folder


@pytest.fixture
def journal(sound: Path, tmp_path: Path) -> Path:
    return copy_of(sound, tmp_path / "journal")


CLIENTS: list[httpx.Client] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    """Close what the test's shippers opened."""
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def bills_of(folder: Path) -> dict[str, bytes]:
    """Return the spans of every bill by record id, as the journal has them."""
    found = {}
    for path in segments_in(folder, Files()):
        for item in lines_in(path.read_bytes()):
            if not isinstance(item, Damage) and (spans := spans_of(item[1])) is not None:
                found[parse(item[1]).id] = spans
    return found


def shipper(
    folder: Path,
    url: str,
    *,
    lines_max: int = LINES,
    timeout_s: float = 30,
    gzip: bool = False,
    files: Files | None = None,
    verify: ssl.SSLContext | bool = False,
    clocks: Clocks | None = None,
) -> Shipper:
    """Return a shipper as a gateway makes it, whose steps the test takes."""
    cursor = Cursor(folder / "cursors" / "otlp.json", files)
    CLIENTS.append(httpx.Client(timeout=timeout_s, follow_redirects=False, verify=verify, trust_env=False))
    return Shipper(
        Reader(folder, cursor, files),
        cursor,
        Endpoint(url=f"{url}/v1/traces", headers={}, timeout_s=timeout_s, gzip=gzip, certificate=None),
        quarantine=folder / "quarantine",
        client=CLIENTS[-1],
        jitter=lambda: 1.0,
        now_ns=(clocks or Clocks()).now_ns,
        files=files,
        lines_max=lines_max,
    )


def deliver(sender: Shipper) -> list[float]:
    """Step until nothing waits; return the pauses that the shipper asked for after failures."""
    pauses = []
    for _ in range(STEPS_MAX):
        try:
            pause = sender.step()
        except OSError:
            pause = BACKOFF_FIRST_S
        if sender.stats.failures_in_a_row:
            pauses.append(pause)
        elif sender._reader.pending_bytes() == 0 and pause > 0:
            return pauses
    raise AssertionError(f"still waiting after {STEPS_MAX} steps: {sender.stats}")


def audit(folder: Path, collector: Collector, *, twice: set[str] | frozenset[str] = frozenset()) -> None:
    """Hold the other end to the journal: each bill there, byte for byte, and again only where allowed.

    `twice` are bills that may have come again for another reason than an acceptance that was never said.
    """
    bills = bills_of(folder)
    aside = quarantined(folder)
    assert set(collector.taken) | set(aside) == set(bills), "lost"
    for name, copies in collector.taken.items():
        assert set(copies) == {bills[name]}, f"{name} differs from the journal"
        assert len(copies) == 1 or name in collector.unsaid | twice, f"{name} came {len(copies)} times"
    log = folder.parent / "collector.jsonl"
    lines = [b'{"resourceSpans":[%b]}\n' % raw for copies in collector.taken.values() for raw in copies]
    log.write_bytes(b"".join(lines))
    report = audit_folder(folder, logs=Logs(collector=log))
    assert report.counts.get("collector_missing", 0) == len(set(aside) - set(collector.taken)), (
        report.findings
    )
    assert report.intact, report.findings


def quarantined(folder: Path) -> dict[str, str]:
    """Return why each bill in quarantine is there."""
    path = folder / "quarantine" / "refused.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {}
    for line in lines:
        (resource,) = line["resourceSpans"]
        (span,) = resource["scopeSpans"][0]["spans"]
        (name,) = [
            pair["value"]["stringValue"] for pair in span["attributes"] if pair["key"] == "billing.record.id"
        ]
        assert name not in found, "put aside twice"
        found[name] = line["reason"]
    return found


# answers


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(502),
        status(503),
        status(504),
        status(401),
        status(404),
        status(204),
        status(307, location="http://127.0.0.1:9/v1/traces"),
        closes,
        garbage,
        bomb,
        endless,
        endless_head,
    ],
    ids=lambda fault: fault.__name__,
)
def test_what_is_no_acceptance_delays_bills_and_loses_and_doubles_none(journal: Path, fault: Fault) -> None:
    with Collector(fault, fault, always=None) as collector:
        sender = shipper(journal, collector.url)
        pauses = deliver(sender)
        assert collector.fired == {fault.__name__: 2}, "the fault did not fire"
        assert len(pauses) == 2
        assert not quarantined(journal)
        audit(journal, collector)


@pytest.mark.parametrize(
    "fault", [takes_and_closes, takes_and_says_nothing], ids=lambda fault: fault.__name__
)
def test_a_bill_comes_again_only_if_its_acceptance_was_never_said(journal: Path, fault: Fault) -> None:
    def accept(collector: Collector, request: object) -> bool:
        collector.take(request.spans)  # type: ignore[attr-defined]
        request.answer(200)  # type: ignore[attr-defined]
        return False

    with Collector(accept, fault, accept, accept, fault) as collector:
        deliver(shipper(journal, collector.url, timeout_s=1))
        assert collector.fired == {fault.__name__: 2}, "the fault did not fire"
        assert len(collector.unsaid) == 2 * LINES
        assert sum(len(copies) == 2 for copies in collector.taken.values()) == 2 * LINES
        audit(journal, collector)


@pytest.mark.parametrize("fault", [never, dripping], ids=lambda fault: fault.__name__)
def test_a_collector_that_never_ends_its_answer_is_given_up_in_time(journal: Path, fault: Fault) -> None:
    with Collector(fault) as collector:
        pauses = deliver(shipper(journal, collector.url, timeout_s=1))
        assert len(pauses) == 1
        audit(journal, collector)
        assert collector.fired == {fault.__name__: 1}, "the fault did not fire"


def test_an_endless_answer_is_read_to_a_bound(journal: Path) -> None:
    with Collector(endless) as collector:
        sender = shipper(journal, collector.url)
        sender.step()
        assert str(RESPONSE_BYTES_MAX) in str(sender.stats.last_error)
        deliver(sender)
        audit(journal, collector)


def test_a_compressed_answer_is_not_unpacked(journal: Path) -> None:
    with Collector(bomb) as collector:
        sender = shipper(journal, collector.url)
        sender.step()
        assert sender.stats.last_error == "a compressed answer, which was not asked for"
        deliver(sender)
        audit(journal, collector)


def test_a_redirect_is_not_followed(journal: Path) -> None:
    with (
        Collector() as elsewhere,
        Collector(always=status(308, location=f"{elsewhere.url}/v1/traces")) as wrong,
    ):
        sender = shipper(journal, wrong.url)
        for _ in range(20):  # on a busy machine a try can end by its timeout
            assert sender.step() > 0
            if wrong.fired["status 308"] >= 3:
                break
        assert wrong.fired["status 308"] >= 3, "the fault did not fire"
        assert elsewhere.requests == 0
        assert sender.stats.last_error == "HTTP 308"
        wrong.always = None
        deliver(sender)
        audit(journal, wrong)


DATE = datetime(2024, 1, 1, 12, tzinfo=UTC)
NOON = format_datetime(DATE, usegmt=True)
NOON_AND_33_S = format_datetime(DATE.replace(second=33), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "120"}, 120.0),
        ({"retry_after": "0"}, BACKOFF_FIRST_S),
        ({"retry_after": "86400"}, RETRY_AFTER_MAX_S),
        ({"retry_after": "9" * 400}, RETRY_AFTER_MAX_S),
        (
            {
                "retry_after": format_datetime(DATE.replace(second=33), usegmt=True),
                "date": format_datetime(DATE),
            },
            33.0,
        ),
        (
            {"retry_after": format_datetime(DATE), "date": format_datetime(DATE.replace(second=33))},
            BACKOFF_FIRST_S,
        ),
        ({"retry_after": "soon"}, BACKOFF_FIRST_S),
        ({"retry_after": "-5"}, BACKOFF_FIRST_S),
        ({"retry_after": "Mon, 99 Foo 2024 99:99:99 GMT"}, BACKOFF_FIRST_S),
        ({}, BACKOFF_FIRST_S),
    ],
)
@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honoured_in_seconds_and_as_a_date(
    journal: Path, code: int, headers: dict[str, str], pause_s: float
) -> None:
    with Collector(status(code, **headers)) as collector:
        assert deliver(shipper(journal, collector.url)) == [pause_s]
        assert collector.fired, "the fault did not fire"
        audit(journal, collector)


def test_a_date_without_the_collectors_own_is_held_against_our_clock(journal: Path) -> None:
    at = datetime.fromtimestamp(NOON_NS / 1e9 + 44, tz=UTC)
    with Collector(status(429, retry_after=format_datetime(at, usegmt=True))) as collector:
        assert deliver(shipper(journal, collector.url)) == [44.0]
        assert collector.fired, "the fault did not fire"


# refusals


def test_a_body_too_large_is_halved_and_what_was_taken_is_not_sent_again(journal: Path) -> None:
    with Collector(always=larger_than(8_000)) as collector:
        deliver(shipper(journal, collector.url, lines_max=40))
        assert collector.fired["too_large"] > 5, "the fault did not fire"
        assert not quarantined(journal)
        audit(journal, collector)


def test_poison_is_put_aside_and_holds_up_no_other_bill(journal: Path) -> None:
    poison = record_id(3), record_id(21), record_id(40)
    with Collector(always=poisoned(*poison)) as collector:
        sender = shipper(journal, collector.url, lines_max=20)
        assert deliver(sender) == []
        assert collector.fired["refuses"] > 3, "the fault did not fire"
        assert quarantined(journal) == dict.fromkeys(poison, "HTTP 400")
        assert sender.stats.quarantined == 3
        audit(journal, collector)


def test_a_collector_that_refuses_everything_refuses_us_and_no_bill_is_put_aside(journal: Path) -> None:
    with Collector(always=status(400)) as collector:
        sender = shipper(journal, collector.url)
        for _ in range(3):
            assert sender.step() > 0
        assert collector.fired["status 400"] > 3, "the fault did not fire"
        assert not quarantined(journal)
        assert sender.stats.last_error == "HTTP 400, as for an empty request"
        collector.always = None
        deliver(sender)
        audit(journal, collector)


def test_half_accepted_batches_arrive_whole(journal: Path) -> None:
    with Collector(always=half) as collector:
        deliver(shipper(journal, collector.url, lines_max=8))
        assert collector.fired["half"] > 10, "the fault did not fire"
        assert not quarantined(journal)
        audit(journal, collector)


def test_what_was_accepted_of_a_halved_batch_is_not_sent_again_when_the_rest_must_wait(journal: Path) -> None:
    """A part of it is acknowledged, and then the Collector goes away: nothing excuses a duplicate."""
    large = larger_than(8_000)
    with Collector(*[large] * 6, status(503), always=large) as collector:
        sender = shipper(journal, collector.url, lines_max=40)
        assert sender.step() > 0
        assert collector.fired["too_large"] > 2, "the fault did not fire"
        assert collector.fired["status 503"] == 1, "the fault did not fire"
        assert collector.taken, "nothing was acknowledged before"
        deliver(sender)
        audit(journal, collector)


@pytest.mark.parametrize("code", [400, 415])
def test_a_collector_without_gzip_gets_bills_uncompressed(journal: Path, code: int) -> None:
    with Collector(always=without_gzip(code)) as collector:
        sender = shipper(journal, collector.url, gzip=True)
        assert deliver(sender) == []
        assert collector.fired == {"refuses_gzip": 1}, "once is enough to know"
        assert not quarantined(journal)
        audit(journal, collector)


def test_gzip_is_used_where_it_is_taken_and_poison_does_not_end_it(journal: Path) -> None:
    with Collector(always=poisoned(record_id(5))) as collector:
        sender = shipper(journal, collector.url, gzip=True)
        deliver(sender)
        assert collector.fired["refuses"], "the fault did not fire"
        assert sender._gzip
        assert list(quarantined(journal)) == [record_id(5)]
        audit(journal, collector)


# the network


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody knows."""
    path = tmp_path_factory.mktemp("tls") / "collector.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 "
        f"-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout {path} -out {path}.crt"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_a_collector_whose_certificate_is_not_trusted_gets_nothing(journal: Path, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Collector(tls=context) as collector:
        strict = shipper(journal, collector.url, verify=httpx.create_ssl_context())
        for _ in range(3):
            assert strict.step() > 0
        assert strict.stats.last_error == "ConnectError", "the fault did not fire"
        assert collector.requests == 0
        trusting = shipper(journal, collector.url, verify=ssl.create_default_context(cafile=str(certificate)))
        assert deliver(trusting) == []
        audit(journal, collector)


def test_bills_wait_while_the_url_speaks_the_wrong_of_http_and_https(
    journal: Path, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Collector(tls=context) as secure, Collector() as plain:
        for url in (secure.url.replace("https", "http"), plain.url.replace("http", "https")):
            sender = shipper(journal, url)
            assert sender.step() > 0
            assert sender.stats.last_error is not None, "the fault did not fire"
        assert secure.requests == plain.requests == 0
        assert not quarantined(journal)
        deliver(shipper(journal, plain.url))
        audit(journal, plain)


def test_bills_wait_while_the_name_does_not_resolve(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unknown(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with Collector() as collector:
        with monkeypatch.context() as resolver:
            resolver.setattr(socket, "getaddrinfo", unknown)
            sender = shipper(journal, "http://collector.invalid:4318")
            pauses = [sender.step() for _ in range(4)]
        assert asked, "the fault did not fire"
        assert pauses == sorted(pauses) == [0.5, 1.0, 2.0, 4.0]
        assert sender.stats.last_error == "ConnectError"
        deliver(shipper(journal, collector.url))
        audit(journal, collector)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody can listen on while it is held."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


async def test_after_an_outage_of_a_day_every_bill_arrives_once(tmp_path: Path, closed_port: int) -> None:
    folder = tmp_path / "journal"
    clocks = Clocks()
    every_s = 200
    with Book(folder, "b7", now_ns=clocks.now_ns, bytes_max=1 << 20) as book, Collector() as collector:
        sender = shipper(folder, f"http://127.0.0.1:{closed_port}", clocks=clocks, lines_max=200)
        bills = attempts = 0
        wake_s = longest_s = 0.0
        while clocks.passed_s < 86_400:  # each turn passes time
            clocks.passed_s = min(wake_s, bills * every_s)
            if wake_s <= clocks.passed_s:
                pause_s = sender.step()
                longest_s = max(longest_s, pause_s)
                attempts += sender.stats.failures_in_a_row > 0
                wake_s = clocks.passed_s + pause_s
            else:
                book.writer.tend()
                book.intent(bills)
                await book.durable(book.bill(bills))
                bills += 1
        assert bills >= 432
        assert longest_s == BACKOFF_MAX_S
        assert attempts > 2000, "the fault did not fire"
        assert sender.stats.shipped == 0
        assert len(segments_in(folder, Files())) >= 24
        sender._endpoint = shipper(folder, collector.url)._endpoint  # it is back
        deliver(sender)
        assert sender.stats.shipped == bills
        assert collector.requests <= bills // 200 + len(segments_in(folder, Files()))
        audit(folder, collector)
        assert collector.order == [record_id(number) for number in range(bills)]


# the cursor


def partly(journal: Path, collector: Collector) -> Shipper:
    """Deliver four batches, and end."""
    for _ in range(4):
        collector.script.append(lambda c, request: bool(c.take(request.spans) or request.answer(200)))
    collector.script.append(status(503))
    sender = shipper(journal, collector.url)
    sender.step()
    assert len(collector.taken) == 4 * LINES
    return sender


@pytest.mark.parametrize("damage", ["deleted", "empty", "garbage", "other version", "impossible", "a folder"])
def test_a_lost_cursor_sends_everything_again_and_loses_nothing(journal: Path, damage: str) -> None:
    path = journal / "cursors" / "otlp.json"
    with Collector() as collector:
        partly(journal, collector)
        before = set(collector.taken)
        state = json.loads(path.read_text())
        path.unlink()
        if damage == "a folder":
            path.mkdir()
        elif damage != "deleted":
            contents = {
                "empty": "",
                "garbage": "\x00garbage",
                "other version": json.dumps({**state, "v": 1}),
                "impossible": json.dumps({**state, "offsets": dict.fromkeys(state["offsets"], -1)}),
            }
            path.write_text(contents[damage])
        deliver(shipper(journal, collector.url))
        again = {name for name, copies in collector.taken.items() if len(copies) > 1}
        assert again == before, "the fault did not fire"
        audit(journal, collector, twice=before)


def test_a_cursor_that_cannot_be_written_repeats_no_more_than_one_batch(journal: Path) -> None:
    class FullDisk(Files):
        full = True
        refused = 0

        def replace(self, path: Path, data: bytes) -> None:
            if self.full:
                self.refused += 1
                raise OSError(errno.ENOSPC, "No space left on device")
            super().replace(path, data)

    files = FullDisk()
    with Collector() as collector:
        sender = shipper(journal, collector.url, files=files)
        for _ in range(10):
            with pytest.raises(OSError, match="No space"):
                sender.step()
        assert files.refused == 10, "the fault did not fire"
        assert collector.requests == 1, "what cannot be noted is not followed by more"
        unnoted = set(collector.taken)
        assert len(unnoted) == LINES
        shipper(journal, collector.url, files=files)  # killed here: nothing was noted
        files.full = False
        deliver(shipper(journal, collector.url, files=files))
        audit(journal, collector, twice=unnoted)


def test_space_that_comes_back_costs_no_duplicate(journal: Path) -> None:
    class FullDisk(Files):
        refused = 0

        def replace(self, path: Path, data: bytes) -> None:
            if self.refused < 3:
                self.refused += 1
                raise OSError(errno.ENOSPC, "No space left on device")
            super().replace(path, data)

    files = FullDisk()
    with Collector() as collector:
        deliver(shipper(journal, collector.url, files=files))
        assert files.refused == 3, "the fault did not fire"
        audit(journal, collector)


# time, and the end


async def test_a_clock_set_back_over_midnight_changes_no_order_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    now_ns = [NOON_NS + DAY_NS // 2 - 10**9]
    with Book(folder, "b8", now_ns=lambda: now_ns[0], bytes_max=12_000) as book, Collector() as collector:
        sender = shipper(folder, collector.url)
        for number in range(60):
            if number == 20:
                now_ns[0] += 2 * 10**9  # midnight
            if number == 40:
                now_ns[0] -= 3600 * 10**9  # and back
            book.intent(number)
            await book.durable(book.bill(number))
            if number % 7 == 0:
                sender.step()
        days = [path.parent.name for path in segments_in(folder, Files())]
        assert days != sorted(days), "the fault did not fire"
        deliver(sender)
        audit(folder, collector)
        assert collector.order == [record_id(number) for number in range(60)]


def test_damage_is_told_once_however_often_its_batch_is_sent(journal: Path) -> None:
    path = segments_in(journal, Files())[0]
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with Collector(*[status(503)] * 5) as collector:
        sender = shipper(journal, collector.url)
        deliver(sender)
        assert collector.fired == {"status 503": 5}, "the fault did not fire"
        assert sender.stats.damaged == 1


def test_a_shipper_that_is_told_to_stop_delivers_what_is_there(journal: Path) -> None:
    with Collector() as collector:
        sender = shipper(journal, collector.url, lines_max=1)
        assert len(bills_of(journal)) > BATCHES_A_STEP_MAX, "one step would do"
        sender.start()
        sender.stop(60)
        assert Counter(map(len, collector.taken.values())) == {1: len(bills_of(journal))}
        audit(journal, collector)


def test_a_shipper_stops_in_time_though_the_collector_never_answers(journal: Path) -> None:
    with Collector(always=never) as collector:
        sender = shipper(journal, collector.url, timeout_s=0.5)
        sender.start()
        sender.stop(60)
        assert collector.requests == 1
        collector.always = None
        deliver(shipper(journal, collector.url))
        audit(journal, collector)
