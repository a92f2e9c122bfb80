"""Settle: from what came back to the one bill, in any ending.

Unknown is never zero: a reply without usage is `unmetered`, one without a rate `unpriced`. A cost of
exactly 0 is only said where it is known: the provider was not reached, refused the request with an error
status (errors are not charged), or the door is free of charge.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.core.charge import BillStatus, Charge
from gateway.core.errors import UpstreamError
from gateway.core.exchange import Attempt, Call, Outcome, Reply
from gateway.core.usage import Usage

FREE = Charge(lines=(), price_id="none", catalog="none")
"""The charge of what provably cost nothing."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How an exchange ended: outcome, the stable error code, and whether it certainly cost nothing."""

    outcome: Outcome
    error_type: str | None = None
    free: bool = False


INTERRUPTED = Ending(outcome="interrupted", error_type="interrupted")
"""The process died, or was told to stop, before the exchange was over."""
FAILED = Ending(outcome="internal_error", error_type="internal_error")
"""The gateway itself failed."""
NEVER_CALLED = Ending(outcome="internal_error", error_type="journal_unavailable", free=True)
"""The intent could not be kept, and so no provider was called."""

NOT_KEPT = Ending(outcome="internal_error", error_type="journal_unavailable")
"""The journal failed once the provider had been called, and the caller was told so."""


def ending_after(attempts: Sequence[Attempt], ending: Ending) -> Ending:
    """Return the ending after several attempts: not free if an earlier one may have been charged for."""
    if ending.free and ending is not NEVER_CALLED and any(one.unsettled for one in attempts[:-1]):
        return msgspec.structs.replace(ending, free=False)
    return ending


def ending_of_fault(fault: UpstreamError) -> Ending:
    """Return the ending of an exchange whose provider failed; free only if nothing was sent."""
    outcome: Outcome
    if fault.code in ("client_disconnected", "client_stalled"):  # and the drain reached its bounds
        outcome = "client_disconnected"
    elif not fault.sent:
        outcome = "upstream_unreachable"
    elif fault.code == "upstream_timeout":
        outcome = "upstream_timeout"
    elif fault.code == "upstream_incomplete":
        outcome = "upstream_incomplete"
    else:
        outcome = "upstream_error"
    return Ending(outcome=outcome, error_type=fault.code, free=not fault.sent)


def ending_of_reply(status: int, reply: Reply, *, billable: bool, gone: str | None) -> Ending:
    """Return the ending of an exchange that brought a reply, whole or streamed.

    An error status is free of charge; an error event inside a 200 is not: tokens may have been made.

    Args:
        gone: why the caller is not there any more, None if it is.
    """
    if status >= 400:
        return Ending(outcome="upstream_error", error_type=reply.error_type or str(status), free=True)
    if reply.error_type is not None:
        return Ending(outcome="upstream_error", error_type=reply.error_type, free=not billable)
    if not reply.complete:
        return Ending(outcome="upstream_incomplete", error_type="upstream_incomplete", free=not billable)
    if gone is not None:
        return Ending(outcome="client_disconnected", error_type=gone, free=not billable)
    return Ending(outcome="ok", free=not billable)


def drained(reply: Reply) -> Reply:
    """Mark the usage of a reply that the gateway read to its end without its client."""
    if reply.usage is None or reply.usage.source != "provider":
        return reply
    return msgspec.structs.replace(reply, usage=msgspec.structs.replace(reply.usage, source="drained"))


def metered(call: Call, usage: Usage | None) -> bool:
    """Say whether usage is enough to bill: a count for each side of such a call, and none of a part only."""
    return usage is not None and all(side in usage.counts for side in call.sides) and not usage.running


def bill_status(call: Call, ending: Ending, usage: Usage | None, charge: Charge | None) -> BillStatus:
    """Return how far the bill can be trusted; see `BillStatus`."""
    if ending.free:
        return "final"
    if usage is None or not metered(call, usage):
        return "unmetered"
    if charge is None:
        return "unpriced"
    return "estimated" if usage.source == "estimated" or charge.estimated else "final"
