"""Languages: each wire language reads and writes meaning, so that n of them need 2n modules and no pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from typing import Protocol as Interface

import msgspec

from gateway.protocols.base import Dialect
from gateway.translation.answering import Asked
from gateway.translation.chat import answer as chat_answer
from gateway.translation.chat import asking as chat_asking
from gateway.translation.chat import events as chat_events
from gateway.translation.chat import telling as chat_telling
from gateway.translation.meaning import Answer, Conversation, Failure, Language
from gateway.translation.messages import answer as messages_answer
from gateway.translation.messages import asking as messages_asking
from gateway.translation.messages import events as messages_events
from gateway.translation.messages import telling as messages_telling
from gateway.translation.responses import answer as responses_answer
from gateway.translation.responses import asking as responses_asking
from gateway.translation.responses import events as responses_events
from gateway.translation.responses import telling as responses_telling
from gateway.translation.streaming import Event


class Reader(Interface):
    """Reads a provider's stream; one per stream."""

    def read(self, value: dict[str, Any]) -> list[Event]:
        """Return what one event means."""
        ...

    def finish(self) -> list[Event]:
        """Return what the end means; called once, of a stream that came to its end."""
        ...


class Writer(Interface):
    """Writes a caller's stream; one per stream."""

    def write(self, event: Event) -> bytes:
        """Return the events that say it, which may be none."""
        ...

    def end(self, counts: Mapping[str, int]) -> bytes:
        """Return the terminal events."""
        ...


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """One language: requests and replies, whole and streamed, read and written."""

    read_request: Callable[[dict[str, Any], Language], Conversation]
    write_request: Callable[[Conversation, str, Dialect], dict[str, Any]]
    read_answer: Callable[[dict[str, Any]], Answer]
    write_answer: Callable[[Answer, Asked, Mapping[str, int]], dict[str, Any]]
    read_failure: Callable[[dict[str, Any]], Failure | None]
    reader: Callable[[], Reader]
    writer: Callable[[Asked], Writer]


GRAMMARS: Final[dict[Language, Grammar]] = {
    "chat_completions": Grammar(
        read_request=chat_asking.read,
        write_request=chat_telling.write,
        read_answer=chat_answer.read,
        write_answer=chat_answer.write,
        read_failure=chat_answer.read_failure,
        reader=chat_events.Reader,
        writer=chat_events.Writer,
    ),
    "messages": Grammar(
        read_request=messages_asking.read,
        write_request=messages_telling.write,
        read_answer=messages_answer.read,
        write_answer=messages_answer.write,
        read_failure=messages_answer.read_failure,
        reader=messages_events.Reader,
        writer=messages_events.Writer,
    ),
    "responses": Grammar(
        read_request=responses_asking.read,
        write_request=responses_telling.write,
        read_answer=responses_answer.read,
        write_answer=responses_answer.write,
        read_failure=responses_answer.read_failure,
        reader=responses_events.Reader,
        writer=responses_events.Writer,
    ),
}
