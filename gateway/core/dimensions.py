"""Dimensions: everything that can be counted in a reply and charged on a bill.

A dimension may be a part of another (`part_of`): a cached input token is also an input token. A count is
reported for the whole and for its parts; a charge is made once, at the most specific dimension that has
a rate, and only the rest of the whole is charged at the whole's rate. So a new kind of token is one entry
here, and usage, rates, charge lines, ledger lines and span attributes follow from it.

    input ──┬─ cache_read ───┬─ cache_read_audio    output ──┬─ reasoning
            │                └─ cache_read_image             ├─ output_audio
            ├─ cache_write ──┬─ cache_write_5m               ├─ output_image
            │                └─ cache_write_1h               └─ output_video
            ├─ input_audio
            ├─ input_image                   citation   (tokens beside both sides)
            ├─ input_video                   request    (one per bill)
            └─ input_tool                    web_search, page, … (calls and pieces)

A cached audio token is both a cached and an audio token: `also_part_of` names the second whole.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Side = Literal["input", "output", "request"]
BOTH_SIDES: Final[tuple[Side, ...]] = ("input", "output")
"""What a reply must report to be billed by its usage; a door whose replies are no text has fewer."""
Unit = Literal["token", "call", "image", "second", "page", "character"]


class Dimension(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is counted and charged.

    Args:
        name: key in `Usage.counts`, in rates and in charge lines.
        side: which side of the exchange it is counted on.
        part_of: the dimension whose count includes this one; None for a whole.
        attribute: name of the count on the billing span.
        unit: what is counted; people read and write token rates per million, all others per one.
        also_part_of: a second dimension whose count includes this one.
        free_without_rate: units that no rate covers cost nothing instead of leaving the reply unpriced: the
            provider charges nothing for them, or the same work is counted in tokens as well.
    """

    name: str
    side: Side
    attribute: str
    part_of: str | None = None
    unit: Unit = "token"
    also_part_of: str | None = None
    free_without_rate: bool = False


def _pieces() -> tuple[Dimension, ...]:
    """Return what is counted in calls and pieces; none is part of another."""
    return (
        Dimension(name="web_search", side="output", unit="call", attribute="billing.usage.web_searches"),
        Dimension(
            name="web_fetch",
            side="output",
            unit="call",
            attribute="billing.usage.web_fetches",
            free_without_rate=True,
        ),
        Dimension(name="file_search", side="output", unit="call", attribute="billing.usage.file_searches"),
        Dimension(
            name="social_search", side="output", unit="call", attribute="billing.usage.social_searches"
        ),
        Dimension(name="map_search", side="output", unit="call", attribute="billing.usage.map_searches"),
        Dimension(name="search_source", side="input", unit="call", attribute="billing.usage.search_sources"),
        Dimension(
            name="code_interpreter",
            side="output",
            unit="call",
            attribute="billing.usage.code_interpreter_calls",
        ),
        Dimension(
            name="image_generation",
            side="output",
            unit="call",
            attribute="billing.usage.image_generation_calls",
        ),
        Dimension(name="rerank_search", side="input", unit="call", attribute="billing.usage.rerank_searches"),
        Dimension(name="page", side="input", unit="page", attribute="billing.usage.pages"),
        Dimension(
            name="image",
            side="output",
            unit="image",
            attribute="billing.usage.images",
            free_without_rate=True,
        ),
        Dimension(
            name="audio_second",
            side="input",
            unit="second",
            attribute="billing.usage.audio_seconds",
            free_without_rate=True,
        ),
        Dimension(
            name="character",
            side="input",
            unit="character",
            attribute="billing.usage.characters",
            free_without_rate=True,
        ),
    )


DIMENSIONS: Final[dict[str, Dimension]] = {
    d.name: d
    for d in (
        Dimension(name="input", side="input", attribute="gen_ai.usage.input_tokens"),
        Dimension(
            name="cache_read",
            side="input",
            part_of="input",
            attribute="gen_ai.usage.cache_read.input_tokens",
        ),
        Dimension(
            name="cache_write",
            side="input",
            part_of="input",
            attribute="gen_ai.usage.cache_write.input_tokens",
        ),
        Dimension(
            name="cache_write_5m",
            side="input",
            part_of="cache_write",
            attribute="billing.usage.cache_write_5m_tokens",
        ),
        Dimension(
            name="cache_write_1h",
            side="input",
            part_of="cache_write",
            attribute="billing.usage.cache_write_1h_tokens",
        ),
        Dimension(
            name="input_audio",
            side="input",
            part_of="input",
            attribute="billing.usage.input_audio_tokens",
        ),
        Dimension(
            name="input_image",
            side="input",
            part_of="input",
            attribute="billing.usage.input_image_tokens",
        ),
        Dimension(
            name="input_video",
            side="input",
            part_of="input",
            attribute="billing.usage.input_video_tokens",
        ),
        Dimension(
            name="input_tool",
            side="input",
            part_of="input",
            attribute="billing.usage.input_tool_tokens",
        ),
        Dimension(
            name="cache_read_audio",
            side="input",
            part_of="cache_read",
            also_part_of="input_audio",
            attribute="billing.usage.cache_read_audio_tokens",
        ),
        Dimension(
            name="cache_read_image",
            side="input",
            part_of="cache_read",
            also_part_of="input_image",
            attribute="billing.usage.cache_read_image_tokens",
        ),
        Dimension(name="output", side="output", attribute="gen_ai.usage.output_tokens"),
        Dimension(
            name="reasoning",
            side="output",
            part_of="output",
            attribute="gen_ai.usage.reasoning.output_tokens",
        ),
        Dimension(
            name="output_audio",
            side="output",
            part_of="output",
            attribute="billing.usage.output_audio_tokens",
        ),
        Dimension(
            name="output_image",
            side="output",
            part_of="output",
            attribute="billing.usage.output_image_tokens",
        ),
        Dimension(
            name="output_video",
            side="output",
            part_of="output",
            attribute="billing.usage.output_video_tokens",
        ),
        Dimension(name="citation", side="input", attribute="billing.usage.citation_tokens"),
        Dimension(name="request", side="request", attribute="billing.usage.requests", unit="call"),
        *_pieces(),
    )
}
"""The registry, in the order in which charge lines are printed."""
