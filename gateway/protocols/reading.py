"""Reading: facts from JSON that a stranger wrote; what does not fit is absent, and said so.

Numbers of money come as Decimal, so that no digit of a provider's own figure is lost; counts are integers
in 0..COUNT_MAX and nothing else: no floats, no booleans, no strings.
"""

from __future__ import annotations

import functools
import json
import re
from decimal import Decimal
from typing import Any, Final, TypeVar

import msgspec

from gateway.core.errors import CallerError
from gateway.core.usage import COUNT_MAX

TEXT_CHARS_MAX: Final = 256
CODE_CHARS_MAX: Final = 64
TOKENS_MAX: Final = 2**53 - 1

Facts = TypeVar("Facts")

XAI_TICKS_PER_USD: Final = 10**10
_any_decoder: Final = msgspec.json.Decoder(float_hook=Decimal)
_COST_DIGITS_MAX: Final = 40
_INT_DIGITS_MAX: Final = 400
"""Far above any count, far below what Python refuses to convert."""
_MEMBER_BYTES_MIN: Final = len('"n":1,')
"""No member that `unique_members` is asked about can be shorter."""
_ATTACHMENT: Final = re.compile(rb"[^A-Za-z0-9+/]([A-Za-z0-9+/]{256,})")
"""A run of base64 that is too long for a word, from its start: of one too short no later byte is tried."""
MEMBERS_MAX: Final = 1_000
"""Top-level members of a request; the protocols know a few dozen."""
_ESCAPED_LETTER: Final = re.compile(rb"\\u00(?:5[fF]|[67])")
_top_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode(data: bytes | msgspec.Raw) -> Any:
    """Return the JSON value with floats as Decimal, or None if it is not JSON.

    Half a surrogate pair, a broken character, a NaN or a number of 5,000 digits somewhere in a reply is no
    reason to lose its usage: what the strict decoder refuses is tried once more, leniently.
    """
    try:
        return _any_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        pass
    try:
        return json.loads(
            bytes(data).decode("utf-8", "replace"),
            parse_float=Decimal,
            parse_int=_bounded_int,
            parse_constant=Decimal,  # a NaN that is no count, but no silence either
        )
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _bounded_int(digits: str) -> int | Decimal:
    """Return the integer; a longer one than any count is NaN, and must not cost the reply's others."""
    return int(digits) if len(digits) <= _INT_DIGITS_MAX else Decimal("NaN")


def utf8_bytes(value: str) -> int:
    """Return the length in UTF-8, half surrogate pairs included."""
    return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))


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

    def add(self, name: str, units: int) -> None:
        """Add to a count that was taken; a sum past COUNT_MAX is no count."""
        total = self.values[name] + units
        if total <= COUNT_MAX:
            self.values[name] = total
            return
        del self.values[name]
        self.flag(f"{name}_unusable")

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
        for side in ("input", "output"):
            media = values.get(f"{side}_audio", 0) + values.get(f"{side}_image", 0)
            if side in values and media > values[side]:
                self.flag(f"media_exceeds_{side}")
        if "output" in values and values.get("reasoning", 0) > values["output"]:
            self.flag("reasoning_exceeds_output")


def cost_usd(value: object) -> str | None:
    """Return a provider's own cost as an exact decimal string, or None where it is not a number >= 0."""
    if type(value) is int:
        value = Decimal(value)
    if not isinstance(value, Decimal) or not value.is_finite() or value < 0 or value.adjusted() > 12:
        return None
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -_COST_DIGITS_MAX:
        return None
    return format(value, "f")


def reported_cost_usd(usage: dict[str, Any]) -> str | None:
    """Return what a provider says in its usage that the reply cost, as an exact decimal string."""
    cost = usage.get("cost")
    if isinstance(cost, dict):  # Perplexity
        cost = cost.get("total_cost")
    reported = cost_usd(cost)
    ticks = usage.get("cost_in_usd_ticks")
    if reported is None and type(ticks) is int and 0 <= ticks <= COUNT_MAX:
        return cost_usd(Decimal(ticks) / XAI_TICKS_PER_USD)
    return reported


