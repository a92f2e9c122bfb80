"""Witnesses: what others wrote down of the same requests, held against the journal's bills.

A Collector's log must hold the same bills; a provider's log no call that has no intent; a client's log no
answer that ended without a final bill, and no token that was released without being billed. Logs are read
whole before the journal is, so that all they tell of is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from hashlib import blake2b
from typing import Annotated, Final, TypeVar

import msgspec

from otel.journal.audit.bills import Bill, SeenSpan, read_bill
from otel.journal.audit.findings import Finding, Findings
from otel.journal.audit.revisions import OF, Revision, read_revision
from otel.journal.audit.sequence import Place

INPUT: Final = "gen_ai.usage.input_tokens"
OUTPUT: Final = "gen_ai.usage.output_tokens"
OUTPUT_MAX: Final = "billing.usage.estimate.output_tokens_max"
"""Upper bound of an output that was estimated; absent otherwise."""
ENDED: Final = frozenset({"ok", "client_disconnected"})
"""Outcomes of an answer whose client saw its end; the second if it left at that very moment."""
DIGEST_BITS: Final = 64
TRACES: Final = b'{"resourceSpans":'
"""How each line of a Collector's file exporter begins; within a JSON string the quotes would be escaped."""

_Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
T = TypeVar("T")


class _Scope(msgspec.Struct, frozen=True):
    spans: list[SeenSpan] = []


class _Resource(msgspec.Struct, frozen=True, rename="camel"):
    scope_spans: list[_Scope] = []


class _Traces(msgspec.Struct, frozen=True, rename="camel"):
    resource_spans: list[_Resource] = []


class _UpstreamCall(msgspec.Struct, frozen=True):
    trace_id: _Hex32
    parent_span_id: str | None = None


class _ClientCall(msgspec.Struct, frozen=True, gc=False):
    id: str
    ended: bool
    output_tokens: int | None = None
    input_tokens: int | None = None
    offset: int = 0


class CollectorLog:
    """The OTLP/JSON lines of a Collector's file exporter: a bill or revision in it equals the journal's.

    Args:
        lines: of the log, in order, with their newlines.
    """

    def __init__(self, name: str, lines: Iterable[bytes], findings: Findings) -> None:
        self.bills = 0
        self._name = name
        self._findings = findings
        self._held: dict[bytes, int] = {}
        _read(name, lines, findings, msgspec.json.Decoder(_Traces), self._take, opening=TRACES)

    def bill(self, record_id: str, bill: Bill | Revision, place: Place) -> None:
        """Look a bill or a revision of the journal up."""
        held = self._held.pop(_span_key(bill.trace_id, bill.span_id), None)
        if held is None:
            self._findings.add(place.finding("collector_missing", f"not in {self._name}", id=record_id))
        elif held & ((1 << DIGEST_BITS) - 1) != _digest(bill):
            what = f"id, status, cost or tokens differ from {self._name}:{held >> DIGEST_BITS}"
            self._findings.add(place.finding("collector_differs", what, id=record_id))

    def finish(self, removed_bills: int) -> None:
        """Report bills that the journal does not have; as many as retention removed may be older ones."""
        kind = "collector_older" if len(self._held) <= removed_bills else "collector_extra"
        for key, held in self._held.items():
            what = f"trace {key[:16].hex()}, span {key[16:].hex()} is not in the journal"
            offset = held >> DIGEST_BITS
            self._findings.add(Finding(kind=kind, what=what, segment=self._name, offset=offset))

    def _take(self, offset: int, traces: _Traces) -> None:
        for resource in traces.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    bill, _ = read_bill(span)
                    if bill.record_id:
                        self._hold(offset, bill)
                    elif any(pair.key == OF for pair in span.attributes):
                        self._hold(offset, read_revision(span)[0])

    def _hold(self, offset: int, bill: Bill | Revision) -> None:
        self.bills += 1
        key = _span_key(bill.trace_id, bill.span_id)
        digest = _digest(bill)
        before = self._held.get(key)
        if before is None:
            self._held[key] = offset << DIGEST_BITS | digest
            return
        same = before & ((1 << DIGEST_BITS) - 1) == digest
        what = f"stands at {before >> DIGEST_BITS} as well, {'equal' if same else 'with other content'}"
        kind = "collector_again" if same else "collector_differs"
        self._findings.add(
            Finding(kind=kind, what=what, segment=self._name, offset=offset, id=bill.record_id)
        )


