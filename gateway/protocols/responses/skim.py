"""Skim: of a large event only the members that matter become objects.

The first and the last event repeat the whole request, the last one the whole output too. What typed reading
refuses is read in full and leniently, so that no odd member costs the others.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec

from gateway.protocols.reading import decode


class _Item(msgspec.Struct):
    type: Any = None
    status: Any = None
    action: Any = None


class _Tool(msgspec.Struct):
    type: Any = None
    model: Any = None


class _Response(msgspec.Struct):
    id: Any = None
    model: Any = None
    status: Any = None
    error: Any = None
    incomplete_details: Any = None
    service_tier: Any = None
    usage: Any = None
    tool_usage: Any = None
    output: list[_Item] | None = None
    tools: list[_Tool] | None = None


class _Event(msgspec.Struct):
    type: Any = None
    delta: Any = None
    code: Any = None
    error: Any = None
    item: _Item | None = None
    response: _Response | None = None


_decoder: Final = msgspec.json.Decoder(_Event, float_hook=Decimal)


def skim(payload: bytes) -> object:
    """Return the event as `decode` would, without the members that nobody here reads."""
    try:
        event = _decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        return decode(payload)
    value: dict[str, Any] = msgspec.structs.asdict(event)
    if event.item is not None:
        value["item"] = msgspec.structs.asdict(event.item)
    if event.response is not None:
        value["response"] = response = msgspec.structs.asdict(event.response)
        for name in ("output", "tools"):
            if response[name] is not None:
                response[name] = [msgspec.structs.asdict(item) for item in response[name]]
    return value
