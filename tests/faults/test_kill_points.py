"""Killed at any named point, also while recovering: every bill stands, once, and says the truth.

The table says for each crash point what record it leaves. The sweep kills at points and moments drawn from a
seed, up to three lives in a row; SPANBILL_TORTURE=1 makes it a long one.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections import Counter

import pytest

from gateway.pipeline import PROGRESS_BYTES
from otel.journal import Durability
from tests.faults.kill_audit import Bill, Got
from tests.faults.kill_points import POINTS, RECOVERING
from tests.faults.kill_workers import reports
from tests.faults.killing import CHAT, MESSAGES, Ask, Kill, Life, Report, Scenario

TORTURE = os.environ.get("SPANBILL_TORTURE") == "1"
KILLS = 10_000 if TORTURE else 2_000
A_POINT_AT_LEAST = 20 if TORTURE else 5
DURABILITIES: tuple[Durability, ...] = ("group", "process", "strict")


NONE = "no record"
UNMETERED = "interrupted/unmetered"
ESTIMATED = "interrupted/estimated"
FINAL = "ok/final"

# One request: what is asked, point, passing: the bill, was the provider called, did the caller see the end.
TABLE = {
    ("stream", "recovery.scanned", 1): (NONE, False, False),
    ("stream", "mark.before", 1): (NONE, False, False),
    ("stream", "mark.before_rename", 1): (NONE, False, False),
    ("stream", "mark.made", 1): (NONE, False, False),
    ("stream", "segment.before_create", 1): (NONE, False, False),
    ("stream", "segment.created", 1): (NONE, False, False),
    ("stream", "segment.header_half_written", 1): (NONE, False, False),
    ("stream", "segment.header_written", 1): (NONE, False, False),
    ("stream", "intent.before_write", 1): (NONE, False, False),
    ("stream", "intent.half_written", 1): (NONE, False, False),
    ("stream", "intent.written", 1): (UNMETERED, False, False),
    ("stream", "upstream.before", 1): (UNMETERED, False, False),
    ("stream", "upstream.called", 1): (UNMETERED, True, False),
    ("stream", "upstream.head", 1): (UNMETERED, True, False),
    ("stream", "stream.mid", 1): (UNMETERED, True, False),
    ("stream", "release.before", 1): (UNMETERED, True, False),
    ("stream", "release.after", 1): (UNMETERED, True, False),
    ("stream", "stream.mid", 5): (UNMETERED, True, False),
    ("stream", "progress.before_write", 1): (UNMETERED, True, False),
    ("stream", "progress.half_written", 1): (UNMETERED, True, False),
    ("stream", "progress.written", 1): (ESTIMATED, True, False),
    ("stream", "progress.before_write", 2): (ESTIMATED, True, False),
    ("stream", "progress.half_written", 2): (ESTIMATED, True, False),
    ("stream", "progress.written", 2): (ESTIMATED, True, False),
    ("stream", "stream.mid", 29): (ESTIMATED, True, False),
    ("stream", "release.before", 29): (ESTIMATED, True, False),
    ("stream", "release.after", 29): (ESTIMATED, True, False),
    ("stream", "upstream.after_last_byte_before_settle_write", 1): (ESTIMATED, True, False),
    ("stream", "settle.before_write", 1): (ESTIMATED, True, False),
    ("stream", "settle.half_written", 1): (ESTIMATED, True, False),
    ("stream", "settle.written", 1): (FINAL, True, False),
    ("stream", "settle.synced_before_release", 1): (FINAL, True, False),
    ("stream", "after_release", 1): (FINAL, True, True),
    ("stream", "ship.before", 1): (FINAL, True, True),
    ("stream", "ship.sent_before_answer", 1): (FINAL, True, True),
    ("stream", "ship.accepted_before_cursor", 1): (FINAL, True, True),
    ("stream", "cursor.half_written", 1): (FINAL, True, True),
    ("stream", "cursor.written_before_rename", 1): (FINAL, True, True),
    ("stream", "cursor.renamed", 1): (FINAL, True, True),
    ("stream", "close.before", 1): (FINAL, True, True),
    ("stream", "close.after", 1): (FINAL, True, True),
    ("whole", "intent.half_written", 1): (NONE, False, False),
    ("whole", "intent.written", 1): (UNMETERED, False, False),
    ("whole", "upstream.before", 1): (UNMETERED, False, False),
    ("whole", "upstream.called", 1): (UNMETERED, True, False),
    ("whole", "upstream.head", 1): (UNMETERED, True, False),
    ("whole", "upstream.after_last_byte_before_settle_write", 1): (UNMETERED, True, False),
    ("whole", "settle.before_write", 1): (UNMETERED, True, False),
    ("whole", "settle.half_written", 1): (UNMETERED, True, False),
    ("whole", "settle.written", 1): (FINAL, True, False),
    ("whole", "settle.synced_before_release", 1): (FINAL, True, False),
    ("whole", "after_release", 1): (FINAL, True, True),
    ("whole", "close.before", 1): (FINAL, True, True),
}
GROUP_ONLY = {
    # the first sync is the intent's: a stream releases nothing before it
    ("stream", "sync.before", 1): (UNMETERED, True, False),
    ("stream", "sync.after", 1): (UNMETERED, True, False),
    ("whole", "sync.before", 2): (FINAL, True, False),
    ("whole", "sync.after", 2): (FINAL, True, False),
}
SIX = (
    Ask(path=CHAT),
    Ask(path=MESSAGES),
    Ask(path=CHAT),
    Ask(path=MESSAGES, stream=False),
    Ask(path=CHAT, tokens=20),
    Ask(path=CHAT, leaves_after=3),
)
LEFT_OPEN = Kill("release.after", 70)
"""Kills the six after two progress records each: three requests are open."""
AT_ROTATION = [name for name in POINTS if name.startswith("rotation.")]
AT_SHIPPING = [name for name in POINTS if name.startswith(("ship.", "cursor."))]
TWICE = {"ship.accepted_before_cursor", "cursor.half_written", "cursor.written_before_rename"}
"""After these the Collector has what the cursor does not know of: OTLP's one duplicate."""
EMPTY = Life(asks=())


