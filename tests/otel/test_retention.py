"""Retention removes nothing that anybody may still need, and what it removes can be proved."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.stack import wait_until
from otel.journal.audit import KINDS, Report, audit_folder
from otel.journal.cursor import Cursor
from otel.journal.files import Files
from otel.journal.lines import GENESIS, Header, chain, encode_header, encode_line
from otel.journal.reader import Reader
from otel.journal.recovery import scan
from otel.journal.removal import Remover, Retention
from otel.journal.retention import Folder, Policy, Segment, Writer, plan
from otel.journal.segments import mark_path, segment_path
from otel.journal.turn import Lock
from otel.shipper import Endpoint, Shipper
from tests.journals import (
    DAY_NS,
    DEAD,
    LAST,
    NOON_NS,
    Book,
    FailingSync,
    copy_of,
    make_journal,
    manifest_line,
    names,
    record_id,
)

LATER_NS = NOON_NS + 3 * DAY_NS
EVERYTHING = Retention(days=1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose two writers are both retired."""
    folder = make_journal(tmp_path_factory.mktemp("sound") / "journal")
    mark_path(folder, LAST).unlink()
    return folder


@pytest.fixture
def many(sound: Path) -> int:
    """How many segments the folder has; it follows from the size of its records."""
    count = len(names(sound))
    assert count >= 10
    return count


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return copy_of(sound, tmp_path / "journal")


