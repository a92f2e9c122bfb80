"""Wire: what the two protocols' modules have in common: refusals, and reading JSON without trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol as Interface

import msgspec

from gateway.providers.simulated.answers import Answer, Ask


class RefusedError(Exception):
    """The provider refuses a request.

    Args:
        kind: the provider's own word for `error.type`; None takes the one that belongs to the status.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param


class Wire(Interface):
    """One protocol, as the provider speaks it."""

    streams: bool
    """Whether `stream` is heeded."""

    def read(self, body: Mapping[str, object], headers: Mapping[bytes, bytes]) -> Ask:
        """Take a request apart; raises RefusedError."""
        ...

    def whole(self, answer: Answer) -> bytes:
        """Return a whole reply."""
        ...

    def events(self, answer: Answer, *, include_usage: bool) -> list[bytes]:
        """Return the events of a streamed reply, the terminal ones included."""
        ...

    def error(self, refused: RefusedError, request_id: str) -> bytes:
        """Return the body of a refusal."""
        ...

    def error_event(self) -> bytes:
        """Return the event of a fault in the middle of a stream."""
        ...

    def id_header(self, request_id: str) -> tuple[bytes, bytes]:
        """Return the header that carries the provider's id of the request."""
        ...


def parse(body: bytes) -> dict[str, object]:
    """Return the request as an object.

    Raises:
        RefusedError: 400.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        raise RefusedError(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(value, dict):
        raise RefusedError(400, "The JSON body of the request must be an object.")
    return value


def text_of(value: object) -> str:
    """Return a string as it is, anything else as JSON, and nothing for null."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def objects(value: object) -> list[Mapping[str, object]]:
    """Return the objects of a list; nothing for anything else."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def limit(value: object, name: str) -> int | None:
    """Return a limit of tokens.

    Raises:
        RefusedError: 400, not a whole number of at least 1.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RefusedError(
            400, f"{name}: must be an integer of at least 1", code="integer_below_min_value", param=name
        )
    return value