def asked(what: str, path: str) -> Ask:
    return Ask(path=path, stream=what == "stream", tokens=90)


def fixed() -> list[Scenario]:
    """Return every scenario of the tables, to be run at once."""
    found = []
    for durability in DURABILITIES:
        for path in (CHAT, MESSAGES):
            for what, point, nth in TABLE:
                life = Life(asks=(asked(what, path),), kill=Kill(point, nth))
                name = f"{durability} {path} {what} {point} {nth}"
                found.append(Scenario(name=name, lives=(life, EMPTY), durability=durability))
    for what, point, nth in GROUP_ONLY:
        life = Life(asks=(asked(what, CHAT),), kill=Kill(point, nth))
        found.append(Scenario(name=f"sync {what} {point} {nth}", lives=(life, EMPTY)))
    first = Life(asks=SIX, kill=LEFT_OPEN)
    found.append(Scenario(name="recovered", lives=(first, EMPTY), durability="process"))
    for point in [*RECOVERING, "segment.header_half_written", "mark.before_rename", "close.before"]:
        again = Life(asks=(), kill=Kill(point))
        found.append(
            Scenario(
                name=f"recovered again {point}", lives=(first, again, again, EMPTY), durability="process"
            )
        )
    for point in AT_ROTATION:
        life = Life(asks=SIX, kill=Kill(point))
        found += [Scenario(name=f"{d} {point}", lives=(life, EMPTY), durability=d) for d in DURABILITIES]
    for point in AT_SHIPPING:
        life = Life(asks=SIX, kill=Kill(point, 2))
        found += [Scenario(name=f"{d} {point}", lives=(life, EMPTY), durability=d) for d in DURABILITIES]
    return found


@pytest.fixture(scope="module")
def told() -> dict[str, Report]:
    """Reports of all fixed scenarios, by name."""
    scenarios = fixed()
    found = {report.name: report for report in reports(scenarios)}
    assert len(found) == len(scenarios), "two scenarios have one name, or one was not run"
    return found


def check(report: Report, *killed: str) -> tuple[list[Bill], dict[str, Got], list[str]]:
    """Hold a report to the audit and to its kills; return bills, callers, calls."""
    assert report.wrong == []
    assert [point for point in report.killed if point is not None] == list(killed), "the kill did not fire"
    assert report.facts is not None
    return report.facts.journal.bills, report.facts.got, [call.id for call in report.facts.calls]


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize(("case", "left"), TABLE.items(), ids=[" ".join(map(str, case)) for case in TABLE])
def test_each_crash_point_leaves_the_right_record(
    told: dict[str, Report],
    case: tuple[str, str, int],
    left: tuple[str, bool, bool],
    path: str,
    durability: str,
) -> None:
    what, point, nth = case
    bills, got, calls = check(told[f"{durability} {path} {what} {point} {nth}"], point)
    hold(left, bills, got, calls)


@pytest.mark.parametrize(
    ("case", "left"), GROUP_ONLY.items(), ids=[" ".join(map(str, case)) for case in GROUP_ONLY]
)
def test_a_crash_around_a_sync_leaves_what_was_written(
    told: dict[str, Report], case: tuple[str, str, int], left: tuple[str, bool, bool]
) -> None:
    what, point, nth = case
    bills, got, calls = check(told[f"sync {what} {point} {nth}"], point)
    if what == "stream":  # it runs beside the call: which of them comes first is not said
        left = (left[0], bool(calls), False)
    hold(left, bills, got, calls)


def hold(left: tuple[str, bool, bool], bills: list[Bill], got: dict[str, Got], calls: list[str]) -> None:
    record, called, ended = left
    assert [f"{bill.outcome}/{bill.status}" for bill in bills] == ([] if record == NONE else [record])
    assert calls == (["0-0"] if called else [])
    assert sum(one.ends for one in got.values()) == ended
    for bill in bills:
        if record == ESTIMATED:
            assert bill.noted_bytes > PROGRESS_BYTES
            assert bill.output is not None
            assert bill.output_max is not None
            assert bill.cost is not None
        elif record == UNMETERED:
            assert (bill.output, bill.cost) == (None, None)


