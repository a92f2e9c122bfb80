"""Cards: a provider is a file of facts, and a new provider of a known protocol is one more file.

A card never holds a secret. `gateway.providers.places` puts card, environment and key together.

A base URL means what it means to the official SDKs: whatever stands before `/chat/completions` and OpenAI's
other doors (it ends in `/v1`) or before `/v1/messages` (Anthropic's does not). What a base URL ends with is
not repeated where a door's path begins with it: neither `/v1` nor Azure's `/openai/v1` is ever doubled.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from gateway.providers.upstream import Endpoint

Auth = Literal["bearer", "x-api-key", "api-key", "none"]
StreamUsage = Literal["on_request", "always"]
OutputLimit = Literal["max_tokens", "max_completion_tokens"]

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
HEADER_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
HEADER_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
NEVER_FORWARDED: Final = frozenset(
    {
        # who the caller is to *us*, and what it told us alone
        *("authorization", "proxy-authorization", "x-api-key", "api-key", "cookie", "baggage"),
        # written by the gateway or its transport
        *("traceparent", "tracestate", "host", "content-length", "content-type", "content-encoding"),
        *(
            "accept-encoding",
            "connection",
            "transfer-encoding",
            "te",
            "trailer",
            "upgrade",
            "keep-alive",
            "expect",
        ),
        # all callers share the provider's account: one caller's key must not fetch another's reply
        "idempotency-key",
    }
)
"""What no card may forward from the caller."""

PATHS_OF_CUSTOM: Final = {
    "chat_completions": "/chat/completions",
    "responses": "/responses",
    "responses_compact": "/responses/compact",
    "responses_input_tokens": "/responses/input_tokens",
    "embeddings": "/embeddings",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
}
"""Doors that a provider of the operator's own may have, and where they stand below its base URL."""

FORWARDED_OF_MESSAGES: Final = ("anthropic-version", "anthropic-beta")
DEFAULTS_OF_MESSAGES: Final = {"anthropic-version": "2023-06-01"}
"""Headers of a door for messages that no card knows."""


class CardError(Exception):
    """A card, or what the configuration says about it, cannot be used; names the file or key at fault."""


class DoorCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One protocol as one provider serves it; None takes the card's value.

    Args:
        path: below the base URL.
    """

    path: str
    auth: Auth | None = None
    stream_usage: StreamUsage | None = None
    reasoning_in_output: bool | None = None
    hidden_output: bool | None = None


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known about one provider.

    Args:
        name: `gen_ai.provider.name`, and the first segment of `provider/model`.
        doors: protocol name -> where it stands.
        prices: section of the price catalogue; `{route}` stands for what follows the model's last colon.
        key_env: environment variables that may hold the key, first found wins; empty: it needs none.
        key_optional: it serves without a key, and takes one where its operator wants one.
        base_url_env: environment variable that overrides `base_url`. Never one that callers set to reach
            *this gateway*, such as the SDKs' `OPENAI_BASE_URL`: it would then call itself.
        base_url_needed: only the operator knows where it is, and `base_url` is an example. A server on this
            machine is called only where the operator says so: other things listen on such ports, too.
        output_limit, reasoning_content: what its chat completions want of a request that was translated:
            the name of the limit, and a model's earlier thoughts back.
        thinking_budgets: patterns of models that take a budget for their thinking; others take a level.
        models: exact names or patterns with `*` that are served here without naming the provider.
        suggest: well-known names, to help with a mistyped one.
        forward_headers: the caller's headers that are passed on, beside accept and user-agent.
        default_headers: sent when the caller sent none of that name.
        env_headers: header -> environment variable that holds the operator's value.
        in_process: served by the gateway itself, without a socket.
    """

    name: str
    title: str
    base_url: str
    doors: dict[str, DoorCard]
    prices: str
    auth: Auth = "bearer"
    key_env: tuple[str, ...] = ()
    key_optional: bool = False
    base_url_env: str | None = None
    base_url_needed: bool = False
    stream_usage: StreamUsage = "on_request"
    reasoning_in_output: bool = True
    hidden_output: bool = False
    output_limit: OutputLimit = "max_tokens"
    reasoning_content: bool = False
    thinking_budgets: tuple[str, ...] = ("*",)
    models: tuple[str, ...] = ()
    suggest: tuple[str, ...] = ()
    forward_headers: tuple[str, ...] = ()
    default_headers: dict[str, str] = {}
    env_headers: dict[str, str] = {}
    in_process: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"name: {self.name!r} must be lower-case letters, digits, '_', '.', '-'; at most 64"
            )
        if not self.doors:
            raise ValueError("doors: at least one is needed")
        for name, door in self.doors.items():
            if not re.fullmatch(r"/[\x21-\x22\x24-\x3e\x40-\x7e]*", door.path):
                raise ValueError(
                    f"doors.{name}.path: {door.path!r} must start with / and hold no space, ? or #"
                )
        for header in (*self.forward_headers, *self.default_headers, *self.env_headers):
            if not HEADER_NAME.fullmatch(header):
                raise ValueError(f"{header!r} is not a header name in lower case")
            if header in NEVER_FORWARDED:
                raise ValueError(f"header {header!r} is the gateway's own and never comes from a card")
        for header, value in self.default_headers.items():
            if not HEADER_VALUE.fullmatch(value):
                raise ValueError(f"default_headers.{header}: must be visible ASCII")
        try:
            Origin.of(self.base_url)
        except ValueError as fault:
            raise ValueError(f"base_url: {fault}") from fault

    def thinks_adaptively(self, model: str) -> bool:
        """Say whether a model of its messages takes a level of thinking instead of a budget."""
        return not any(fnmatchcase(model, pattern) for pattern in self.thinking_budgets)


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration says about one provider; None (or nothing) means that it says nothing.

    Args:
        has_key: the configuration holds the key itself.
        protocols: names of `PATHS_OF_CUSTOM`: the doors of a provider of the operator's own (chat completions
            where nothing is said); of a built-in one doors that it has beside those of its card.
        stream_usage, reasoning_in_output, hidden_output, output_limit, reasoning_content: for a provider of
            the operator's own.
    """

    enabled: bool = True
    title: str | None = None
    base_url: str | None = None
    has_key: bool = False
    api_key_env: str | None = None
    protocols: tuple[str, ...] | None = None
    models: tuple[str, ...] = ()
    prices: str | None = None
    stream_usage: StreamUsage = "on_request"
    reasoning_in_output: bool = True
    hidden_output: bool = False
    output_limit: OutputLimit = "max_tokens"
    reasoning_content: bool = False


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A checked base URL."""

    scheme: str
    host: str
    port: int
    base_path: str

    @classmethod
    def of(cls, url: str) -> Origin:
        """Take a base URL apart.

        Raises:
            ValueError: not http(s), or with user, query or fragment: a secret in a URL would reach logs.
        """
        if not re.fullmatch(r"[\x21-\x7e]{1,2048}", url):
            raise ValueError("must be 1 to 2,048 visible ASCII characters")
        if "?" in url or "#" in url or "\\" in url:
            raise ValueError("must hold no query, fragment or backslash")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError("must start with http:// or https://")
        if "@" in parts.netloc:
            raise ValueError("must hold no user or password; configure the key instead")
        if not parts.hostname or parts.port == 0:
            raise ValueError("names no host, or port 0")
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=parts.port or (443 if parts.scheme == "https" else 80),
            base_path=parts.path.rstrip("/"),
        )

    def endpoint(self, path: str) -> Endpoint:
        """Return the endpoint of a path below this base, which does not repeat what the base ends with."""
        segments = path.split("/")
        for count in range(len(segments) - 1, 1, -1):
            head = "/".join(segments[:count])
            if self.base_path.endswith(head):
                path = path[len(head) :]
                break
        return Endpoint(
            scheme=self.scheme, host=self.host, port=self.port, target=(self.base_path + path).encode("ascii")
        )