def read_facts(body: bytes, decoder: msgspec.json.Decoder[Facts], once: tuple[bytes, ...]) -> Facts:
    """Return the members of a request that matter, typed.

    Args:
        once: names (with quotes) that may stand only once at the top level.

    Raises:
        CallerError: 400: not JSON, no model, a member of the wrong type, a member twice.
    """
    try:
        facts = decoder.decode(body)
    except msgspec.ValidationError as fault:
        raise misfit(fault) from fault
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise not_json() from fault
    check_encoding(body)
    unique_members(body, once)
    return facts


def summary_of(
    body: bytes, *, messages: list[msgspec.Raw] | None, tools: list[msgspec.Raw] | None, images: int
) -> dict[str, int]:
    """Return counts and sizes for `billing.input.summary.*`; what is not there has no key."""
    summary = {"bytes": len(body)}
    if messages is not None:
        summary["messages"] = len(messages)
    if tools is not None:
        summary["tools"] = len(tools)
    if images:
        summary["images"] = images
    if b"base64" in body:
        attached = sum([len(found[1]) for found in _ATTACHMENT.finditer(body)])
        if attached:
            summary["attachment_bytes"] = attached
    return summary


def unique_members(body: bytes, keys: tuple[bytes, ...]) -> None:
    """Refuse a body that names one of `keys` (with quotes) twice at its top level, or in another case.

    Two parsers may read such a body differently: the gateway would bill one model and the provider serve
    another. Some, Go's own among them, take `Stream` for `stream`, and a long s for an s. Counting bytes
    clears nearly every body of doubles, that of the parts against the whole first: it is the cheapest and
    allows for little white space; only what looks odd is parsed in full.

    Raises:
        CallerError: 400.
    """
    try:
        members = _top_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as fault:  # a name that the typed decoder read over
        raise not_json() from fault
    if len(members) > MEMBERS_MAX:
        raise CallerError(
            "too_many_members", f"the body has more than {MEMBERS_MAX} members at its top level", status=400
        )
    known_names = _names(keys)
    for name in members:
        if name not in known_names and name.casefold() in known_names:
            meant = name.casefold()
            message = f"the body spells {meant!r} in another way; write it exactly so"
            raise CallerError("misspelt_member", message, status=400, param=meant)
    # The bytes of all members, each with two quotes, colon and comma; a member that was read over is missing.
    known = sum([len(name) + len(value) + 4 for name, value in members.items()]) + 1
    if len(body) - known < _MEMBER_BYTES_MIN:
        return
    if all(body.count(key) <= 1 for key in keys) and not may_escape_a_name(body):
        return
    try:
        pairs = json.loads(body, object_pairs_hook=tuple)  # an object as its pairs, in order
    except (ValueError, RecursionError) as fault:
        raise not_json() from fault
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise CallerError("duplicate_member", f"the body names {name!r} twice", status=400, param=name)
        if name in known_names:
            seen.add(name)


@functools.cache
def _names(keys: tuple[bytes, ...]) -> frozenset[str]:
    return frozenset([key.strip(b'"').decode() for key in keys])


def may_escape_a_name(body: bytes) -> bool:
    """Say whether a letter or an underscore is written as an escape: a member's name may hide so."""
    return b"\\u00" in body and _ESCAPED_LETTER.search(body) is not None


def check_encoding(body: bytes) -> None:
    """Refuse what is not UTF-8; the typed decoder does not look into what it skips.

    Raises:
        CallerError: 400.
    """
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as fault:
        raise not_json() from fault


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


def misfit(fault: msgspec.ValidationError) -> CallerError:
    """Return the error for a body whose typed decode failed: which member, and what it is instead."""
    message = str(fault)
    if "missing required field" in message:
        return invalid("model", "`model` is missing: name the model that shall answer")
    if "$." not in message:
        return not_json()
    where = message.rsplit("$.", 1)[1].rstrip("`")
    return invalid(where, f"`{where}` is of the wrong type: {message.split(' - ')[0]}")