def ship(
    folder: Path, *, refuse: Callable[[bytes], bool] = lambda _: False, batches_max: int = 10_000
) -> None:
    """Deliver a folder; the Collector refuses some bills for good."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400 if refuse(request.content) else 200)

    cursor = Cursor(folder / "cursors" / "otlp.json")
    shipper = Shipper(
        Reader(folder, cursor),
        cursor,
        Endpoint(url="http://c/v1/traces", headers={}, timeout_s=1, gzip=False, certificate=None),
        quarantine=folder / "quarantine",
        client=httpx.Client(transport=httpx.MockTransport(answer)),
        jitter=lambda: 0.5,
        lines_max=3,
    )
    shipper.step()


def remover(
    folder: Path,
    retention: Retention = EVERYTHING,
    *,
    files: Files | None = None,
    now_ns: int = LATER_NS,
    consumers: frozenset[str] = frozenset({"otlp"}),
    lead: Lock | None = None,
) -> Remover:
    return Remover(
        folder,
        retention,
        consumers=consumers,
        lead=lead,
        now_ns=lambda: now_ns,
        files=files,
        pause=lambda: None,
    )


def sound_report(folder: Path) -> Report:
    report = audit_folder(folder)
    assert report.complete, report.findings
    assert report.intact, report.findings
    return report


# the decision


days = st.integers(1, 6).map(lambda n: f"2026-01-{n:02d}")


@st.composite
def folders(draw: st.DrawFn) -> Folder:
    writers = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    segments = tuple(
        Segment(
            name=f"{draw(days)}/{writer}-0-{number:06d}.jsonl",
            writer=writer,
            number=number,
            bytes=draw(st.integers(0, 100)),
            plain=draw(st.integers(0, 9)) > 0,
        )
        for writer in writers
        for number in range(1, draw(st.integers(1, 6)))
    )
    some = st.sets(st.sampled_from([s.name for s in segments])) if segments else st.just(set())
    offset = {s.name: st.integers(max(0, s.bytes - 1), s.bytes) for s in segments}
    offsets = st.none() | st.fixed_dictionaries({}, optional=offset)
    return Folder(
        segments=segments,
        writers={
            writer: Writer(
                retired=draw(st.booleans()),
                oldest_open=draw(st.none() | st.integers(1, 6)),
                billed_for=frozenset(draw(st.sets(st.sampled_from("abcd"), max_size=2)) - {writer}),
            )
            for writer in writers
        },
        consumers=draw(st.dictionaries(st.sampled_from(["otlp", "ledger"]), offsets)),
        quarantined=frozenset(draw(some) if draw(st.booleans()) else ()),
        damaged=frozenset(draw(some) if draw(st.booleans()) else ()),
    )


def passed(consumers: Mapping[str, Mapping[str, int] | None], segment: Segment) -> bool:
    return bool(consumers) and all(
        offsets is not None and offsets.get(segment.name, 0) >= segment.bytes
        for offsets in consumers.values()
    )


@given(folders(), st.none() | days, st.none() | st.integers(0, 600), st.integers(1, 20))
def test_nothing_that_anybody_may_need_is_ever_removed(
    folder: Folder, day: str | None, bytes_max: int | None, count_max: int
) -> None:
    found = plan(folder, Policy(keep_from_day=day, bytes_max=bytes_max), count_max)
    assert len(found.remove) <= count_max
    assert len(set(found.remove)) == len(found.remove)
    left = list(folder.segments)
    for segment in found.remove:
        writer = folder.writers[segment.writer]
        assert passed(folder.consumers, segment)
        assert segment.plain
        assert segment.name not in folder.quarantined | folder.damaged
        assert writer.retired or (writer.oldest_open is not None and segment.number < writer.oldest_open)
        assert all(s.number >= segment.number for s in left if s.writer == segment.writer), "not the oldest"
        assert not any(s.writer in writer.billed_for for s in left), "a bill goes before its intent"
        too_old = day is not None and segment.day < day
        too_much = bytes_max is not None and sum(s.bytes for s in left) > bytes_max
        assert too_old or too_much
        left.remove(segment)
    assert not set(found.held) & {s.name for s in found.remove}


@given(folders(), days)
def test_what_nothing_holds_goes_and_what_is_held_has_a_reason(folder: Folder, day: str) -> None:
    found = plan(folder, Policy(keep_from_day=day), 1000)
    left = set(folder.segments) - set(found.remove)
    for writer in folder.writers:
        own = sorted((s for s in left if s.writer == writer), key=lambda s: s.number)
        if own and own[0].day < day:
            assert found.held[own[0].name]


def test_without_a_policy_nothing_is_due() -> None:
    segment = Segment(name="2026-01-01/a-0-000001.jsonl", writer="a-0", number=1, bytes=1)
    free = Folder(
        segments=(segment,),
        writers={"a-0": Writer(retired=True, oldest_open=1)},
        consumers={"otlp": {segment.name: 1}},
    )
    assert plan(free, Policy(keep_from_day="2026-01-02"), 9).remove == (segment,)
    assert plan(free, Policy(), 9).remove == ()
    assert plan(free, Policy(keep_from_day="2026-01-01"), 9).remove == ()


# the removal


def test_what_is_removed_is_noted_and_the_audit_still_proves_everything(many: int, folder: Path) -> None:
    before = sound_report(folder).facts
    ship(folder)
    assert remover(folder).run() == before.segments == many
    after = sound_report(folder).facts
    assert (after.segments, after.removed_segments) == (0, before.segments)
    assert after.removed_bills == before.bills > 0
    assert after.removed_cost_pico_usd == sum(before.cost_pico_usd_by_status.values()) > 0
    assert not list(folder.glob("2*")), "empty folders of past days go, too"


@pytest.mark.parametrize("count", range(1, 11))
def test_after_any_number_of_removals_the_audit_finds_nothing(folder: Path, count: int) -> None:
    before = sound_report(folder).facts
    ship(folder)
    removed = remover(folder)
    for segment in removed._plan(count).remove:
        assert removed._remove(segment, removed._manifest())
    after = sound_report(folder).facts
    assert after.removed_segments == count
    assert after.removed_bills + after.bills == before.bills
    total = sum(after.cost_pico_usd_by_status.values()) + after.removed_cost_pico_usd
    assert total == sum(before.cost_pico_usd_by_status.values())


def test_a_line_of_the_manifest_is_what_the_audit_expects(folder: Path) -> None:
    expected = {name: manifest_line(folder, name) for name in names(folder)}
    ship(folder)
    remover(folder).run()
    for line in (folder / "removed.jsonl").read_text().splitlines():
        entry = json.loads(line)
        want = expected[entry["segment"]]
        for key in ("bytes", "first", "last", "hash"):
            assert entry[key] == want[key], key


async def test_a_bill_that_stands_again_after_a_failed_sync_is_noted_once(tmp_path: Path) -> None:
    again = 0
    for failing in range(2, 10):
        folder = tmp_path / f"{failing}"
        files = FailingSync(failing)
        with Book(folder, "b3", files=files) as book:
            for number in range(6):
                await book.durable(book.intent(number))
                await book.durable(book.bill(number))
        assert files.failed == 1
        mark_path(folder, "b3-0").unlink()
        before = sound_report(folder).facts
        again += before.again
        ship(folder)
        remover(folder).run()
        after = sound_report(folder).facts
        assert after.segments == 0
        assert after.removed_bills == before.bills == 6
        assert after.removed_cost_pico_usd == sum(before.cost_pico_usd_by_status.values())
    assert again > 3, "no sync failed when it mattered"


@given(bills=st.integers(0, 11))
def test_nothing_unshipped_is_ever_removed(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, bills: int
) -> None:
    folder = copy_of(sound, tmp_path_factory.mktemp("part") / "journal")
    cursor = Cursor(folder / "cursors" / "otlp.json")
    delivered: list[bytes] = []
    for batch in itertools.islice(Reader(folder, cursor).batches(3, 1 << 20), bills):
        delivered += batch.spans
        cursor.move(batch.segment, batch.end, batch.writer, batch.seen)
        cursor.save()
    remover(folder).run()
    left = b"".join(path.read_bytes() for path in folder.glob("2*/*.jsonl"))
    every = b"".join(path.read_bytes() for path in sound.glob("2*/*.jsonl"))
    lost = [line for line in every.splitlines() if line not in left and b'"k":"S"' in line]
    assert all(any(spans in line for spans in delivered) for line in lost)
    sound_report(folder)
    shutil.rmtree(folder)


def put_back(path: Path, segment: str) -> None:
    """Let a cursor lack the last byte of a segment."""
    cursor = Cursor(path)
    cursor.move(segment, cursor[segment] - 1)
    cursor.save()


def test_a_cursor_of_any_consumer_counts_and_one_that_lacks_blocks(many: int, folder: Path) -> None:
    ship(folder)
    assert remover(folder, consumers=frozenset({"otlp", "ledger"})).run() == 0
    shutil.copy(folder / "cursors" / "otlp.json", folder / "cursors" / "ledger.json")
    put_back(folder / "cursors" / "ledger.json", names(folder)[4])
    assert remover(folder).run() == 4, "all before the one that the ledger has not passed"
    (folder / "cursors" / "ledger.json").write_text("{")
    assert remover(folder).run() == 0, "nobody knows what the ledger has passed"
    (folder / "cursors" / "ledger.json").unlink()
    assert remover(folder).run() == many - 4
    sound_report(folder)


def test_without_any_consumer_nothing_is_removed(many: int, folder: Path) -> None:
    assert remover(folder, consumers=frozenset()).run() == 0
    ship(folder)
    assert remover(folder, consumers=frozenset()).run() == many


def test_young_segments_stay_and_a_bound_in_bytes_takes_the_oldest(folder: Path) -> None:
    ship(folder)
    assert remover(folder, now_ns=NOON_NS + DAY_NS + DAY_NS // 3).run() == 0
    assert remover(folder, Retention(days=2), now_ns=NOON_NS + 2 * DAY_NS).run() == 0
    sizes = [(folder / name).stat().st_size for name in names(folder)]
    assert remover(folder, Retention(bytes_max=sum(sizes[3:])), now_ns=NOON_NS).run() == 3
    assert remover(folder, Retention(bytes_max=sum(sizes[3:]) - 1), now_ns=NOON_NS).run() == 1
    sound_report(folder)


def test_a_segment_with_a_bill_in_quarantine_stays_until_that_is_dealt_with(many: int, folder: Path) -> None:
    poison = b"01890000-0000-7000-8000-00000000000a"
    ship(folder, refuse=lambda body: poison in body)
    refused = folder / "quarantine" / "refused.jsonl"
    segment = json.loads(refused.read_text())["segment"]
    stays = names(folder).index(segment)
    assert remover(folder).run() == stays > 0
    assert (folder / segment).exists()
    refused.rename(folder / "quarantine" / "refused.jsonl.seen")
    assert remover(folder).run() == many - stays
    assert (folder / "quarantine" / "refused.jsonl.seen").exists()


def test_a_damaged_segment_stays_with_all_that_may_need_it(folder: Path) -> None:
    name = names(folder, DEAD)[2]
    data = bytearray((folder / name).read_bytes())
    data[3000] ^= 1
    (folder / name).write_bytes(data)
    ship(folder)
    assert remover(folder).run() == 2
    assert (folder / name).exists()
    assert len(names(folder, LAST)) == len([n for n in names(folder) if n not in names(folder, DEAD)]) > 0


def test_bills_of_a_recovery_stay_until_the_intents_are_gone(folder: Path) -> None:
    ship(folder)
    last = names(folder, DEAD)[-1]
    put_back(folder / "cursors" / "otlp.json", last)
    remover(folder).run()
    assert names(folder, DEAD) == [last]
    assert names(folder, LAST), "the bills of its open intents are there"
    sound_report(folder)


async def test_a_living_writer_loses_no_segment_with_an_open_intent(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with Book(folder, "b2", now_ns=lambda: NOON_NS) as book:
        for number in range(20):
            book.intent(number)
            if number != 9:
                await book.durable(book.bill(number))
        ship(folder)
        open_in = next(
            index
            for index, name in enumerate(names(folder))
            if f'"id":"{record_id(9)}"' in (folder / name).read_text()
        )
        assert remover(folder).run() == open_in > 0
        assert [i.call for i in scan(folder, Files()).open_intents] == []
        sound_report(folder)
        await book.durable(book.bill(9))
        for number in range(30, 40):
            book.intent(number)
            await book.durable(book.bill(number))
        ship(folder)
        newest = names(folder)[-1]
        assert remover(folder).run() > 3
        assert newest in names(folder)
        sound_report(folder)


def test_a_dead_writer_that_awaits_recovery_keeps_its_intents(tmp_path: Path) -> None:
    folder = make_journal(tmp_path / "journal")
    mark_path(folder, DEAD).write_bytes(b"\xff" * 16)
    ship(folder)
    remover(folder).run()
    open_in = "0000000015"  # the last intent that its writer left open
    assert any(open_in in (folder / name).read_text() for name in names(folder, DEAD))
    report = audit_folder(folder)
    assert report.intact, report.findings
    assert report.complete, report.findings


# crashes, disks, and what does not belong there


class Stopped(BaseException):
    """The process is gone."""


class DyingFiles(Files):
    """A disk whose process dies at a named moment."""

    def __init__(self, moment: str, nth: int) -> None:
        self.moment = moment
        self.left = nth
        self.died = False

    def _pass(self, moment: str) -> None:
        if moment == self.moment:
            self.left -= 1
            if self.left == 0:
                self.died = True
                raise Stopped

    def append(self, path: Path, data: bytes) -> None:
        self._pass("before the note")
        if self.moment == "within the note" and self.left == 1:
            with path.open("ab") as file:
                file.write(data[: len(data) // 2])
        self._pass("within the note")
        super().append(path, data)
        self._pass("noted")

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._pass("removed")


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("moment", ["before the note", "within the note", "noted", "removed"])
def test_a_crash_at_any_moment_of_a_removal_is_finished_by_the_next_run(
    folder: Path, moment: str, nth: int
) -> None:
    before = sound_report(folder).facts
    ship(folder)
    files = DyingFiles(moment, nth)
    with pytest.raises(Stopped):
        remover(folder, files=files).run()
    assert files.died
    middle = audit_folder(folder)
    assert middle.complete, middle.findings
    assert middle.intact, middle.findings
    remover(folder).run()
    after = sound_report(folder).facts
    assert after.removed_segments == before.segments
    assert after.removed_bills == before.bills
    lines = (folder / "removed.jsonl").read_text().splitlines()
    assert len({json.loads(line)["segment"] for line in lines}) == len(lines) == before.segments


def test_a_segment_that_goes_without_a_note_is_named_with_its_place(folder: Path) -> None:
    ship(folder)
    remover(folder, Retention(bytes_max=sum((folder / n).stat().st_size for n in names(folder)[3:]))).run()
    gone = names(folder, DEAD)[0]
    (folder / gone).unlink()
    report = audit_folder(folder)
    assert not report.complete
    found = [finding for finding in report.findings if finding.kind == "segment_missing"]
    assert [finding.segment for finding in found] == [names(folder, DEAD)[0]]
    assert gone.rpartition("/")[2] in found[0].what
    assert {f.kind for f in report.findings if KINDS[f.kind].verdict != "note"} == {"segment_missing"}


def test_a_note_that_cannot_be_written_keeps_the_segment(many: int, folder: Path) -> None:
    class Full(Files):
        tried = 0

        def append(self, path: Path, data: bytes) -> None:
            self.tried += 1
            raise OSError(28, "full")

    ship(folder)
    files = Full()
    with pytest.raises(OSError, match="full"):
        remover(folder, files=files).run()
    assert files.tried == 1
    assert len(names(folder)) == many


def test_links_and_strangers_are_left_alone(folder: Path, tmp_path: Path) -> None:
    ship(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    linked = names(folder, DEAD)[3]
    precious = elsewhere / "precious.jsonl"
    (folder / linked).rename(precious)
    (folder / linked).symlink_to(precious)
    day = folder / linked.partition("/")[0]
    strangers = [day / "notes.jsonl", day / "a-b-c.txt", folder / "2020-01-01" / "README.jsonl"]
    for stranger in strangers:
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_text("mine")
    assert remover(folder).run() == 3
    assert precious.exists()
    assert (folder / linked).is_symlink()
    assert all(stranger.read_text() == "mine" for stranger in strangers)


def test_a_day_that_is_a_link_keeps_its_segments(many: int, folder: Path, tmp_path: Path) -> None:
    ship(folder)
    day = folder / names(folder)[0].partition("/")[0]
    day.rename(tmp_path / "moved")
    day.symlink_to(tmp_path / "moved")
    assert remover(folder).run() == 0
    assert len(names(folder)) == many


def test_a_manifest_that_is_a_link_or_says_something_else_stops_all_removal(
    many: int, folder: Path, tmp_path: Path
) -> None:
    ship(folder)
    (tmp_path / "other").write_text("")
    (folder / "removed.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(Exception, match="is a link"):
        remover(folder).run()
    (folder / "removed.jsonl").unlink()
    entry = manifest_line(folder, names(folder)[0])
    (folder / "removed.jsonl").write_text(json.dumps({**entry, "hash": "1" * 16}) + "\n")
    with pytest.raises(Exception, match="another account"):
        remover(folder).run()
    assert len(names(folder)) == many


def test_a_thread_removes_by_itself_and_ends_when_told(many: int, folder: Path) -> None:
    ship(folder)
    removed = remover(folder)
    removed.start()
    assert wait_until(lambda: removed.removed == many, 60, 0.01)
    removed.stop(60)
    assert not [thread for thread in threading.enumerate() if thread.name == "retention"]


class TakenLead(Lock):
    """The lock of the one that removes, which another worker has."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = threading.Event()

    def take(self) -> bool:
        self.asked.set()
        return False