def load_cards(overrides: Mapping[str, Override] = {}) -> dict[str, Card]:
    """Return the enabled cards by name: the built-in ones as configured, then the operator's own.

    Raises:
        CardError: listing every mistake, one a line, each with its file or configuration key.
    """
    cards: dict[str, Card] = {}
    mistakes: list[str] = []
    for file in sorted(
        files("gateway.providers").joinpath("catalogue").iterdir(), key=lambda entry: entry.name
    ):
        if not file.name.endswith(".toml"):
            continue
        try:
            card = read_card(file)
        except CardError as fault:
            mistakes.append(str(fault))
            continue
        if card.name in cards or file.name != f"{card.name}.toml":
            mistakes.append(f"{file.name}: name: {card.name!r} must be unique and the file's own name")
        cards[card.name] = card
    for name, override in overrides.items():
        builtin = cards.pop(name, None)
        if not override.enabled:
            continue
        try:
            cards[name] = _adapted(builtin, override) if builtin else _custom(name, override)
        except ValueError as fault:
            mistakes.append(f"providers.{name}: {fault}")
    if mistakes:
        raise CardError("\n".join(mistakes))
    return cards


def read_card(file: Traversable) -> Card:
    """Read one card file.

    Raises:
        CardError: naming the file and the key.
    """
    try:
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Card)
    except (OSError, ValueError) as fault:  # msgspec and tomllib raise kinds of ValueError, with the key
        raise CardError(f"{file.name}: {fault}") from fault


def _adapted(card: Card, override: Override) -> Card:
    """Return a built-in card as the configuration wants it."""
    changes: dict[str, object] = {}
    for field in ("title", "base_url", "models", "prices"):
        value = getattr(override, field)
        if value:
            changes[field] = value
    if override.base_url is not None:
        changes |= {"in_process": False, "base_url_env": None, "base_url_needed": False}
    if override.api_key_env is not None:
        changes["key_env"] = (override.api_key_env,)
    if _keyed(override) and card.auth == "none":
        changes["auth"] = "bearer"
    if override.protocols is not None:
        more = [name for name in override.protocols if name not in card.doors]
        doors = _doors(more, override.base_url or card.base_url, card.auth != "none")
        changes["doors"] = card.doors | doors
        if "messages" in doors:
            changes |= {"forward_headers": FORWARDED_OF_MESSAGES, "default_headers": DEFAULTS_OF_MESSAGES}
    return msgspec.structs.replace(card, **changes)


def _custom(name: str, override: Override) -> Card:
    """Return the card of a provider of the operator's own."""
    if override.base_url is None:
        raise ValueError("base_url: missing, and there is no built-in provider of that name")
    keyed = _keyed(override)
    protocols = ("chat_completions",) if override.protocols is None else override.protocols
    doors = _doors(protocols, override.base_url, keyed)
    anthropic = "messages" in doors
    return Card(
        name=name,
        title=override.title or name,
        base_url=override.base_url,
        doors=doors,
        prices=override.prices or name,
        auth="bearer" if keyed else "none",
        key_env=() if override.api_key_env is None else (override.api_key_env,),
        stream_usage=override.stream_usage,
        reasoning_in_output=override.reasoning_in_output,
        hidden_output=override.hidden_output,
        output_limit=override.output_limit,
        reasoning_content=override.reasoning_content,
        models=override.models,
        suggest=tuple(model for model in override.models if "*" not in model),
        forward_headers=FORWARDED_OF_MESSAGES if anthropic else (),
        default_headers=DEFAULTS_OF_MESSAGES if anthropic else {},
    )


def _keyed(override: Override) -> bool:
    return override.has_key or override.api_key_env is not None


def _doors(protocols: Sequence[str], base_url: str, keyed: bool) -> dict[str, DoorCard]:
    """Return the doors of these names as most servers have them.

    Raises:
        ValueError: a name that is none, or a base URL that cannot be used.
    """
    origin = Origin.of(base_url)
    doors: dict[str, DoorCard] = {}
    for protocol in protocols:
        if protocol not in PATHS_OF_CUSTOM:
            raise ValueError(f"protocols: {protocol!r} is none of {', '.join(PATHS_OF_CUSTOM)}")
        path = PATHS_OF_CUSTOM[protocol]
        if path.startswith("/v1/"):  # Anthropic's
            doors[protocol] = DoorCard(
                path=path, auth="x-api-key" if keyed else "none", stream_usage="always"
            )
        else:
            # A bare host is meant with the usual /v1; any path is taken at its word.
            doors[protocol] = DoorCard(path=path if origin.base_path else f"/v1{path}")
    if "messages" in doors:
        doors.setdefault(
            "count_tokens", msgspec.structs.replace(doors["messages"], path=PATHS_OF_CUSTOM["count_tokens"])
        )
    return doors
