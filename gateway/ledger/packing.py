"""Packing: the lines of a bill as one text beside it, which the view `lines` takes apart again.

The text is a JSON array of arrays; places in them are those of `LINE`, in this order for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

Line = tuple[str, str, str | None, int | None, str | None, int | None]
"""Kind, dimension, model, units, rate, and cost in pico-USD."""
COUNT: Final = "count"
"""The kind of a line that is reported, and not charged by itself."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[Line]).decode


def packed(lines: Sequence[Line]) -> str | None:
    """Return lines as a text; None where there are none."""
    return _encode(lines).decode() if lines else None


def unpacked(text: str | None) -> list[Line]:
    """Return the lines that were packed."""
    return [] if text is None else _decode(text)
