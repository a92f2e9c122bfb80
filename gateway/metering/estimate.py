"""Estimate: what a reply consumed where its provider did not say, with bounds that can be defended.

Output: counted by a tokenizer where the text is at hand; of a stream only the beginning is, and the rest is
taken to be like it. Without a tokenizer four bytes of text make a token, and no piece of a stream has less
than one. At least one token was made for any text, and at most one for each byte: no byte-level tokenizer
makes more. Tokens that were never sent, such as hidden reasoning, cannot be seen and are in no bound.

Input: four bytes of the request's body make a token, its attachments left out, and an image counts as
IMAGE_TOKENS. What the provider did report, it reported: only what is missing is estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from gateway.core.exchange import Call, Reply, Said
from gateway.core.usage import Estimate, Usage

METHOD: Final = "bytes_per_token_4"
BYTES_PER_TOKEN: Final = 4
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
    if "input" in counts and "output" in counts:
        return reply
    if reply.seen is None and "input" not in counts:
        return reply
    bounds: dict[str, tuple[int, int]] = {}
    method = METHOD
    if "output" not in counts:
        units, least, most = _output(reply)
        if output is not None:
            units, most, method = output.tokens, max(most, output.tokens), output.method
        asked = call.max_tokens * call.choices if call.max_tokens else None
        limit = _least_of(asked, None if context_window is None else context_window * call.choices)
        counts["output"], bounds["output"] = _within(units, least, most, limit)
    if "input" not in counts:
        units, least, most = _input(call)
        counts["input"], bounds["input"] = _within(units, least, most, context_window)
    estimate = Estimate(method=method, bounds=bounds)
    usage = Usage(counts=counts) if reported is None else reported
    return msgspec.structs.replace(
        reply, usage=msgspec.structs.replace(usage, counts=counts, source="estimated", estimate=estimate)
    )


def _output(reply: Reply) -> tuple[int, int, int]:
    """Return (units, least, most) of the output that was seen."""
    if reply.seen is None:
        return 0, 0, 0
    events, text = reply.seen.events, reply.seen.text_bytes
    units = max(-(-text // BYTES_PER_TOKEN), events)
    return units, 1, max(text, units)


def _input(call: Call) -> tuple[int, int, int]:
    """Return (units, least, most) of the input that was sent."""
    summary = call.input_summary
    text = max(0, summary.get("bytes", 0) - summary.get("attachment_bytes", 0))
    images = summary.get("images", 0)
    units = -(-text // BYTES_PER_TOKEN) + images * IMAGE_TOKENS
    return max(units, 1), 1, max(text, 1) + images * IMAGE_TOKENS_MAX


def _within(units: int, least: int, most: int, limit: int | None) -> tuple[int, tuple[int, int]]:
    """Return the estimate and its bounds, none above what the model can do."""
    if limit is None:
        return units, (least, most)
    return min(units, limit), (min(least, limit), min(most, limit))


def _least_of(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return first if second is None else second
    return min(first, second)
