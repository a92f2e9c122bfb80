"""The audit after kills: what the provider, the callers and the Collector saw, against the journal.

    facts_of      reads the folder that `tests.faults.killing` left
    read_journal  reads any journal folder: lines, chain, bills, intents
    audit         says what is wrong, as sentences; nothing wrong is an empty list

Everything is a multiset: a bill that stands twice is as wrong as one that is missing. Nothing of the
product's reader, recovery or shipper is used, only the line format's pure functions. `spanbill verify` must
find nothing either, by its own reading.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.pipeline import PROGRESS_BYTES
from otel.journal.audit import audit_folder
from otel.journal.lines import (
    GENESIS,
    Damage,
    chain,
    header_of,
    kind_of,
    lines_in,
    number_of,
    parse,
    previous_of,
)
from tests.faults.kill_points import TORN
from tests.gateway_process import attributes, spans_in

EVENT_BYTES_MIN = 90
"""No content event of the fake providers is smaller: so many tokens at most are in the slack."""


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """One effective bill.

    Args:
        output_max: upper bound of an estimated output, None where it was reported.
        noted_bytes: size of the reply that the bill is about.
        span: its span as canonical JSON.
    """

    id: str
    trace_id: str
    writer: str
    outcome: str
    status: str
    span: str
    cost: str | None = None
    input: int | None = None
    output: int | None = None
    output_max: int | None = None
    noted_bytes: int = 0


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the provider counted, and the usage that it has told or would have told at its end."""

    id: str
    input: int
    output: int


class Got(msgspec.Struct, kw_only=True):
    """What one caller received: of a stream bytes and content tokens; `ends` counts ends of its answer."""

    bytes: int = 0
    tokens: int = 0
    ends: int = 0


class Journal(msgspec.Struct, kw_only=True):
    """A journal folder as read: `problems` are breaks of the format, the chain or the numbers."""

    intents: list[str] = []
    trace_ids: dict[str, str] = {}
    noted: dict[str, int] = {}
    bills: list[Bill] = []
    writers: list[str] = []
    marks: list[str] = []
    segments: int = 0
    torn: int = 0
    problems: list[str] = []


class Facts(msgspec.Struct, kw_only=True):
    """All that is known after the last life; `accepted` is one span as canonical JSON for each delivery."""

    journal: Journal
    calls: list[Call] = []
    got: dict[str, Got] = {}
    accepted: list[str] | None = None


def facts_of(folder: Path) -> Facts:
    """Read the folder of a scenario."""
    got: dict[str, Got] = {}
    for event in _events(folder / "client.jsonl"):
        have = got.setdefault(event["id"], Got())
        have.bytes += event["bytes"]
        have.tokens += event["tokens"]
        have.ends += event["end"]
    journal = read_journal(folder / "journal")
    journal.problems += verified(folder / "journal")
    return Facts(
        journal=journal,
        calls=[Call(**event) for event in _events(folder / "upstream.jsonl")],
        got=got,
        accepted=[
            canonical(span)
            for event in _events(folder / "collector.jsonl")
            for span in spans_in({"resourceSpans": event["accepted"]})
        ],
    )


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def canonical(span: dict[str, Any]) -> str:
    return json.dumps(span, sort_keys=True)


def verified(directory: Path) -> list[str]:
    """Return what `spanbill verify` says against a folder."""
    report = audit_folder(directory)
    return [
        f"verify: {finding.kind}: {finding.what} at {finding.where}"
        for finding in report.findings
        if finding.verdict != "note"
    ]


# the journal


def read_journal(directory: Path) -> Journal:
    """Read a journal folder whose gateway is gone."""
    journal = Journal(marks=sorted(path.name for path in (directory / "writers").glob("*")))
    segments: dict[str, dict[int, Path]] = {}
    for path in directory.glob("[0-9]*-[0-9]*-[0-9]*/*.jsonl"):
        writer, _, number = path.stem.rpartition("-")
        segments.setdefault(writer, {})[int(number)] = path
    heads: dict[str, tuple[int, str]] = {}
    claims: list[tuple[str, dict[str, tuple[int, str]]]] = []
    for writer in sorted(segments):
        _Sequence(journal, writer, segments[writer], heads, claims).read()
    journal.writers = sorted(segments)
    journal.segments = sum(len(paths) for paths in segments.values())
    for writer, claimed in claims:
        for dead, head in claimed.items():
            if heads.get(dead) != tuple(head):
                journal.problems.append(f"{writer} found {dead} at {head}; it ends at {heads.get(dead)}")
    return journal