@pytest.mark.parametrize(
    "point", [*RECOVERING, "segment.header_half_written", "mark.before_rename", "close.before"]
)
def test_a_recovery_that_is_killed_twice_leaves_the_bills_of_one_that_was_not(
    told: dict[str, Report], point: str
) -> None:
    undisturbed, _, _ = check(told["recovered"], LEFT_OPEN.point)
    assert sum(bill.outcome == "interrupted" for bill in undisturbed) >= 2, "nothing was left to recover"
    # Once a recovery has written all bills or forgotten the dead, the second one does not come by the point.
    report = told[f"recovered again {point}"]
    killed = [each for each in report.killed if each is not None]
    bills, _, _ = check(report, *killed)
    assert killed[:2] == [LEFT_OPEN.point, point]
    assert sorted(bill.span for bill in bills) == sorted(bill.span for bill in undisturbed)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("point", AT_ROTATION)
def test_a_crash_during_rotation_loses_nothing_of_either_segment(
    told: dict[str, Report], point: str, durability: str
) -> None:
    report = told[f"{durability} {point}"]
    bills, _, calls = check(report, point)
    assert set(calls) <= {bill.id for bill in bills}
    assert report.facts is not None
    assert report.facts.journal.segments >= 2


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("point", AT_SHIPPING)
def test_a_crash_during_shipping_delivers_every_bill_and_at_most_one_batch_twice(
    told: dict[str, Report], point: str, durability: str
) -> None:
    report = told[f"{durability} {point}"]
    bills, _, _ = check(report, point)
    assert report.facts is not None
    accepted = Counter(report.facts.accepted)
    assert set(accepted) == {bill.span for bill in bills}
    twice = sum(count > 1 for count in accepted.values())
    assert (1 <= twice <= 3) if point in TWICE else twice == 0
    assert max(accepted.values()) <= 2


# the sweep


def mix(draw: random.Random) -> tuple[Ask, ...]:
    return tuple(
        Ask(
            path=draw.choice((CHAT, MESSAGES)),
            stream=draw.random() < 0.7,
            tokens=draw.choice((1, 5, 20, 40, 60, 90)),
            leaves_after=draw.choice((None, None, None, 1, 3, 10)),
        )
        for _ in range(draw.randint(3, 6))
    )


def reach(point: str) -> int:
    """Return about how often a life passes a point: where to look for the n-th passing."""
    if point in ("stream.mid", "release.before", "release.after"):
        return 80
    if point.startswith(("sync.", "mark.before_move", "mark.moved")):
        return 10
    if point.startswith(("intent.", "upstream.", "settle.", "progress.", "after_release", "recovery.")):
        return 4
    return 2


def kill_at(point: str, draw: random.Random) -> Kill:
    return Kill(point, 1 + int(draw.random() ** 2 * reach(point)))


def scenario(number: int) -> Scenario:
    """Return the scenario of a number: the same one, always."""
    draw = random.Random(number)
    point = POINTS[number % len(POINTS)]
    kills = []
    if point in RECOVERING:
        kills.append(Kill(draw.choice(("stream.mid", "release.after", "upstream.head")), draw.randint(2, 60)))
        kills.append(Kill(point, 1 if draw.random() < 0.7 else 2))
    else:
        kills.append(kill_at(point, draw))
    if draw.random() < 0.6:
        kills.append(kill_at(draw.choice(POINTS), draw))
    if draw.random() < 0.3:
        kills.append(kill_at(draw.choice(POINTS), draw))
    return Scenario(
        name=f"sweep {number}",
        lives=(*(Life(asks=mix(draw), kill=kill) for kill in kills), Life(asks=mix(draw)[:3])),
        durability=DURABILITIES[draw.randrange(3)],
        tick_ns=draw.choice((1_000, 1_000_000, 40_000_000)),
        over_midnight=draw.random() < 0.1,
    )


@pytest.mark.timeout(3600 if TORTURE else 300)
def test_no_kill_loses_or_doubles_a_bill() -> None:
    killed: Counter[str] = Counter()
    bills = lives = 0
    began = time.monotonic()
    with contextlib.closing(reports(map(scenario, range(KILLS)))) as found:
        for report in found:
            assert report.wrong == [], f"{report.name}: `scenario({report.name.split()[1]})` is what failed"
            before = killed.total()
            killed.update([point for point in report.killed if point is not None])
            lives += len(report.killed)
            assert report.facts is not None
            bills += len(report.facts.journal.bills)
            if killed.total() // 500 > before // 500:
                took_s = time.monotonic() - began
                sys.stderr.write(
                    f"{killed.total()} of {KILLS} kills, {lives} lives, {bills} bills, {took_s:.0f} s\n"
                )
            if killed.total() >= KILLS:
                break
    assert killed.total() >= KILLS
    assert {point: killed[point] for point in POINTS if killed[point] < A_POINT_AT_LEAST} == {}
