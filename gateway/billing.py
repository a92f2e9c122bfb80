"""Billing: from what is known of an exchange, however it ended, to the one exchange that its bill is made of.

The story calls it when a request ends; recovery calls it for a request whose process died. Both make the
same bill of the same facts.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gateway.core.charge import Charge, NoRate
from gateway.core.exchange import Attempt, Call, Exchange, Progress, Reply
from gateway.metering.estimate import Counted, with_estimate
from gateway.metering.settle import FREE, INTERRUPTED, Ending, bill_status, metered


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request went and who pays, for its price.

    Args:
        prices: the provider's section of the catalogue.
        model: as it was named to the provider.
        key_id, team: of the virtual key, for discounts and mark-ups.
    """

    provider: str
    prices: str
    model: str
    key_id: str = ""
    team: str | None = None


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """The price catalogue in the words of the story.

    Args:
        charge: (target, reply, Unix seconds) -> charge of its usage, or why there is none.
        context_window: (target, reply, Unix seconds) -> most tokens of the model, None if unknown.
    """

    charge: Callable[[Target, Reply, int], Charge | NoRate | None]
    context_window: Callable[[Target, Reply, int], int | None]


def bill(
    prices: Prices,
    call: Call,
    target: Target,
    ending: Ending,
    reply: Reply,
    *,
    attempts: tuple[Attempt, ...],
    ended_unix_ns: int,
    latency_ns: int,
    time_to_first_chunk_ns: int | None,
    output: Callable[[], Counted | None] = lambda: None,
) -> Exchange:
    """Return the exchange: usage estimated where it is missing, priced where there is a rate.

    Args:
        output: asked for a tokenizer's count only where an estimate needs it.
    """
    ended_unix_ns = max(ended_unix_ns, call.started_unix_ns)
    at_unix_s = ended_unix_ns // 1_000_000_000
    charge: Charge | None = None
    missing: str | None = None
    if ending.free:
        charge = FREE
    else:
        if not metered(call, reply.usage):
            reply = with_estimate(call, reply, prices.context_window(target, reply, at_unix_s), output())
        if metered(call, reply.usage):
            priced = prices.charge(target, reply, at_unix_s)
            if isinstance(priced, NoRate):
                missing = priced.reason
            else:
                charge = priced
    return Exchange(
        call=call,
        attempts=attempts,
        reply=reply,
        outcome=ending.outcome,
        status=bill_status(call, ending, reply.usage, charge),
        error_type=ending.error_type,
        charge=charge,
        ended_unix_ns=ended_unix_ns,
        latency_ns=latency_ns,
        time_to_first_chunk_ns=time_to_first_chunk_ns,
        price_section=target.prices or None,
        missing_rate=missing,
    )


def interrupted(prices: Prices, call: Call, progress: Progress | None) -> Exchange:
    """Return the exchange of a request whose process died: billed up to its last progress record.

    It is a function of the journal alone, so that a recovery which is interrupted itself writes the same.
    Without progress nothing is known: whether a provider was called, and what it made. A debug capture died
    with the process.
    """
    call = msgspec.structs.replace(call, capture=msgspec.UNSET)
    if progress is None:
        return bill(
            prices,
            call,
            Target(provider="", prices="", model=call.model),
            INTERRUPTED,
            Reply(),
            attempts=(),
            ended_unix_ns=call.started_unix_ns,
            latency_ns=0,
            time_to_first_chunk_ns=None,
        )
    attempt = progress.attempt
    return bill(
        prices,
        call,
        Target(
            provider=attempt.provider,
            prices=progress.prices,
            model=attempt.model,
            key_id=call.identity.key_id,
            team=call.identity.team,
        ),
        INTERRUPTED,
        progress.reply,
        attempts=(attempt,),
        ended_unix_ns=progress.at_unix_ns,
        latency_ns=max(0, progress.at_unix_ns - call.started_unix_ns),
        time_to_first_chunk_ns=progress.time_to_first_chunk_ns,
    )
