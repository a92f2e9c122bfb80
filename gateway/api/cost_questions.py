"""Cost questions: what the parameters of the cost doors mean, or a 400 that names the one at fault.

A parameter that no door has is refused: a misspelt filter would otherwise be a sum of everything. Days are
days of `tz`, and every range is half-open: from `start` to before `end`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Final, Literal, cast, get_args
from zoneinfo import ZoneInfo

import msgspec

from gateway.core.errors import CallerError
from gateway.core.exchange import Identity
from gateway.ledger.periods import Period, instant_ns, midnight_ns
from gateway.ledger.queries import RECORDS_MAX, VALUES_MAX, After, Dimension, Filters, after

Items = Sequence[tuple[str, str]]
"""Parameters as they stand in the URL, repeated ones as often as they stand there."""
Format = Literal["json", "csv", "jsonl"]

FOREVER: Final = Period(0, 2**63 - 1)
"""Until the year 2262, which is as far as nanoseconds go in 64 bits."""
VALUE_CHARS_MAX: Final = 512
PAGE: Final = 100
STATUSES: Final = ("final", "estimated", "unpriced", "unmetered")
GROUPINGS: Final[Mapping[str, Dimension]] = {
    "api_key": "key",
    "provider": "provider",
    "model": "model",
    "user": "user",
    "team": "team",
    "project": "project",
    "day": "day",
}
FILTERS: Final[Mapping[str, str]] = {
    "api_key": "key",
    "user": "user",
    "team": "team",
    "project": "project",
    "provider": "provider",
    "model": "model",
    "status": "status",
}
MAY_BE_UNKNOWN: Final = frozenset({"team", "project", "provider"})
"""Filters of which an empty value means the bills that name none."""
RANGE: Final = ("start", "end", "tz")

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_INSTANT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.,]{2,20}(Z|[+-][0-9:]{2,9})?", re.ASCII)
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+\-]{0,31}(/[A-Za-z][A-Za-z0-9_+\-]{0,31}){0,2}", re.ASCII)


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /v1/costs` is asked."""

    period: Period
    zone: ZoneInfo
    filters: Filters
    group_by: tuple[str, ...]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The groupings in the ledger's words."""
        return tuple(GROUPINGS[name] for name in self.group_by)


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /v1/costs/records` is asked.

    Args:
        count: records of a page.
    """

    period: Period
    filters: Filters
    format: Format
    count: int
    after: After | None
    newest_first: bool


def costs_question(items: Items) -> Costs:
    """Return the question for totals.

    Raises:
        CallerError: 400, naming the parameter.
    """
    values = values_of(items, (*RANGE, *FILTERS, "group_by"))
    names = [name for text in values.get("group_by", ()) for name in text.split(",")]
    for name in names:
        if name not in GROUPINGS:
            raise wrong("group_by", f"is one of {', '.join(GROUPINGS)}; or several, with commas")
    zone = zone_of(values)
    return Costs(
        period=period_of(values, zone),
        zone=zone,
        filters=_filters(values),
        group_by=tuple(dict.fromkeys(names)) or tuple(GROUPINGS),
    )


def records_question(items: Items) -> Records:
    """Return the question for records.

    Raises:
        CallerError: 400, naming the parameter.
    """
    values = values_of(items, (*RANGE, *FILTERS, "limit", "cursor", "order", "format"))
    kind = one_of(values, "format", get_args(Format), "json")
    if kind != "json" and "limit" in values:
        raise wrong("limit", "is for pages; csv and jsonl hold everything from the cursor on")
    return Records(
        period=period_of(values, zone_of(values)),
        filters=_filters(values),
        format=cast("Format", kind),
        count=limit_of(values),
        after=_cursor(values),
        newest_first=one_of(values, "order", ("newest", "oldest"), "newest") == "newest",
    )


def own(filters: Filters, identity: Identity | None, *, named: bool) -> Filters:
    """Return the filters narrowed to what somebody may see; None is the operator, who sees all.

    A key sees the bills of its user, and its own alone where the user is nobody's name.

    Args:
        named: the user of this key is a person or a service, and not all keys without an owner.

    Raises:
        CallerError: 403, something else was asked for.
    """
    if identity is None:
        return filters
    field, mine = ("user", identity.user_id) if named else ("key", identity.key_id)
    if getattr(filters, field) not in ((), (mine,)):
        param = next(name for name, of in FILTERS.items() if of == field)
        raise CallerError(
            "not_yours",
            f"this key sees only the costs of {param} {mine}; the admin key sees all",
            status=403,
            param=param,
        )
    return msgspec.structs.replace(filters, **{field: (mine,)})


def values_of(
    items: Items, known: Iterable[str], longer: Mapping[str, int] | None = None
) -> dict[str, list[str]]:
    """Return the values of each parameter of a door that knows these.

    Args:
        longer: parameters that may have more characters than VALUE_CHARS_MAX.

    Raises:
        CallerError: 400, one is unknown, or no text for a database.
    """
    known = tuple(known)
    values: dict[str, list[str]] = {}
    for name, value in items:
        if name not in known:
            raise wrong(name[:64], f"is no parameter of this door; there are {', '.join(known)}")
        chars_max = (longer or {}).get(name, VALUE_CHARS_MAX)
        if len(value) > chars_max:
            raise wrong(name, f"has at most {chars_max} characters")
        if "\0" in value or not _is_text(value):
            raise wrong(name, "holds characters that no text has")
        values.setdefault(name, []).append(value)
    return values


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def single(values: Mapping[str, list[str]], name: str) -> str | None:
    """Return the value of a parameter that may stand once.

    Raises:
        CallerError: 400, it stands there twice.
    """
    found = values.get(name, ())
    if len(found) > 1:
        raise wrong(name, "stands there more than once")
    return found[0] if found else None


def one_of(values: Mapping[str, list[str]], name: str, allowed: Sequence[str], default: str) -> str:
    """Return one of the allowed words.

    Raises:
        CallerError: 400, it is none of them.
    """
    found = single(values, name)
    if found is None:
        return default
    if found not in allowed:
        raise wrong(name, f"is one of {', '.join(allowed)}")
    return found


def limit_of(values: Mapping[str, list[str]]) -> int:
    """Return how many a page has.

    Raises:
        CallerError: 400, it is no such number.
    """
    found = single(values, "limit")
    if found is None:
        return PAGE
    if not (found.isascii() and found.isdecimal() and len(found) <= 6 and 1 <= int(found) <= RECORDS_MAX):
        raise wrong("limit", f"is a whole number from 1 to {RECORDS_MAX}")
    return int(found)


def zone_of(values: Mapping[str, list[str]]) -> ZoneInfo:
    """Return the time zone.

    Raises:
        CallerError: 400, there is none of this name.
    """
    name = single(values, "tz")
    try:
        if name is not None and not _ZONE.fullmatch(name):
            raise ValueError
        return ZoneInfo(name or "UTC")
    except (ValueError, OSError, LookupError) as fault:
        raise wrong("tz", "is the name of a time zone, such as UTC or America/Los_Angeles") from fault


def period_of(values: Mapping[str, list[str]], zone: ZoneInfo) -> Period:
    """Return the range; open where it is not given.

    Raises:
        CallerError: 400, an end is none, or they are in the wrong order.
    """
    start = _instant(values, "start", zone)
    end = _instant(values, "end", zone)
    period = Period(FOREVER.start_ns if start is None else start, FOREVER.end_ns if end is None else end)
    if period.end_ns < period.start_ns:
        raise wrong("end", "is before start")
    return period


def _instant(values: Mapping[str, list[str]], name: str, zone: ZoneInfo) -> int | None:
    text = single(values, name)
    if text is None:
        return None
    try:
        if _DAY.fullmatch(text):
            found = midnight_ns(date.fromisoformat(text), zone)
        elif _INSTANT.fullmatch(text):
            moment = datetime.fromisoformat(text)
            found = instant_ns(moment if moment.tzinfo is not None else moment.replace(tzinfo=zone))
        else:
            raise ValueError
    except (ValueError, OverflowError) as fault:
        raise wrong(
            name, "is a day (2026-11-01, in tz) or an instant (2026-11-01T09:30:00Z; in a URL + is %2B)"
        ) from fault
    return min(max(found, FOREVER.start_ns), FOREVER.end_ns)


def _filters(values: Mapping[str, list[str]]) -> Filters:
    chosen: dict[str, tuple[str | None, ...]] = {}
    for name, field in FILTERS.items():
        given = tuple(dict.fromkeys(values.get(name, ())))
        if len(given) > VALUES_MAX:
            raise wrong(name, f"takes at most {VALUES_MAX} values")
        if "" in given and name not in MAY_BE_UNKNOWN:
            raise wrong(name, "is empty")
        if name == "status" and not set(given) <= set(STATUSES):
            raise wrong(name, f"is one of {', '.join(STATUSES)}")
        chosen[field] = tuple(value or None for value in given)
    return msgspec.convert(chosen, Filters)


def _cursor(values: Mapping[str, list[str]]) -> After | None:
    text = single(values, "cursor")
    try:
        return None if text is None else after(text)
    except ValueError as fault:
        raise wrong("cursor", str(fault)) from fault


def wrong(name: str, why: str) -> CallerError:
    """Return a 400 that names a parameter."""
    return CallerError("invalid_parameter", f"{name} {why}", status=400, param=name)
