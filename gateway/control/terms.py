"""Terms: what a key is for, as its maker states it; and the rule that none grants more than its maker has.

The rule is kept on whole terms, never on what a request changes alone, and it refuses what it cannot show: a
pattern of models must be covered by one single pattern of the maker's.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from gateway.core.errors import CallerError
from gateway.core.names import covers
from gateway.protocols import PROTOCOLS

ENDPOINTS: Final = tuple(protocol.name for protocol in PROTOCOLS.values())
TEXT_CHARS_MAX: Final = 256
TAGS_MAX: Final = 32
TAG_CHARS_MAX: Final = 64
MODELS_MAX: Final = 64
STARS_MAX: Final = 4
"""Of one pattern: each costs admission a search through the name."""
END_MAX: Final = datetime(2262, 1, 1, tzinfo=UTC)
"""Nanoseconds since 1970 have 64 bits until then."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request says of a key; what it leaves out has a default, or stays as it is.

    Args:
        expires_at: RFC 3339, with its zone; null for never.
        models: exact names, or patterns with `*`; null for all.
        endpoints: names of protocols; null for all.
    """

    name: str | UnsetType | None = UNSET
    user: str | UnsetType = UNSET
    user_name: str | UnsetType | None = UNSET
    team: str | UnsetType | None = UNSET
    project: str | UnsetType | None = UNSET
    tags: list[str] | UnsetType = UNSET
    models: list[str] | UnsetType | None = UNSET
    endpoints: list[str] | UnsetType | None = UNSET
    on_disconnect: Literal["drain", "cancel"] | UnsetType = UNSET
    unpriced: Literal["serve", "refuse"] | UnsetType | None = UNSET
    expires_at: str | UnsetType | None = UNSET
    may_create_keys: bool | UnsetType = UNSET


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a key is for; see `Fields`, and `Identity` for what becomes of it."""

    user: str
    name: str | None = None
    user_name: str | None = None
    team: str | None = None
    project: str | None = None
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    on_disconnect: Literal["drain", "cancel"] = "drain"
    unpriced: Literal["serve", "refuse"] | None = None
    expires_unix_ns: int | None = None
    may_create_keys: bool = False


def new_terms(fields: Fields, maker: Terms | None) -> Terms:
    """Return the terms of a new key; what its maker left out is as the maker's own, as far as a key has it.

    Args:
        maker: None is the operator.

    Raises:
        CallerError: 400, naming the field.
    """
    if maker is not None:
        start = msgspec.structs.replace(maker, name=None, may_create_keys=False)
    elif fields.user is UNSET:
        raise _wrong("user", "is missing: who owns the key?")
    else:
        start = Terms(user=fields.user)
    return changed_terms(start, fields)


def changed_terms(terms: Terms, fields: Fields) -> Terms:
    """Return the terms with what the fields say.

    Raises:
        CallerError: 400, naming the field.
    """
    check_fields(fields)
    said = {
        name: tuple(value) if isinstance(value, list) else value
        for name in fields.__struct_fields__
        if (value := getattr(fields, name)) is not UNSET
    }
    if "expires_at" in said:
        at = said.pop("expires_at")
        said["expires_unix_ns"] = None if at is None else parse_end(str(at))
    return msgspec.structs.replace(terms, **said)


def check_fields(fields: Fields) -> None:
    """Look at what can be seen without knowing the key.

    Raises:
        CallerError: 400, naming the field.
    """
    for name in ("name", "user", "user_name", "team", "project"):
        if isinstance(text := getattr(fields, name), str):
            check_text(name, text)
    if fields.tags is not UNSET:
        _check_list("tags", fields.tags, TAGS_MAX, TAG_CHARS_MAX)
    if fields.models is not UNSET and fields.models is not None:
        check_models(fields.models)
    if fields.endpoints is not UNSET and fields.endpoints is not None:
        check_endpoints(fields.endpoints)


def check_models(models: Iterable[str]) -> None:
    """Look at names and patterns of models.

    Raises:
        CallerError: 400.
    """
    models = list(models)
    _check_list("models", models, MODELS_MAX, TEXT_CHARS_MAX)
    if not models:
        raise _wrong("models", "names none: leave it out, or null, for all models")
    if any(model.count("*") > STARS_MAX for model in models):
        raise _wrong("models", f"has a pattern with more than {STARS_MAX} stars")


def check_endpoints(endpoints: Iterable[str]) -> None:
    """Look at names of endpoints.

    Raises:
        CallerError: 400.
    """
    endpoints = list(endpoints)
    if not endpoints or not set(endpoints) <= set(ENDPOINTS) or len(set(endpoints)) < len(endpoints):
        raise _wrong(
            "endpoints", f"must be some of {', '.join(ENDPOINTS)}; leave it out, or null, for all of them"
        )


def beyond(maker: Terms, terms: Terms) -> str | None:
    """Return the first field in which terms grant more than their maker has, None if they do not.

    A key costs its owner, so all that names an owner is the maker's own; tags may be added.
    """
    for name in ("user", "user_name", "team", "project", "on_disconnect"):
        if getattr(terms, name) != getattr(maker, name):
            return name
    if not set(maker.tags) <= set(terms.tags):
        return "tags"
    if not _models_within(maker.models, terms.models):
        return "models"
    if maker.endpoints is not None and (
        terms.endpoints is None or not set(terms.endpoints) <= set(maker.endpoints)
    ):
        return "endpoints"
    if terms.unpriced not in (maker.unpriced, "refuse"):
        return "unpriced"
    if maker.expires_unix_ns is not None and (
        terms.expires_unix_ns is None or terms.expires_unix_ns > maker.expires_unix_ns
    ):
        return "expires_at"
    return "may_create_keys" if terms.may_create_keys else None


def _models_within(wide: tuple[str, ...] | None, narrow: tuple[str, ...] | None) -> bool:
    if wide is None or "*" in wide:
        return True
    return narrow is not None and all(any(covers(one, model) for one in wide) for model in narrow)


def parse_end(text: str) -> int:
    """Return RFC 3339 as nanoseconds since 1970.

    Raises:
        CallerError: 400.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise _wrong("expires_at", "is no time such as 2027-01-31T12:00:00Z") from None
    if at.tzinfo is None:
        raise _wrong("expires_at", "needs a zone, such as 2027-01-31T12:00:00Z")
    return end_of(at)


def end_of(at: datetime) -> int:
    """Return a time with a zone as nanoseconds since 1970.

    Raises:
        CallerError: 400, it is out of range.
    """
    try:
        if not _EPOCH <= at < END_MAX:
            raise OverflowError
        return (at - _EPOCH) // timedelta(microseconds=1) * 1000
    except OverflowError:
        raise _wrong("expires_at", f"must be a time before {END_MAX.year}") from None


def check_text(name: str, text: str, chars_max: int = TEXT_CHARS_MAX) -> None:
    """Look at a text that is to be stored, or looked for.

    Raises:
        CallerError: 400, no database takes it.
    """
    if not 0 < len(text) <= chars_max or not text.isprintable():
        raise _wrong(name, f"must be 1 to {chars_max} printable characters")


def _check_list(name: str, items: list[str], count_max: int, chars_max: int) -> None:
    if len(items) > count_max or len(set(items)) < len(items):
        raise _wrong(name, f"must be at most {count_max} different ones")
    for item in items:
        check_text(name, item, chars_max)


def _wrong(name: str, what: str) -> CallerError:
    return CallerError("invalid_request", f"`{name}` {what}", status=400, param=name)