class _Sequence:
    """One writer's records, in the order of its segments."""

    def __init__(
        self,
        journal: Journal,
        writer: str,
        paths: dict[int, Path],
        heads: dict[str, tuple[int, str]],
        claims: list[tuple[str, dict[str, tuple[int, str]]]],
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._paths = paths
        self._heads = heads
        self._claims = claims
        self._lines: list[bytes] = []

    def read(self) -> None:
        if sorted(self._paths) != list(range(1, len(self._paths) + 1)):
            self._wrong(f"has segments {sorted(self._paths)}")
        for number in sorted(self._paths):
            self._segment(number, self._paths[number])
        if self._lines:
            self._heads[self._writer] = (len(self._lines), chain(self._lines[-1] + b"\n"))

    def _segment(self, number: int, path: Path) -> None:
        last = number == len(self._paths)
        found = list(lines_in(path.read_bytes()))
        if not found:
            if not last:
                self._wrong(f"segment {number} is empty")
            return
        for index, item in enumerate(found):
            if isinstance(item, Damage):
                self._journal.torn += 1
                if not (last and item.reason == "torn"):
                    self._wrong(f"segment {number} is damaged at {item.offset}: {item.reason}")
                continue
            line = item[1]
            if (kind_of(line) == "H") is not (index == 0):
                self._wrong(f"segment {number} has its header in the wrong place")
            if kind_of(line) == "H":
                self._header(number, line)
            else:
                self._record(line)

    def _header(self, number: int, line: bytes) -> None:
        header, first = header_of(parse(line)), number_of(line)
        if not 1 <= first <= len(self._lines) + 1 or previous_of(line) != self._hash(first - 1):
            self._wrong(f"segment {number} does not take up where the writer was")
        before = self._paths[number - 1].name if number > 1 else None
        if header.previous_segment != before or header.segment != number:
            self._wrong(f"segment {number} does not follow {before}")
        self._claims.append((self._writer, header.sealed))

    def _record(self, line: bytes) -> None:
        number = number_of(line)
        if number <= len(self._lines):
            if line != self._lines[number - 1]:
                self._wrong(f"record {number} stands twice, and differs")
            return
        if number != len(self._lines) + 1:
            self._wrong(f"record {number} follows record {len(self._lines)}")
        if previous_of(line) != self._hash(len(self._lines)):
            self._wrong(f"record {number} breaks the chain")
        self._lines.append(line)
        self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        journal, kind, record_id = self._journal, record["j"]["k"], record["j"]["id"]
        if kind == "I":
            journal.intents.append(record_id)
            journal.trace_ids[record["j"]["d"]["trace_id"]] = record_id
        elif kind == "P":
            journal.noted[record_id] = record["j"]["d"]["reply"]["output_summary"]["bytes"]
        else:
            (span,) = spans_in(record)
            bill = _bill(span, self._writer)
            if bill.id != record_id:
                self._wrong(f"the line of {record_id} holds the bill of {bill.id}")
            journal.bills.append(bill)

    def _hash(self, number: int) -> str:
        return GENESIS if number == 0 else chain(self._lines[number - 1] + b"\n")

    def _wrong(self, what: str) -> None:
        self._journal.problems.append(f"writer {self._writer}: {what}")


def _bill(span: dict[str, Any], writer: str) -> Bill:
    a = attributes(span)
    return Bill(
        id=a["billing.record.id"],
        trace_id=span["traceId"],
        writer=writer,
        outcome=a["billing.outcome"],
        status=a["billing.status"],
        span=canonical(span),
        cost=a.get("billing.cost.usd"),
        input=a.get("gen_ai.usage.input_tokens"),
        output=a.get("gen_ai.usage.output_tokens"),
        output_max=a.get("billing.usage.estimate.output_tokens_max"),
        noted_bytes=a.get("billing.output.summary.bytes", 0),
    )


# the verdict


def audit(facts: Facts, killed_at: Sequence[str] | None) -> list[str]:
    """Return what is wrong.

    Args:
        killed_at: the points at which lives were killed, None where kills fell at any moment.
    """
    return [
        *facts.journal.problems,
        *_of_folder(facts.journal, killed_at),
        *_of_bills(facts),
        *_of_delivery(facts),
    ]


def _of_folder(journal: Journal, killed_at: Sequence[str] | None) -> Iterable[str]:
    if len(journal.marks) - sum(name.endswith(".new") for name in journal.marks) != 1:
        yield f"the marks {journal.marks} are left; there must be that of the last life only"
    if killed_at is not None:
        least = sum(point in TORN for point in killed_at)
        # The sync thread dies at its point while the loop's thread may be writing.
        most = least + sum(point.startswith("sync.") for point in killed_at)
        if not least <= journal.torn <= most:
            yield f"{journal.torn} lines are torn, after kills at {killed_at}"


def _of_bills(facts: Facts) -> Iterable[str]:
    journal = facts.journal
    for what, ids in (
        ("intents", journal.intents),
        ("bills", [bill.id for bill in journal.bills]),
        ("calls", [call.id for call in facts.calls]),
    ):
        for record_id, count in Counter(ids).items():
            if count > 1:
                yield f"{record_id} has {count} {what}"
    bills = {bill.id: bill for bill in journal.bills}
    calls = {call.id: call for call in facts.calls}
    intents = set(journal.intents)
    for record_id in intents - bills.keys():
        yield f"{record_id} has an intent and no bill"
    for record_id in bills.keys() - intents:
        yield f"{record_id} has a bill and no intent"
    for record_id in calls.keys() - bills.keys():
        yield f"{record_id} is LOST: the provider was called, and there is no bill"
    for record_id in facts.got.keys() - calls.keys():
        yield f"{record_id} was answered without a call"
    for bill in journal.bills:
        call = calls.get(bill.id)
        if call is None:
            yield from _of_no_call(bill)
        else:
            yield from _of_call(bill, call, facts.got.get(bill.id, Got()), journal.noted.get(bill.id, 0))


def _of_no_call(bill: Bill) -> Iterable[str]:
    refused = bill.outcome == "internal_error" and bill.cost == "0"
    unknown = bill.outcome == "interrupted" and bill.status == "unmetered"
    if not refused and not unknown:
        yield f"{bill.id} is billed as {bill.outcome}/{bill.status}, and no provider was called"


def _of_call(bill: Bill, call: Call, got: Got, noted: int) -> Iterable[str]:
    said = (call.input, call.output)
    if got.ends > 1:
        yield f"{bill.id} ended {got.ends} times"
    if got.ends and (bill.outcome, bill.status) != ("ok", "final"):
        yield f"{bill.id}: its caller saw the end, and the bill is {bill.outcome}/{bill.status}"
    if bill.outcome in ("ok", "client_disconnected"):
        if bill.status == "final" and (bill.input, bill.output) != said:
            yield f"{bill.id}: billed {bill.input}/{bill.output} tokens; the provider said {said}"
        if bill.status != "final":
            yield f"{bill.id} is {bill.outcome} and {bill.status}"
        if bill.cost is None:
            yield f"{bill.id} has no cost"
        return
    if bill.outcome != "interrupted":
        yield f"{bill.id} is {bill.outcome}; nothing but kills happened"
    if bill.status == "final" and (bill.input, bill.output) != said:  # the last note held the provider's own
        yield f"{bill.id} is interrupted/final with {bill.input}/{bill.output}; the provider said {said}"
    if (bill.status == "unmetered") is (noted > 0) or bill.noted_bytes != noted:
        yield f"{bill.id} is {bill.status} with {bill.noted_bytes} bytes; its last note says {noted}"
    if got.bytes > noted + PROGRESS_BYTES:
        yield f"{bill.id}: {got.bytes} bytes were released, {noted} noted"
    most = bill.output or 0 if bill.output_max is None else bill.output_max
    if got.tokens > most + PROGRESS_BYTES // EVENT_BYTES_MIN:
        yield f"{bill.id}: {got.tokens} tokens were released, at most {most} billed"
    if noted and (bill.output is None or bill.cost is None):
        yield f"{bill.id} has a note, and no output or no cost"


def _of_delivery(facts: Facts) -> Iterable[str]:
    if facts.accepted is None:
        return
    billed = Counter(bill.span for bill in facts.journal.bills)
    for span in set(facts.accepted) - billed.keys():
        yield f"the Collector accepted what is no bill: {span[:300]}"
    for bill in facts.journal.bills:
        if bill.span not in facts.accepted:
            yield f"{bill.id} never reached the Collector"
