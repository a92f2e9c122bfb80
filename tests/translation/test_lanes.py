"""Lanes: a provider that speaks another protocol is reached in one that can say what was asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.assembly import configured_providers, place_of
from gateway.assembly_routing import routes_of
from gateway.core.errors import CallerError
from gateway.core.exchange import Reply
from gateway.protocols import PROTOCOLS
from gateway.routing.targets import Router
from gateway.settings import ProviderSettings, Settings
from gateway.stages import Lane, translated
from gateway.translation import STAND_INS

HELLO: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}


def lanes(model: str, door: str, **providers: Any) -> tuple[Lane, ...]:
    settings = Settings(
        demo=False,
        providers={
            name: ProviderSettings(base_url=f"http://{name}.invalid/v1", models=("m",), protocols=protocols)
            for name, protocols in providers.items()
        },
    )
    known = configured_providers(
        settings, {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "DEEPSEEK_API_KEY": "k"}
    )
    router = Router([place_of(provider) for provider in known.values()], None, STAND_INS)
    return routes_of(settings, router, known).route(model, door).lanes


def spoken(found: tuple[Lane, ...], **members: Any) -> tuple[Lane, ...]:
    body = json.dumps({**HELLO, **members}).encode()
    return translated(found, body, PROTOCOLS["/v1/messages"].read_request(body), 1)


def paths(found: tuple[Lane, ...]) -> list[bytes]:
    return [lane.endpoint.target for lane in found]


def test_a_lane_that_speaks_the_callers_protocol_is_left_alone() -> None:
    found = lanes("m", "messages", one=("messages",))
    assert spoken(found) is found
    assert (found[0].translator, found[0].translated) == (None, None)
    head = (200, [(b"content-type", b"text/plain")], b"\x00 as it came")
    assert found[0].relayed(*head, Reply(), streamed=False) == head


def test_of_several_protocols_the_first_is_spoken_that_can_say_it() -> None:
    found = lanes("m", "messages", one=("chat_completions", "responses"))
    assert paths(spoken(found)) == [b"/v1/responses"]
    assert paths(spoken(found, stop_sequences=["x"])) == [b"/v1/chat/completions"]


def test_providers_that_cannot_have_the_request_are_left_out() -> None:
    found = lanes("m", "messages", one=("responses",), two=("chat_completions",))
    assert [lane.provider for lane in spoken(found)] == ["one", "two"]
    assert [lane.provider for lane in spoken(found, stop_sequences=["x"])] == ["two"]
    with pytest.raises(CallerError) as caught:
        spoken(found, top_k=3)
    assert caught.value.param == "top_k"


def test_cards_say_how_they_are_asked() -> None:
    (openai,) = lanes("gpt-4o", "messages")[-1:]
    assert paths((openai, *openai.instead)) == [b"/v1/responses", b"/v1/chat/completions"]
    assert openai.instead[0].dialect.output_limit == "max_completion_tokens"
    (claude,) = lanes("claude-sonnet-4-5-20250929", "responses")[:1]
    assert claude.endpoint.target == b"/v1/messages"
    assert not claude.dialect.adaptive_thinking
    assert lanes("claude-of-tomorrow", "responses")[0].dialect.adaptive_thinking
    headers = dict(claude.headers([], b""))
    assert headers[b"anthropic-version"] == b"2023-06-01"
    assert headers[b"x-api-key"] == b"k"
    assert lanes("deepseek-chat", "chat_completions")[0].dialect.reasoning_content


def test_doors_that_are_no_conversation_have_no_stand_in() -> None:
    for door in ("embeddings", "count_tokens", "responses_compact"):
        with pytest.raises(CallerError) as caught:
            lanes("m", door, one=("chat_completions",))
        assert caught.value.code == "unsupported_protocol"
