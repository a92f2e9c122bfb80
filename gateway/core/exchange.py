"""Exchange: the whole of one request as immutable values, from which its bill is derived.

Call      what was asked, by whom, and the ids     known at admission, journaled as the intent
Attempt   one try at one provider                  a CLIENT span each
Reply     what came back, in counts and shapes     never content
Exchange  all three with the outcome               the billing span is a function of it
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from gateway.core.charge import BillStatus, Charge
from gateway.core.dimensions import BOTH_SIDES, Side
from gateway.core.usage import Usage

Outcome = Literal[
    "ok",
    "client_disconnected",
    "upstream_error",
    "upstream_unreachable",
    "upstream_timeout",
    "upstream_incomplete",
    "interrupted",
    "internal_error",
]


class Identity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who pays: the owner of the virtual key.

    Args:
        key_id: public id of the key; never the key.
        user_id: the key's owner.
        user_name: display name, None if none is known.
        source: how the owner was found: `key` (a key of the configuration) or `env_key`.
        on_disconnect: whether a stream is read to its end after its caller left, or cut there.
        unpriced: whether a model without a rate is served, or refused before a provider is called; None:
            what holds for all keys.
    """

    key_id: str
    user_id: str
    source: Literal["key", "env_key"]
    on_disconnect: Literal["drain", "cancel"] = "drain"
    unpriced: Literal["serve", "refuse"] | None = None
    user_name: str | None = None
    team: str | None = None
    project: str | None = None
    tags: tuple[str, ...] = ()


class Routed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request went where it went.

    Args:
        selector: what the configuration says.
        by: what decided: the selector, `random`, `explore`, `cooldown`, or `only` where there was no choice.
        targets: how many could have served.
        cooling: how many of them were left alone because they had failed.
    """

    selector: str
    by: str
    targets: int
    cooling: int = 0


class Call(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked, known before any provider is called.

    Ids are lower-case hex (`trace_id` 32, span ids 16); `record_id` is the UUIDv7 correlation id.
    `span_id` is the billing span's, fixed at admission so that a bill written after a crash has it too.
    `sides` are the wholes without which the usage of its reply is incomplete. `capture` is the file of its
    debug capture.

    What has its default is not written to the journal: a default, here or in what it holds, never changes.
    """

    record_id: str
    trace_id: str
    span_id: str
    server_span_id: str
    protocol: str
    operation: str
    model: str
    stream: bool
    identity: Identity
    started_unix_ns: int
    parent_span_id: str | None = None
    max_tokens: int | None = None
    choices: int = 1
    sides: tuple[Side, ...] = BOTH_SIDES
    alias: str | None = None
    route: Routed | None = None
    client_address: str | None = None
    client_user: str | None = None
    client_request_id: str | None = None
    session_id: str | None = None
    input_summary: dict[str, int] = {}
    sampled: bool = True
    capture: str | UnsetType = UNSET


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One try at one provider.

    Args:
        status: None means that no status line arrived.
        unsettled: it was sent and brought no usable answer: the provider may charge for it all the same.
    """

    span_id: str
    provider: str
    model: str
    host: str
    port: int
    path: str
    started_unix_ns: int
    ended_unix_ns: int
    status: int | None = None
    error_type: str | None = None
    provider_request_id: str | None = None
    unsettled: bool = False


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """How much content of a reply was seen, for an estimate where its usage is missing.

    Args:
        events: pieces in which it came: 1 for a whole reply.
        text_bytes: UTF-8 bytes of text, reasoning and tool arguments; of a stream a close upper figure.
    """

    events: int
    text_bytes: int


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """Text of a reply, for a tokenizer to count: content, which is written nowhere and outlives no exchange.

    Args:
        text: what was said in the first `bytes` bytes of the reply.
        of: how many bytes the reply has in all.
    """

    text: str
    bytes: int
    of: int


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came back, in counts and shapes.

    Args:
        usage: None when the provider reported none.
        complete: the protocol's own end was seen (`[DONE]`, `message_stop`, a whole JSON body).
        error_type: the provider's own error code, from an error body or an error event in a stream.
        output_summary: counts only, e.g. {"events": 12, "tool_calls": 1}.
        seen: content that arrived, None where there was none.
    """

    response_id: str | None = None
    response_model: str | None = None
    finish_reasons: tuple[str, ...] = ()
    usage: Usage | None = None
    complete: bool = False
    error_type: str | None = None
    output_summary: dict[str, int] = {}
    seen: Seen | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stream had got when it was last noted: all that a bill has if the process dies.

    Args:
        prices: section of the price catalogue.
        reply: what had come back up to and including what was about to be released.
    """

    at_unix_ns: int
    prices: str
    attempt: Attempt
    reply: Reply
    time_to_first_chunk_ns: int | None = None


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request; exactly one bill follows from it.

    Args:
        price_section: section of the price catalogue where rates were looked up, None if none were needed.
        missing_rate: what has no rate, where the bill is unpriced for that.
    """

    call: Call
    attempts: tuple[Attempt, ...]
    reply: Reply
    outcome: Outcome
    status: BillStatus
    ended_unix_ns: int
    latency_ns: int
    charge: Charge | None = None
    error_type: str | None = None
    time_to_first_chunk_ns: int | None = None
    price_section: str | None = None
    missing_rate: str | None = None
