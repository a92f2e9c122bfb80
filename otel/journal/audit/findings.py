"""Findings: every kind of fault has one name, belongs to one verdict and says what to do about it.

A kind that is not in KINDS cannot be reported; `docs/verify.md` explains each of them, and a test compares
the two. Of one kind the first SHOWN_MAX are kept with their places, the rest is counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal

import msgspec

Verdict = Literal["completeness", "integrity", "note"]

SHOWN_MAX: Final = 100
"""Findings of one kind that are kept with their places; a broken disk must not become an endless list."""


class Kind(msgspec.Struct, frozen=True):
    """What a kind of finding breaks (`note`: nothing), and what an operator does about it."""

    verdict: Verdict
    advice: str


def _complete(advice: str) -> Kind:
    return Kind("completeness", advice)


def _intact(advice: str) -> Kind:
    return Kind("integrity", advice)


_RESTORE: Final = "restore the segment from a copy"
_KEEP: Final = "keep a copy of the segment before anything else; compare with the Collector's log"
_COMPARE: Final = "compare both places; bill by the first until it is understood"

KINDS: Final[dict[str, Kind]] = {
    # completeness: something that was recorded is not here, or something was never recorded
    "gap": _complete(_RESTORE + "; else reconcile with the Collector's log or the provider's invoice"),
    "segment_missing": _complete("restore it from a copy; retention would have noted it in removed.jsonl"),
    "tail_missing": _complete(_RESTORE + "; else reconcile with the Collector's log"),
    "bill_without_intent": _complete("look for the intent's segment in a copy; the bill itself counts"),
    "progress_without_intent": _complete("look for the intent's segment in a copy"),
    "open_intent": _complete("if the gateway has been started since: look for the bill's segment in a copy"),
    "collector_missing": _complete("let the shipper catch up; else replay the segment to the Collector"),
    "collector_extra": _complete("the journal lost this bill: restore its segment from a copy"),
    "revision_without_bill": _complete("look for the bill's segment in a copy"),
    "ledger_missing": _complete("let the ledger catch up; else `spanbill ledger rebuild`"),
    "ledger_extra": _complete("the journal lost this bill: restore its segment; the ledger still has it"),
    "upstream_without_intent": _complete("a provider was called off the record: reconcile with its invoice"),
    "client_without_bill": _complete("bill it by hand from the client's log; find out which segment is gone"),
    # integrity: what is here is not what was written, or says two things
    "damage": _intact(_KEEP + "; check the disk"),
    "not_a_record": _intact(_KEEP),
    "unknown_kind": _intact("verify with the version that wrote the journal, or " + _KEEP),
    "chain": _intact("the line there or its successor was altered: " + _KEEP),
    "duplicate": _intact("the line was copied in by hand or by a tool: " + _COMPARE),
    "rewrite": _intact("two different lines carry one number: " + _COMPARE),
    "order": _intact("lines were moved: " + _KEEP),
    "header": _intact("the segment was renamed, copied or edited: " + _KEEP),
    "segment_twice": _intact("one of the two files is a copy: take it out of the folder"),
    "stray": _intact("no segment of ours, but readers would read it: take it out of the folder"),
    "intent_twice": _intact(_COMPARE),
    "bill_twice": _intact("billed twice, equal in content: count it once"),
    "conflict": _intact("two bills for one request: " + _COMPARE),
    "foreign_bill": _intact(
        "a second writer billed it while the first runs: do two gateways share the folder?"
    ),
    "other_ids": _intact("the bill's trace is not its intent's: " + _COMPARE),
    "not_otlp": _intact("a stock Collector would misread this line: " + _KEEP),
    "record_id": _intact("the span names another bill than its line: " + _COMPARE),
    "sum": _intact("the lines do not add up to the bill: re-rate it from its token counts"),
    "double": _intact("tools that read gen_ai.usage.cost show another figure: trust billing.cost.usd"),
    "status": _intact("status and cost contradict each other: re-rate it from its token counts"),
    "amount": _intact("no amount of money: re-rate it from its token counts"),
    "revision": _intact("revisions of this bill contradict it or one another: trust the bill, then rerate"),
    "head": _intact("a dead writer's end is not what a later boot saw: " + _KEEP),
    "watermark": _intact("the writer's watermark is no line's end: restart the gateway, verify again"),
    "manifest": _intact("removed.jsonl contradicts the segments: " + _COMPARE),
    "unreadable": _intact("check the disk and the file's rights; verify again"),
    "log_unreadable": _intact("check the log file at this place"),
    "collector_differs": _intact("the Collector holds another bill: trust the journal; ask who changed it"),
    "ledger_differs": _intact("the row was changed: trust the journal, and `spanbill ledger rebuild`"),
    "ledger_sum": _intact("the sums are not those of the rows: `spanbill ledger rebuild`"),
    "client_differs": _intact("the client was told something else: trust the provider's invoice"),
    "client_short": _intact("billed less than was released: estimate again from the client's log"),
    # notes: facts that an operator may wonder about; nothing is broken
    "torn_tail": Kind("note", "nothing to do: a write was cut off before it was promised"),
    "never_begun": Kind("note", "nothing to do: the disk failed before the segment's first line"),
    "awaiting_recovery": Kind("note", "nothing to do: billed as interrupted at the next start"),
    "damage_healed": Kind("note", "nothing to do: a sync failed, and all that stood there was written again"),
    "lost_unpromised": Kind("note", "nothing to do: a power loss took it before anything was promised"),
    "revision_kept": Kind("note", "nothing to do: retention removed the bill's segment"),
    "intent_removed": Kind("note", "nothing to do: retention removed the intent's segment"),
    "log_torn": Kind("note", "nothing to do: the log's writer was cut off there, or is still writing"),
    "collector_again": Kind("note", "nothing to do: delivered more than once, equal; OTLP allows it"),
    "collector_older": Kind("note", "nothing to do: as many as retention has removed here"),
}


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault and its place.

    Args:
        kind: a key of KINDS.
        what: in words, with the numbers.
        segment: `<day>/<file>`, or the name of a log.
        offset: of the line's or stretch's first byte.
        length: of the stretch in bytes.
        record: number in its writer's sequence.
        id: of the bill.
    """

    kind: str
    what: str
    segment: str = ""
    offset: int | None = None
    length: int | None = None
    record: int | None = None
    id: str | None = None

    @property
    def verdict(self) -> Verdict:
        """Which verdict it breaks."""
        return KINDS[self.kind].verdict

    @property
    def advice(self) -> str:
        """What to do."""
        return KINDS[self.kind].advice

    @property
    def where(self) -> str:
        """The place: `segment:offset+length, record n`."""
        place = self.segment
        if self.offset is not None:
            place += f":{self.offset}"
        if self.length is not None:
            place += f"+{self.length}"
        if self.record is not None:
            place += f", record {self.record}"
        return place


class Facts(msgspec.Struct, kw_only=True):
    """What the folder holds. Money is in pico-USD; `again` counts records that stand twice, legally.

    `revised_pico_usd` is what all revisions together add to the bills.
    """

    segments: int = 0
    bytes: int = 0
    writers: int = 0
    live_writers: int = 0
    records: int = 0
    again: int = 0
    intents: int = 0
    progress: int = 0
    bills: int = 0
    in_flight: int = 0
    awaiting_recovery: int = 0
    removed_segments: int = 0
    removed_bills: int = 0
    removed_cost_pico_usd: int = 0
    ledger_pending: int = 0
    bills_by_status: dict[str, int] = {}
    cost_pico_usd_by_status: dict[str, int] = {}
    revisions: int = 0
    revised_pico_usd: int = 0


class Findings:
    """Findings in the order in which they were made, bounded by SHOWN_MAX for each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.shown: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if it is among the first of its kind."""
        assert finding.kind in KINDS, finding.kind
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= SHOWN_MAX:
            self.shown.append(finding)

    def breaches(self, verdict: Verdict) -> int:
        """Return how many findings break a verdict."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].verdict == verdict)