def test_of_several_workers_only_the_one_with_the_lead_removes(folder: Path) -> None:
    ship(folder)
    lead = TakenLead(folder / "removing")
    idle = remover(folder, lead=lead)
    idle.start()
    assert lead.asked.wait(60)
    idle.stop(60)
    assert idle.removed == 0
    assert remover(folder, lead=Lock(folder / "removing")).run() > 0, "there was something to remove"


def test_a_cursor_is_durable_before_anything_goes_on_its_word(folder: Path) -> None:
    """A power loss must not take a cursor back behind what was removed."""
    ship(folder)
    done: list[str] = []

    class Noting(Files):
        def sync_directory(self, path: Path) -> None:
            done.append(path.name)
            super().sync_directory(path)

        def remove(self, path: Path) -> None:
            done.append("removed")
            super().remove(path)

    assert remover(folder, files=Noting()).run() > 0
    assert "cursors" in done[: done.index("removed")]


def test_the_command_verifies_a_folder_after_retention(many: int, folder: Path) -> None:
    ship(folder)
    remover(folder).run()
    command = [sys.executable, "-m", "gateway", "verify", "--journal", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    report = json.loads(done.stdout)
    assert report["complete"]
    assert report["intact"]
    assert report["facts"]["removed_segments"] == many


# what a power loss and a failed sync leave, beside retention


def crafted(folder: Path, number: int, header: Header, first: int, previous: str, *lines: bytes) -> str:
    """Write a segment of writer `bc-0`; return the chain hash of its last line."""
    path = segment_path(folder, NOON_NS, "bc-0", number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_header("s" * 32, first, previous, header) + b"".join(lines))
    return chain(lines[-1]) if lines else previous


def crafted_header(number: int, previous: str | None, durable: int = 0) -> Header:
    return Header(
        boot="bc",
        worker=0,
        segment=number,
        previous_segment=previous,
        created_unix_ns=str(NOON_NS),
        oldest_open=number,
        durable=durable,
    )


def entry(folder: Path, number: int) -> str:
    """Note one segment of `bc-0` as removed, and remove it; return its file name."""
    path = segment_path(folder, NOON_NS, "bc-0", number)
    line = manifest_line(folder, str(path.relative_to(folder)))
    (folder / "removed.jsonl").write_text(json.dumps({**line, "bills": 0}) + "\n")
    path.unlink()
    return path.name


def progress(number: int, previous: str) -> bytes:
    return encode_line("I", record_id(number), number, previous, "{}")


@pytest.mark.parametrize(("durable", "kind"), [(1, "lost_unpromised"), (2, "gap")])
def test_what_a_power_loss_took_behind_a_removed_segment_was_never_promised(
    tmp_path: Path, durable: int, kind: str
) -> None:
    folder = tmp_path / "journal"
    one = progress(1, GENESIS)
    crafted(folder, 1, crafted_header(1, None), 1, GENESIS, one)
    lost = chain(progress(2, chain(one)))  # it was written to the first segment, and never synced
    crafted(folder, 2, crafted_header(2, "bc-0-000001.jsonl", durable), 3, lost)
    mark_path(folder, "bc-0").parent.mkdir()
    mark_path(folder, "bc-0").write_bytes(b"\0" * 16)
    entry(folder, 1)
    assert audit_folder(folder).counts == {kind: 1}


def test_a_header_may_pass_over_a_segment_behind_a_removed_one(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    one = progress(1, GENESIS)
    last = crafted(folder, 1, crafted_header(1, None), 1, GENESIS, one)
    two = progress(2, last)
    crafted(folder, 2, crafted_header(2, "bc-0-000001.jsonl", 1), 2, last, two)
    crafted(folder, 3, crafted_header(3, "bc-0-000001.jsonl", 1), 2, last, two)  # its sync failed
    mark_path(folder, "bc-0").parent.mkdir()
    mark_path(folder, "bc-0").write_bytes(b"\xff" * 16)
    entry(folder, 1)
    report = audit_folder(folder)
    assert report.intact, report.findings
    assert "gap" not in report.counts


@pytest.mark.parametrize(("durable", "kind"), [(1, "lost_unpromised"), (2, "gap"), (None, "gap")])
def test_what_was_lost_between_two_removed_segments_is_judged_by_what_was_durable(
    tmp_path: Path, durable: int | None, kind: str
) -> None:
    folder = tmp_path / "journal"
    (folder / "2026-01-01").mkdir(parents=True)
    lines = [
        {"segment": f"2024-10-04/bc-0-{number:06d}.jsonl", "first": first, "last": first, "hash": "1" * 16}
        for number, first in ((1, 1), (2, 3))
    ]
    lines[1] |= {} if durable is None else {"durable": durable}
    (folder / "removed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert audit_folder(folder).counts == {kind: 1}