class UpstreamLog:
    """What a provider wrote down: every call has an intent (I1).

    Args:
        lines: `{"trace_id": hex, "parent_span_id": hex}` each.
    """

    def __init__(self, name: str, lines: Iterable[bytes], findings: Findings) -> None:
        self.calls = 0
        self._name = name
        self._findings = findings
        self._calls: dict[bytes, tuple[int, int]] = {}
        _read(name, lines, findings, msgspec.json.Decoder(_UpstreamCall), self._take)

    def intent(self, record_id: str, trace_id: str) -> None:  # noqa: ARG002  # the shape of on_intent
        """Take an intent: its calls are on record."""
        if len(trace_id) == 32:
            self._calls.pop(bytes.fromhex(trace_id), None)

    def finish(self) -> None:
        """Report calls without an intent."""
        for trace, (offset, calls) in self._calls.items():
            what = f"{calls} call(s) of trace {trace.hex()} have no intent"
            self._findings.add(
                Finding(kind="upstream_without_intent", what=what, segment=self._name, offset=offset)
            )

    def _take(self, offset: int, call: _UpstreamCall) -> None:
        self.calls += 1
        trace = bytes.fromhex(call.trace_id)
        first, calls = self._calls.get(trace, (offset, 0))
        self._calls[trace] = first, calls + 1


class ClientLog:
    """What clients wrote down: what they saw end is final (I3), what they received is billed (I4).

    Args:
        lines: `{"id": x-request-id, "ended": bool, "output_tokens": int|null, "input_tokens": int|null}`;
            tokens are the reply's own counts if it ended, else what was received.
    """

    def __init__(self, name: str, lines: Iterable[bytes], findings: Findings) -> None:
        self.calls = 0
        self._name = name
        self._findings = findings
        self._calls: dict[str, list[_ClientCall]] = {}
        _read(name, lines, findings, msgspec.json.Decoder(_ClientCall), self._take)

    def bill(self, record_id: str, bill: Bill, place: Place) -> None:
        """Hold a bill to what its client saw."""
        for call in self._calls.pop(record_id, ()):
            if call.ended:
                wrong = list(_ended(call, bill))
                kind = "client_differs"
            else:
                wrong = list(_unended(call, bill))
                kind = "client_short"
            for what in wrong:
                at = f"{what}; see {self._name}:{call.offset}"
                self._findings.add(place.finding(kind, at, id=record_id))

    def finish(self, open_intents: Container[str]) -> None:
        """Report answers without a bill."""
        for record_id, calls in self._calls.items():
            for call in calls:
                received = call.output_tokens is not None and call.output_tokens > 0
                if call.ended or (received and record_id not in open_intents):
                    what = "the client saw the answer end" if call.ended else "the client received tokens"
                    self._findings.add(
                        Finding(
                            kind="client_without_bill",
                            what=f"{what}, and there is no bill",
                            segment=self._name,
                            offset=call.offset,
                            id=record_id,
                        )
                    )

    def _take(self, offset: int, call: _ClientCall) -> None:
        self.calls += 1
        self._calls.setdefault(call.id, []).append(msgspec.structs.replace(call, offset=offset))


def _ended(call: _ClientCall, bill: Bill) -> Iterable[str]:
    if bill.status != "final" or bill.outcome not in ENDED:
        yield f"the client saw the answer end, the bill is {bill.status}, {bill.outcome}"
    for name, seen in ((OUTPUT, call.output_tokens), (INPUT, call.input_tokens)):
        if seen is not None and bill.counts.get(name) != seen:
            yield f"the client was told {name} = {seen}, billed are {bill.counts.get(name)}"


def _unended(call: _ClientCall, bill: Bill) -> Iterable[str]:
    if call.output_tokens is None:
        return
    billed = max(bill.counts.get(OUTPUT, 0), bill.counts.get(OUTPUT_MAX, 0))
    if billed < call.output_tokens:
        yield f"the client received {call.output_tokens} output tokens, billed are at most {billed}"


def _read(
    name: str,
    lines: Iterable[bytes],
    findings: Findings,
    decoder: msgspec.json.Decoder[T],
    take: Callable[[int, T], None],
    *,
    opening: bytes | None = None,
) -> None:
    """Hand every line to `take`.

    Args:
        opening: how each line begins. A program that was killed within a write goes on, when it runs again,
            within the line that it left.
    """
    offset = 0
    for line in lines:
        for part in _parts(line, opening):
            at, offset = offset, offset + len(part)
            if not part.strip():
                continue
            try:
                value = decoder.decode(part)
            except ValueError as fault:
                kind = "log_unreadable" if part.endswith(b"\n") else "log_torn"
                findings.add(Finding(kind=kind, what=str(fault), segment=name, offset=at, length=len(part)))
                continue
            take(at, value)


def _parts(line: bytes, opening: bytes | None) -> Iterable[bytes]:
    begin = 0
    while opening is not None and (end := line.find(opening, begin + 1)) > 0:  # ends with the line
        yield line[begin:end]
        begin = end
    yield line[begin:]


def _span_key(trace_id: str, span_id: str) -> bytes:
    return bytes.fromhex(trace_id + span_id)


def _digest(bill: Bill | Revision) -> int:
    return int.from_bytes(blake2b(bill.fingerprint().encode(), digest_size=8).digest(), "big")
