"""Revisions: what one revision says, and how the revisions of a bill follow on one another and on the bill.

A bill's revisions are numbered 1, 2, … without gaps; each begins with the cost that the one before it (the
first: the bill) ended with, and links to the bill's span. Writers of revisions are read before those of
bills, so only revised bills are kept in mind. Retention takes bills before their revisions.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from otel.journal.audit.bills import (
    STATUSES,
    Bill,
    Problem,
    SeenSpan,
    Span,
    pico_of,
    signed_pico_of,
    values_of,
)
from otel.journal.audit.findings import Findings
from otel.journal.audit.sequence import Place

OF: Final = "billing.revision.of"
PRICED: Final = ("final", "estimated")


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one revision; money in pico-USD, None where there is no cost.

    Args:
        record_id: of the bill.
        link: trace and span id of the bill's span.
    """

    record_id: str
    trace_id: str
    span_id: str
    link: tuple[str, str]
    number: int
    old_status: str
    status: str
    old_cost_pico_usd: int | None
    cost_pico_usd: int | None
    ended_unix_ns: int = 0

    @property
    def delta_pico_usd(self) -> int:
        """What it adds to the bill before it."""
        return (self.cost_pico_usd or 0) - (self.old_cost_pico_usd or 0)

    def fingerprint(self) -> str:
        """Return what must be equal wherever this revision stands."""
        return (
            f"{self.record_id}|{self.number}|{self.status}|{self.cost_pico_usd}|{self.old_cost_pico_usd}|"
            f"{self.link}"
        )


class _Link(msgspec.Struct, frozen=True, rename="camel"):
    trace_id: str = ""
    span_id: str = ""


class _LineCost(msgspec.Struct, frozen=True):
    usd: str


_link: Final = msgspec.json.Decoder(_Link)
_line: Final = msgspec.json.Decoder(_LineCost)


def read_revision(span: Span | SeenSpan) -> tuple[Revision, list[Problem]]:
    """Return what the span says as a revision, and everything that is wrong with it."""
    problems: list[Problem] = []
    values, _ = values_of(span, problems)
    costs: dict[str, int | None] = {}
    for name in ("cost_usd", "old_cost_usd"):
        amount = values.get(f"billing.revision.{name}")
        costs[name] = None if amount is None else pico_of(amount)
        if amount is not None and costs[name] is None:
            problems.append(("amount", f"billing.revision.{name} = {amount!r} is no exact amount"))
    try:
        links = [_link.decode(link) for link in span.links]
    except ValueError:
        links = []
    if len(links) != 1:
        problems.append(("not_otlp", f"a revision has one link, to its bill; this has {len(links)}"))
    number = values.get("billing.revision.number")
    revision = Revision(
        record_id=str(values.get(OF, "")),
        trace_id=span.trace_id,
        span_id=span.span_id,
        link=(links[0].trace_id, links[0].span_id) if links else ("", ""),
        number=number if type(number) is int else 0,
        old_status=str(values.get("billing.revision.old_status", "")),
        status=str(values.get("billing.status", "")),
        old_cost_pico_usd=costs["old_cost_usd"],
        cost_pico_usd=costs["cost_usd"],
        ended_unix_ns=int(span.end_time_unix_nano),
    )
    delta = signed_pico_of(values.get("billing.revision.delta_usd"))
    if delta != revision.delta_pico_usd:
        what = f"billing.revision.delta_usd is {delta} pico-USD, new less old {revision.delta_pico_usd}"
        problems.append(("revision", what))
    if revision.cost_pico_usd is not None:
        total = _total(values, problems)
        if total != revision.cost_pico_usd:
            what = f"billing.revision.cost_usd is {revision.cost_pico_usd} pico-USD, its lines {total}"
            problems.append(("sum", what))
    for status, cost in (
        (revision.old_status, revision.old_cost_pico_usd),
        (revision.status, revision.cost_pico_usd),
    ):
        if status not in STATUSES or (status in PRICED) != (cost is not None):
            problems.append(("status", f"status {status!r} with a cost of {cost} pico-USD"))
    taboo = sorted(name for name in values if name in ("billing.record.id", "billing.cost.usd"))
    taboo += sorted(name for name in values if name.startswith("gen_ai.usage."))
    if taboo:
        problems.append(("revision", f"who sums bills would count it as one: it has {', '.join(taboo)}"))
    return revision, problems


def _total(values: dict[str, Any], problems: list[Problem]) -> int:
    total = 0
    for name in ("billing.cost.lines", "billing.cost.adjustments"):
        for item in values.get(name, {}).get("values", []):
            try:
                cost = signed_pico_of(_line.decode(item["stringValue"]).usd)
            except (KeyError, TypeError, ValueError):
                cost = None
            if cost is None:
                problems.append(("amount", f"{name} has an item without an exact amount"))
            total += cost or 0
    return total


class Revisions:
    """All revisions of a folder, by bill."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._found: dict[str, list[tuple[Revision, Place]]] = {}
        self._billed: set[str] = set()

    def __len__(self) -> int:
        return sum(len(own) for own in self._found.values())

    @property
    def delta_pico_usd(self) -> int:
        """What all of them together add to the bills."""
        return sum(revision.delta_pico_usd for own in self._found.values() for revision, _ in own)

    def take(self, revision: Revision, place: Place) -> None:
        """Take a revision."""
        self._found.setdefault(revision.record_id, []).append((revision, place))

    def bill(self, record_id: str, bill: Bill) -> None:
        """Hold the first revision of a bill, and all links, to the bill."""
        own = self._found.get(record_id)
        if own is None:
            return
        self._billed.add(record_id)
        for revision, place in own:
            if revision.link != (bill.trace_id, bill.span_id):
                self._add(place, "revision", "its link does not lead to the bill's span", record_id)
            before = (bill.status, bill.cost_pico_usd)
            if revision.number == 1 and (revision.old_status, revision.old_cost_pico_usd) != before:
                what = f"it revises a cost of {revision.old_cost_pico_usd} pico-USD, the bill has {before[1]}"
                self._add(place, "revision", what, record_id)

    def finish(self, *, removed: bool) -> None:
        """Hold revisions to one another; a bill that is not here may have been removed.

        Args:
            removed: retention has removed segments.
        """
        for record_id, own in self._found.items():
            first = own[0][1]
            if record_id not in self._billed:
                kind = "revision_kept" if removed else "revision_without_bill"
                self._add(first, kind, "there is no bill with this id", record_id)
            own.sort(key=lambda pair: pair[0].number)
            before: Revision | None = None
            for expected, (revision, place) in enumerate(own, start=1):
                if revision.number != expected:
                    if record_id in self._billed or not removed:
                        what = f"number {revision.number} stands where {expected} belongs"
                        self._add(place, "revision", what, record_id)
                    break
                if before is not None and (before.status, before.cost_pico_usd) != (
                    revision.old_status,
                    revision.old_cost_pico_usd,
                ):
                    what = f"it does not begin where number {before.number} ends"
                    self._add(place, "revision", what, record_id)
                before = revision

    def _add(self, place: Place, kind: str, what: str, record_id: str) -> None:
        self._findings.add(place.finding(kind, what, id=record_id))
