"""Script: a simulated reply as a value: what is sent, when, and whether the connection lives to its end.

Delays are numbers in the script; only the shells wait, so that a test may play a slow model at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from gateway.providers.simulated.answers import UsageForm, answer
from gateway.providers.simulated.chat import Chat
from gateway.providers.simulated.embeddings import Embeddings
from gateway.providers.simulated.messages import CountTokens, Messages
from gateway.providers.simulated.responses import Compact, InputTokens, Responses
from gateway.providers.simulated.state import State
from gateway.providers.simulated.wire import RefusedError, Wire, parse
from gateway.providers.upstream import Header

SLOW_CHUNK_S: Final = 0.05
FORCED_STATUS: Final = re.compile(r"sim-err-([45]\d\d)")


class Piece(msgspec.Struct, frozen=True):
    """Bytes, sent `delay_s` after what came before."""

    delay_s: float
    data: bytes


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """One reply.

    Args:
        head_delay_s: until the status line.
        ending: `cut` closes the connection after the last piece, in the middle of the body.
        content_length: of the whole body, also where it is cut; None for a stream.
    """

    status: int
    headers: tuple[Header, ...]
    pieces: tuple[Piece, ...]
    ending: Literal["complete", "cut"] = "complete"
    head_delay_s: float = 0.0
    content_length: int | None = None


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What one model does; a row of MODELS."""

    usage: UsageForm = "plain"
    chunk_delay_s: float = 0.0
    fault: Literal["none", "cut", "midstream_error", "flaky"] = "none"


MODELS: Final[dict[str, Behaviour]] = {
    "sim-small": Behaviour(),
    "sim-large": Behaviour(usage="zeros"),
    "sim-cache": Behaviour(usage="cache"),
    "sim-reasoning": Behaviour(usage="reasoning"),
    "sim-slow": Behaviour(chunk_delay_s=SLOW_CHUNK_S),
    "sim-flaky": Behaviour(fault="flaky"),
    "sim-cut": Behaviour(fault="cut"),
    "sim-midstream-error": Behaviour(fault="midstream_error"),
    "sim-nousage": Behaviour(usage="none"),
}

WIRES: Final[dict[str, Wire]] = {
    "/v1/chat/completions": Chat(),
    "/v1/messages": Messages(),
    "/v1/messages/count_tokens": CountTokens(),
    "/v1/responses": Responses(),
    "/v1/responses/compact": Compact(),
    "/v1/responses/input_tokens": InputTokens(),
    "/v1/embeddings": Embeddings(),
}


def simulate(path: str, body: bytes, headers: Iterable[Header], state: State) -> Script:
    """Return the reply to a POST; never raises.

    Args:
        path: without query.
        body: as the caller sent it.
        headers: names in lower case.
        state: what the provider remembers; the one thing that changes.
    """
    wire = WIRES.get(path)
    if wire is None:
        return _refusal(
            WIRES["/v1/chat/completions"], RefusedError(404, f"Invalid URL (POST {path[:256]})"), body, state
        )
    try:
        return _reply(path, wire, parse(body), body, dict(headers), state)
    except RefusedError as refused:
        return _refusal(wire, refused, body, state)


def _reply(
    path: str,
    wire: Wire,
    request: Mapping[str, object],
    body: bytes,
    headers: Mapping[bytes, bytes],
    state: State,
) -> Script:
    model = request.get("model")
    state.count(path, model if isinstance(model, str) and model.startswith("sim-") else "?")
    ask = wire.read(request, headers)
    forced = FORCED_STATUS.fullmatch(ask.model)
    if forced:
        raise RefusedError(int(forced[1]), f"Simulated error {forced[1]}.")
    behaviour = MODELS.get(ask.model)
    if behaviour is None:
        raise RefusedError(404, f"The model `{ask.model[:64]}` does not exist.", code="model_not_found")
    if behaviour.fault == "flaky" and state.fails_now(path.encode() + body):
        raise RefusedError(503, "The server is overloaded; the same request works next time.")
    said = answer(ask, behaviour.usage, body, state)
    if ask.stream and wire.streams:
        return _streamed(wire, wire.events(said, include_usage=ask.include_usage), behaviour, said.id)
    if behaviour.fault == "midstream_error":
        raise RefusedError(500, "The server had an error while processing your request.")
    whole = wire.whole(said)
    cut = behaviour.fault == "cut"
    return Script(
        status=200,
        headers=(_type(b"application/json"), wire.id_header(said.id)),
        pieces=(Piece(0.0, whole[: len(whole) // 2] if cut else whole),),
        ending="cut" if cut else "complete",
        head_delay_s=behaviour.chunk_delay_s * 10,
        content_length=len(whole),
    )


def _streamed(wire: Wire, events: list[bytes], behaviour: Behaviour, request_id: str) -> Script:
    if behaviour.fault in ("cut", "midstream_error"):
        events = events[: len(events) // 2]
    if behaviour.fault == "midstream_error":
        events.append(wire.error_event())
    elif behaviour.fault == "cut":
        events[-1] = events[-1][: len(events[-1]) // 2]
    return Script(
        status=200,
        headers=(
            _type(b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            wire.id_header(request_id),
        ),
        pieces=tuple(Piece(behaviour.chunk_delay_s, event) for event in events),
        ending="cut" if behaviour.fault == "cut" else "complete",
    )


def _refusal(wire: Wire, refused: RefusedError, body: bytes, state: State) -> Script:
    request_id = state.next_id(body)
    data = wire.error(refused, request_id)
    headers = [_type(b"application/json"), wire.id_header(request_id)]
    if refused.status == 429:
        headers.append((b"retry-after", b"1"))
    return Script(
        status=refused.status, headers=tuple(headers), pieces=(Piece(0.0, data),), content_length=len(data)
    )


def _type(value: bytes) -> Header:
    return (b"content-type", value)
