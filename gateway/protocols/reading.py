"""Reading: facts from JSON that a stranger wrote; what does not fit is absent, and said so.

Numbers of money come as Decimal, so that no digit of a provider's own figure is lost; counts are integers
in 0..COUNT_MAX and nothing else: no floats, no booleans, no strings.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

import msgspec

from gateway.core.errors import CallerError
from gateway.core.usage import COUNT_MAX

TEXT_CHARS_MAX: Final = 256
CODE_CHARS_MAX: Final = 64
TOKENS_MAX: Final = 2**53 - 1

_any_decoder: Final = msgspec.json.Decoder(float_hook=Decimal)
_top_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode(data: bytes | msgspec.Raw) -> Any:
    """Return the JSON value with floats as Decimal, or None if it is not JSON."""
    try:
        return _any_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        return None


def text(value: object, chars_max: int = TEXT_CHARS_MAX) -> str | None:
    """Return a bounded printable string, or None if there is none."""
    if not isinstance(value, str) or not value:
        return None
    if len(value) <= chars_max and value.isprintable():
        return value
    return "".join(c if c.isprintable() else "?" for c in value[:chars_max])


class Counts:
    """Collects reported counts, and what was wrong with the others."""

    __slots__ = ("anomalies", "values")

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.anomalies: list[str] = []

    def take(self, name: str, source: object, *keys: str) -> bool:
        """Take the first of `keys` that `source` reports with a usable count; say whether one was found."""
        if not isinstance(source, dict):
            return False
        for key in keys:
            value = source.get(key)
            if value is None:
                continue
            if type(value) is int and 0 <= value <= COUNT_MAX:
                self.values[name] = value
                return True
            self.flag(f"{name}_unusable")
        return False

    def flag(self, word: str) -> None:
        """Note an anomaly once."""
        if word not in self.anomalies:
            self.anomalies.append(word)

    def parts_within_wholes(self) -> None:
        """Flag parts that are more than their whole; they stay as reported."""
        values = self.values
        if "input" in values:
            cached = values.get("cache_read", 0) + values.get("cache_write", 0)
            if cached > values["input"]:
                self.flag("cache_exceeds_input")
        if "output" in values and values.get("reasoning", 0) > values["output"]:
            self.flag("reasoning_exceeds_output")


def cost_usd(value: object) -> str | None:
    """Return a provider's own cost as an exact decimal string, or None where it is not a number >= 0."""
    if type(value) is int:
        value = Decimal(value)
    if not isinstance(value, Decimal) or not value.is_finite() or value < 0 or value.adjusted() > 12:
        return None
    return format(value, "f")


def unique_members(body: bytes, keys: tuple[bytes, ...]) -> None:
    """Refuse a body that names one of `keys` (with quotes) twice at its top level.

    Two parsers may read such a body differently: the gateway would bill one model and the provider serve
    another. Counting bytes clears nearly every body; only what looks odd is parsed in full.

    Raises:
        CallerError: 400.
    """
    if b"\\u00" not in body and all(body.count(key) <= 1 for key in keys):
        return
    names = {key.strip(b'"').decode() for key in keys}

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        seen: dict[str, object] = {}
        for name, value in pairs:
            if name in seen and name in names:
                seen["\0twice"] = name
            seen[name] = value
        return seen

    try:
        top = json.loads(body, object_pairs_hook=once)
    except (ValueError, RecursionError) as fault:
        raise not_json() from fault
    if isinstance(top, dict) and "\0twice" in top:
        name = str(top["\0twice"])
        raise CallerError("duplicate_member", f"the body names {name!r} twice", status=400, param=name)


def replace_members(body: bytes, changes: dict[str, bytes]) -> bytes:
    """Return the body with top-level members set to JSON values; all others keep their bytes and order."""
    members: dict[str, Any] = _top_decoder.decode(body)
    members.update({name: msgspec.Raw(value) for name, value in changes.items()})
    return msgspec.json.encode(members)


def not_json() -> CallerError:
    """Return the error for a body that is no JSON object."""
    return CallerError("invalid_json", "the request body is not a valid JSON object", status=400)


def invalid(param: str, message: str) -> CallerError:
    """Return the error for a member that cannot be used."""
    return CallerError("invalid_request", message, status=400, param=param)


def check_model(model: str) -> str:
    """Return the model's name if it can be one.

    Raises:
        CallerError: 400.
    """
    if not model or len(model) > TEXT_CHARS_MAX or not model.isprintable():
        raise invalid("model", f"`model` must be 1 to {TEXT_CHARS_MAX} printable characters")
    return model


def check_max_tokens(value: int | None, param: str) -> int | None:
    """Return the bound on output if it can be one.

    Raises:
        CallerError: 400.
    """
    if value is not None and not 0 <= value <= TOKENS_MAX:
        raise invalid(param, f"`{param}` must be between 0 and {TOKENS_MAX}")
    return value
