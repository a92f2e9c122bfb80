"""Dimensions: everything that can be counted in a reply and charged on a bill.

A dimension may be a part of another (`part_of`): a cached input token is also an input token. A count is
reported for the whole and for its parts; a charge is made once, at the most specific dimension that has
a rate, and only the rest of the whole is charged at the whole's rate. So a new kind of token is one entry
here, and usage, rates, charge lines, ledger lines and span attributes follow from it.

    input ──┬─ cache_read                  output ──┬─ reasoning
            ├─ cache_write ──┬─ cache_write_5m      ├─ output_audio
            │                └─ cache_write_1h      └─ output_image
            ├─ input_audio
            └─ input_image                 request  (one per bill)
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Side = Literal["input", "output", "request"]
Unit = Literal["token", "call", "image", "second", "page"]


class Dimension(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is counted and charged.

    Args:
        name: key in `Usage.counts`, in rates and in charge lines.
        side: which side of the exchange it is counted on.
        part_of: the dimension whose count includes this one; None for a whole.
        attribute: name of the count on the billing span.
        unit: what is counted; people read and write token rates per million, all others per one.
    """

    name: str
    side: Side
    attribute: str
    part_of: str | None = None
    unit: Unit = "token"


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
        Dimension(name="request", side="request", attribute="billing.usage.requests", unit="call"),
    )
}
"""The registry, in the order in which charge lines are printed."""
