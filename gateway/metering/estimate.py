"""Estimate: what a reply consumed where its provider did not say, with bounds that can be defended.

Output: counted by a tokenizer where the text is at hand; of a stream only the beginning is, and the rest is
taken to be like it. Without a tokenizer four bytes of text make a token, and no piece of a stream has less
than one. At least one token was made for any text, and at most one for each byte, as byte-level tokenizers
go, besides a few that have no text. Tokens that were never sent, such as hidden reasoning, cannot be seen and
are in no bound.

Input: four bytes of the request's body make a token, its attachments left out, and an image counts as
IMAGE_TOKENS. What the provider did report, it reported: only what is missing is estimated, and what it
reported while the reply went on is the least there was. `docs/estimates.md` has the measured error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.core.exchange import Call, Reply, Said
from gateway.core.usage import Estimate, Usage

METHOD: Final = "bytes_per_token_4"
BYTES_PER_TOKEN: Final = 4
TOKEN_BYTES_MAX: Final = 128
"""The longest token of the published vocabularies: a run of spaces."""
TOOL_CALL_TOKENS: Final = 20
"""What a tool call has beside the text of its name and arguments: the median of recorded replies."""
FORM_TOKENS_MAX: Final = 64
"""Tokens that have no text: the end of a turn, and around each tool call its form."""
IMAGE_TOKENS: Final = 1_000
"""An image of a megapixel is 765 tokens to one provider and 1,334 to another."""
IMAGE_TOKENS_MAX: Final = 20_000


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What a tokenizer says of a reply's output, and the name of the method."""

    tokens: int
    method: str


def counted(said: Said | None, tokenizer: str, count: Callable[[str], int | None]) -> Counted | None:
    """Return the tokens of all that was said, None if nothing was or there is no tokenizer (yet)."""
    tokens = count(said.text) if said is not None and said.text else None
    if said is None or not tokens or not said.bytes:
        return None
    if said.of <= said.bytes:
        return Counted(tokens=tokens, method=tokenizer)
    return Counted(tokens=-(-tokens * said.of // said.bytes), method=f"{tokenizer}_sample")


def with_estimate(
    call: Call, reply: Reply, context_window: int | None, output: Counted | None = None
) -> Reply:
    """Return the reply with the counts filled in that its provider left out; unchanged if nothing was seen.

    Args:
        context_window: the most tokens that the model can have read and written, None if unknown.
        output: what a tokenizer found, None where none could count.
    """
    reported = reply.usage
    counts = {} if reported is None else dict(reported.counts)
    running = reported is not None and reported.running
    missing = [side for side in call.sides if side not in counts]
    if not missing and not running:
        return reply
    if reply.seen is None and "input" not in counts:
        return reply
    bounds: dict[str, tuple[int, int]] = {}
    method = METHOD
    if "output" in missing or running:
        units, least, most = _output(reply)
        if output is not None:
            units = output.tokens + _form_tokens(reply)
            most, method = max(most, units), output.method
        units, bounds["output"] = _within(units, least, most, _output_limit(call, reply, context_window))
        said = counts.get("output", 0)  # of a reply that went on: no less than that
        counts["output"] = max(units, said)
        bounds["output"] = (max(bounds["output"][0], said), max(bounds["output"][1], said))
    if "input" in missing:
        units, least, most = _input(call)
        if call.input_summary.get("references"):  # how much is stored there, nobody here knows
            most = context_window or 0
        counts["input"], bound = _within(units, least, most, context_window)
        if most:
            bounds["input"] = bound
    estimate = Estimate(method=method, bounds=bounds)
    usage = Usage(counts=counts) if reported is None else reported
    usage = msgspec.structs.replace(
        usage, counts=counts, source="estimated", estimate=estimate, running=False
    )
    return msgspec.structs.replace(reply, usage=usage)


def _output_limit(call: Call, reply: Reply, context_window: int | None) -> int | None:
    """Return the most output there can have been: what was asked for, or what the model can do.

    What was asked for is the caller's word, and not every provider keeps to it: where more came than that, it
    bounds nothing.
    """
    asked = call.max_tokens * call.choices if call.max_tokens else None
    if asked is not None and reply.seen is not None:
        proven = max(reply.seen.events, -(-reply.seen.text_bytes // TOKEN_BYTES_MAX))
        asked = None if proven > asked else asked
    return _least_of(asked, None if context_window is None else context_window * call.choices)


def _output(reply: Reply) -> tuple[int, int, int]:
    """Return (units, least, most) of the output that was seen."""
    if reply.seen is None:
        return 0, 0, 0
    events, text = reply.seen.events, reply.seen.text_bytes
    units = max(-(-text // BYTES_PER_TOKEN), events) + _form_tokens(reply)
    calls = reply.output_summary.get("tool_calls", 0)
    return units, 1, max(text, units) + (1 + calls) * FORM_TOKENS_MAX


def _form_tokens(reply: Reply) -> int:
    """Return the tokens of tool calls that are no text."""
    return reply.output_summary.get("tool_calls", 0) * TOOL_CALL_TOKENS


def input_tokens(call: Call) -> int:
    """Return the estimated input of a request that was not answered yet."""
    return _input(call)[0]


def _input(call: Call) -> tuple[int, int, int]:
    """Return (units, least, most) of the input that was sent."""
    summary = call.input_summary
    attached = summary.get("attachment_bytes", 0)
    text = max(0, summary.get("bytes", 0) - attached)
    images = summary.get("images", 0)
    units = -(-text // BYTES_PER_TOKEN) + images * IMAGE_TOKENS
    return max(units, 1), 1, max(text, 1) + attached + images * IMAGE_TOKENS_MAX


def _within(units: int, least: int, most: int, limit: int | None) -> tuple[int, tuple[int, int]]:
    """Return the estimate and its bounds, none above what the model can do."""
    if limit is None:
        return units, (least, most)
    return min(units, limit), (min(least, limit), min(most, limit))


def _least_of(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return first if second is None else second
    return min(first, second)
