"""Places: a card with its address and its key, made once, so that a request only copies prepared values.

Of the caller's headers only those on the card's list go out; the key goes to the card's host and is shown
by no repr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gateway.providers.cards import HEADER_VALUE, Auth, Card, CardError, DoorCard, Origin, StreamUsage
from gateway.providers.upstream import Endpoint, Header

USER_AGENT: Final = b"spanbill"
ALWAYS_FORWARDED: Final = frozenset({b"accept", b"user-agent"})
KEY_CHARS_MAX: Final = 8192


class Secret:
    """A provider's key; what prints it shows nothing."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is never serialised")

    def reveal(self) -> str:
        """Return the key itself."""
        return self._value


class Door:
    """One protocol of one provider, ready to be called."""

    __slots__ = (
        "_defaults",
        "_forward",
        "endpoint",
        "fixed",
        "hidden_output",
        "reasoning_in_output",
        "stream_usage",
    )

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        stream_usage: StreamUsage,
        reasoning_in_output: bool,
        hidden_output: bool,
        fixed: Sequence[Header],
        forward: frozenset[bytes],
        defaults: Sequence[Header],
    ) -> None:
        self.endpoint = endpoint
        self.stream_usage = stream_usage
        self.reasoning_in_output = reasoning_in_output
        self.hidden_output = hidden_output
        self.fixed = tuple(fixed)
        self._forward = forward
        self._defaults = tuple(defaults)

    def __repr__(self) -> str:
        return f"Door({self.endpoint!r})"

    def headers(self, client_headers: Sequence[Header], traceparent: bytes) -> list[Header]:
        """Return the headers for the provider: its key, and of the caller's only the listed ones."""
        forward = self._forward
        headers = [header for header in client_headers if header[0] in forward]
        sent = [header[0] for header in headers]
        headers += [default for default in self._defaults if default[0] not in sent]
        headers += self.fixed
        headers.append((b"traceparent", traceparent))
        return headers


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider as this process can reach it.

    Args:
        ready: it has a key or needs none, and an address.
        wants: variables that it still needs to be ready, all of them; none where only the configuration can.
        key_from: the variable or setting that holds its key; None where it has none.
        doors: protocol name -> prepared door; whole even where no key is known, so that routing can explain.
    """

    name: str
    card: Card
    origin: Origin
    ready: bool
    wants: tuple[str, ...] = ()
    key_from: str | None = None
    doors: dict[str, Door]

    def same_place(self, other: Provider) -> bool:
        """Say whether both reach one address with one key."""
        return self.origin == other.origin and [door.fixed for door in self.doors.values()] == [
            door.fixed for door in other.doors.values()
        ]

    def prices_of(self, model: str) -> str:
        """Return the section of the price catalogue for a model: a router's prices depend on the route."""
        template = self.card.prices
        if "{route}" not in template:
            return template
        _, colon, route = model.rpartition(":")
        return template.replace("{route}", route) if colon and route else self.name


def resolve(card: Card, environ: Mapping[str, str], api_key: Secret | None = None) -> Provider:
    """Put a card, the environment and a configured key together.

    Raises:
        CardError: naming the variable that holds an unusable key or address; never its value.
    """
    key, key_from = _key(card, environ, api_key)
    base_url, url_from, located = card.base_url, f"{card.name}.base_url", not card.base_url_needed
    if card.base_url_env is not None and environ.get(card.base_url_env, "").strip():
        base_url, url_from, located = environ[card.base_url_env].strip(), card.base_url_env, True
    try:
        origin = Origin.of(base_url)
    except ValueError as fault:
        raise CardError(f"{url_from}: {fault}") from fault
    if key is not None and (len(key.reveal()) > KEY_CHARS_MAX or not HEADER_VALUE.fullmatch(key.reveal())):
        raise CardError(f"{key_from}: the key must be visible ASCII in one line")
    operator = _operator_headers(card, environ)
    keyed = key is not None or card.key_optional or card.auth == "none"
    address = () if located or card.base_url_env is None else (card.base_url_env,)
    return Provider(
        name=card.name,
        card=card,
        origin=origin,
        ready=keyed and located,
        wants=(*(() if keyed else card.key_env[:1]), *address),
        key_from=None if key is None else key_from,
        doors={name: _door(card, door, origin, key, operator) for name, door in card.doors.items()},
    )


def _key(card: Card, environ: Mapping[str, str], api_key: Secret | None) -> tuple[Secret | None, str]:
    if api_key is not None and api_key.reveal().strip():
        return Secret(api_key.reveal().strip()), f"providers.{card.name}.api_key"
    for name in card.key_env:
        value = environ.get(name, "").strip()
        if value:
            return Secret(value), name
    return None, card.name


def _operator_headers(card: Card, environ: Mapping[str, str]) -> list[Header]:
    headers: list[Header] = []
    for header, name in card.env_headers.items():
        value = environ.get(name, "").strip()
        if not value:
            continue
        if not HEADER_VALUE.fullmatch(value):
            raise CardError(f"{name}: must be visible ASCII in one line")
        headers.append((header.encode(), value.encode()))
    return headers


def _door(card: Card, door: DoorCard, origin: Origin, key: Secret | None, operator: list[Header]) -> Door:
    operators = {name for name, _ in operator}
    forward = {name.encode() for name in card.forward_headers} - operators
    reasoning, hidden = door.reasoning_in_output, door.hidden_output
    return Door(
        endpoint=origin.endpoint(door.path),
        stream_usage=door.stream_usage or card.stream_usage,
        reasoning_in_output=card.reasoning_in_output if reasoning is None else reasoning,
        hidden_output=card.hidden_output if hidden is None else hidden,
        fixed=[
            (b"content-type", b"application/json"),
            # The bytes are relayed as they are and searched for usage: they must not be compressed.
            (b"accept-encoding", b"identity"),
            *_credentials(door.auth or card.auth, key),
            *operator,
        ],
        forward=frozenset(forward | ALWAYS_FORWARDED),
        defaults=[
            (b"accept", b"*/*"),
            (b"user-agent", USER_AGENT),
            *((name.encode(), value.encode()) for name, value in card.default_headers.items()),
        ],
    )


def _credentials(auth: Auth, key: Secret | None) -> list[Header]:
    if key is None or auth == "none":
        return []
    if auth == "bearer":
        return [(b"authorization", f"Bearer {key.reveal()}".encode())]
    return [(auth.encode(), key.reveal().encode())]
