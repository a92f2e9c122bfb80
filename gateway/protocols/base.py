"""Protocol: what a wire language of a door must tell the gateway. Everything here is pure, sans I/O.

    request bytes --read_request--> Request --upstream_body--> bytes for the provider
    reply bytes   --read_reply-----> Reply                               (a whole JSON body)
    stream bytes  --StreamMeter.feed--> bytes to release now             (cut anywhere)
                    StreamMeter.finish --> Tail: held terminal bytes, Reply

The terminal event is the last thing a meter gives away: `feed` never returns it, `finish` does, so the
caller can settle the bill in between.
"""

from __future__ import annotations

from typing import Literal
from typing import Protocol as Interface

import msgspec

from gateway.core.dimensions import Side
from gateway.core.errors import SpanbillError
from gateway.core.exchange import Reply, Said

StreamUsage = Literal["on_request", "always"]
"""Whether a provider reports usage of a stream only when `stream_options.include_usage` asks for it."""

OutputLimit = Literal["max_tokens", "max_completion_tokens"]

EVENT_BYTES_MAX = 8 * 1024 * 1024
"""A stream event that grows past this ends the stream as an upstream error: nothing may grow unbounded."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How one provider bends the protocol's usage; comes from the provider's card.

    Args:
        reasoning_in_output: the reported output count already includes reasoning tokens.
        hidden_output: tokens that only the total holds are output: hidden thinking.
        stream_usage: see `StreamUsage`.
        output_limit: the member that bounds the output; who writes a request for the provider asks.
        adaptive_thinking: the model decides how long it thinks and takes a level, no budget in tokens.
        reasoning_content: an assistant's earlier thoughts go back to the provider under that name.
    """

    reasoning_in_output: bool = True
    hidden_output: bool = False
    stream_usage: StreamUsage = "on_request"
    output_limit: OutputLimit = "max_tokens"
    adaptive_thinking: bool = False
    reasoning_content: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a request body that the gateway needs; never its content.

    Args:
        model: as the caller wrote it.
        choices: how many answers are asked for (`n`), each within `max_tokens`.
        usage_requested: the caller itself asked for usage in its stream.
        user: the end user that the request claims (`user`, `safety_identifier`, `metadata.user_id`).
        summary: counts for `billing.input.summary.*`: messages, tools, images, bytes.
    """

    model: str
    stream: bool = False
    usage_requested: bool = False
    max_tokens: int | None = None
    choices: int = 1
    user: str | None = None
    summary: dict[str, int] = {}


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a stream: `held` is released after the bill is durable."""

    held: bytes
    reply: Reply


class StreamMeter(Interface):
    """Reads a stream as it passes; one per stream."""

    ended: bool
    """The terminal event has been seen (and is held): nothing more is expected."""
    fed: int
    """How many bytes of the stream have been fed."""

    def feed(self, data: bytes) -> bytes:
        """Return what may be released now: everything complete except the terminal event onward.

        Raises:
            UpstreamError: an event grew past EVENT_BYTES_MAX.
        """
        ...

    def reply(self) -> Reply:
        """Return what the stream has amounted to so far; of an unfinished one, no count is final."""
        ...

    def said(self) -> Said | None:
        """Return the text of the stream's beginning, None if none was kept."""
        ...

    def finish(self) -> Tail:
        """Return the held bytes and what the stream amounted to; call once, whenever the stream ends."""
        ...


class Protocol(Interface):
    """One door. Instances are stateless and shared."""

    name: str
    """Folder name, `billing.protocol`: "chat_completions"."""
    path: str
    """Path of the door: "/v1/chat/completions"."""
    operation: str
    """`gen_ai.operation.name`: "chat"."""
    sides: tuple[Side, ...]
    """What a reply's usage must count to be whole: an embedding has no output tokens."""
    billable: bool
    """False where a reply's numbers are an answer and not consumption (count_tokens)."""

    def read_request(self, body: bytes) -> Request:
        """Raises CallerError(400): not JSON, not an object, no model, duplicate top-level keys."""
        ...

    def upstream_body(self, body: bytes, request: Request, *, model: str, dialect: Dialect) -> bytes:
        """Return the body for the provider: the caller's own bytes unless something must differ.

        What may differ: `model` (when the target's name is another), and `stream_options.include_usage`
        (asked for where `dialect.stream_usage` is "on_request"). All other members keep their bytes.
        """
        ...

    def read_reply(self, status: int, body: bytes, dialect: Dialect) -> Reply:
        """Read a whole reply; never raises: what can't be read is absent, and marked."""
        ...

    def said(self, body: bytes) -> Said | None:
        """Return the text of a whole reply, None if it cannot be read."""
        ...

    def stream_meter(self, request: Request, dialect: Dialect) -> StreamMeter:
        """Return a meter; it removes the usage-only chunk if we asked for it and the caller did not."""
        ...

    def error_body(self, error: SpanbillError) -> bytes:
        """Return the gateway's own error as a JSON body in the protocol's envelope."""
        ...

    def error_event(self, error: SpanbillError) -> bytes:
        """Return the error as a stream event, for a stream that broke after it began."""
        ...
