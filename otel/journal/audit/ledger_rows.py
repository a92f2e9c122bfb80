"""Ledger rows: what a ledger holds of a journal, held against the journal's bills (I5).

Each bill that the ledger says it has read is one row with the same status and cost, and so is each revision,
unless it waits there for its bill. Rows without a bill here are those of removed segments, in number and in
money. The roll-ups are the sums of the rows. Before its horizon a ledger has roll-ups only, and they are held
to the bills instead.
"""

from __future__ import annotations

import msgspec

from otel.journal.audit.bills import Bill
from otel.journal.audit.findings import Finding, Findings
from otel.journal.audit.revisions import Revision
from otel.journal.audit.sequence import Place

Said = tuple[str, int | None]
"""Status, and cost in pico-USD."""
Sums = dict[str, tuple[int, int]]
"""By status: bills and pico-USD."""


class LedgerSays(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger says of one journal, all of it read in one transaction.

    Args:
        name: of the ledger, without a password.
        held: by record id the status, and the cost in pico-USD or None, as it was settled.
        revisions: the same by record id and number.
        waiting: revisions that have no row yet, because their bills have none.
        passed: how far it has read each segment.
        rows, rollups: by status, what its rows come to, and what its roll-ups say that they do.
        lost_bills: removed bills that it never had, as the operator has accepted.
        horizon_ns: when the bills ended that have no row any more: before this. Of these there is nothing in
            `held`, `revisions`, `rows` and `rollups`.
        expired: by status, what the roll-ups say of them.
    """

    name: str
    held: dict[str, Said]
    revisions: dict[tuple[str, int], Said]
    waiting: frozenset[tuple[str, int]]
    passed: dict[str, int]
    rows: Sums
    rollups: Sums
    lost_bills: int = 0
    horizon_ns: int = 0
    expired: Sums = {}


class LedgerRows:
    """The rows of a ledger, as a witness."""

    def __init__(self, says: LedgerSays, findings: Findings) -> None:
        self.pending = 0
        self._says = says
        self._held = dict(says.held)
        self._revisions = dict(says.revisions)
        self._seen: set[tuple[str, int]] = set()
        self._expired: Sums = {}
        self._expired_revised = False
        self._findings = findings

    def bill(self, record_id: str, bill: Bill, place: Place) -> None:
        """Look a bill of the journal up."""
        if self._before_horizon(bill.ended_unix_ns, place):
            count, cost = self._expired.get(bill.status, (0, 0))
            self._expired[bill.status] = (count + 1, cost + (bill.cost_pico_usd or 0))
            return
        self._same(self._held.pop(record_id, None), (bill.status, bill.cost_pico_usd), record_id, place)

    def revision(self, record_id: str, revision: Revision, place: Place) -> None:
        """Look a revision of the journal up; one that stands twice is looked up twice."""
        if self._before_horizon(revision.ended_unix_ns, place):
            self._expired_revised = True
            return
        key = (record_id, revision.number)
        self._seen.add(key)
        if key not in self._says.waiting:
            held = self._revisions.get(key)
            self._same(held, (revision.status, revision.cost_pico_usd), record_id, place)

    def _before_horizon(self, ended_unix_ns: int, place: Place) -> bool:
        """Say whether the ledger has read something and keeps only its sums."""
        read = place.offset is None or place.offset < self._says.passed.get(place.segment, 0)
        return read and ended_unix_ns < self._says.horizon_ns

    def _same(self, held: Said | None, stated: Said, record_id: str, place: Place) -> None:
        if held is None:
            if place.offset is not None and place.offset >= self._says.passed.get(place.segment, 0):
                self.pending += 1  # it has not come to it yet
                return
            what = f"not in {self._says.name}"
            self._findings.add(place.finding("ledger_missing", what, id=record_id))
        elif held != stated:
            what = f"{self._says.name} has {held[0]} and {held[1]} pico-USD"
            self._findings.add(place.finding("ledger_differs", what, id=record_id))

    def finish(self, removed_bills: int, removed_cost_pico_usd: int) -> None:
        """Report rows without a bill, unless retention removed theirs, and sums that are not the rows'."""
        says = self._says
        expired, expired_cost = self._expired_unseen()
        count = len(self._held) + expired
        cost = sum(pico or 0 for _, pico in self._held.values()) + expired_cost
        older = count == removed_bills - says.lost_bills and (
            cost == removed_cost_pico_usd or says.lost_bills > 0 or self._expired_revised
        )
        if not older:
            summed = f" (of {expired} there are only sums)" if expired else ""
            what = (
                f"{count} rows with {cost} pico-USD have no bill here{summed}; retention removed "
                f"{removed_bills} bills with {removed_cost_pico_usd}"
            )
            kind = "ledger_extra" if count > removed_bills else "ledger_missing"
            first = next(iter(self._held), "")
            self._findings.add(Finding(kind=kind, what=what, segment=says.name, id=first))
        unknown = sorted(self._revisions.keys() - self._seen)
        if unknown and not removed_bills:  # which revisions were removed, nobody has written down
            record_id, number = unknown[0]
            what = f"{len(unknown)} revisions are not here, the first is number {number} of this bill"
            self._findings.add(Finding(kind="ledger_extra", what=what, segment=says.name, id=record_id))
        for status in sorted(says.rows.keys() | says.rollups.keys()):
            rows, sums = says.rows.get(status, (0, 0)), says.rollups.get(status, (0, 0))
            if rows != sums:
                what = (
                    f"{status}: {rows[0]} rows with {rows[1]} pico-USD, roll-ups say {sums[0]} with {sums[1]}"
                )
                self._findings.add(Finding(kind="ledger_sum", what=what, segment=says.name))

    def _expired_unseen(self) -> tuple[int, int]:
        """Return how many bills before the horizon are in roll-ups and not here, and what they come to."""
        both = zip(_total(self._says.expired), _total(self._expired), strict=True)
        count, cost = (said - seen for said, seen in both)
        return count, cost


def _total(sums: Sums) -> tuple[int, int]:
    return sum(count for count, _ in sums.values()), sum(cost for _, cost in sums.values())
