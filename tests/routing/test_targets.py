"""A model's name leads to the places that serve it, or to a message that says what to do next."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import CallerError
from gateway.providers.cards import Override, load_cards
from gateway.providers.places import resolve
from gateway.routing.targets import MEMO_MAX, NAME_CHARS_MAX, Place, Router, Target

CHAT, MESSAGES = "chat_completions", "messages"
ALL_KEYS = {
    "OPENAI_API_KEY": "k",
    "ANTHROPIC_API_KEY": "k",
    "DEEPSEEK_API_KEY": "k",
    "OPENROUTER_API_KEY": "k",
}


def places(environ: dict[str, str], overrides: dict[str, Override] | None = None) -> list[Place]:
    """Build the places from the real cards, as the composition root does."""
    return [
        Place(
            provider=card.name,
            protocols=tuple(card.doors),
            models=card.models,
            ready=resolve(card, environ).ready,
            wants=resolve(card, environ).wants,
            suggest=card.suggest,
        )
        for card in load_cards(overrides or {}).values()
    ]


def refusal(router: Router, model: str, protocol: str = CHAT) -> CallerError:
    with pytest.raises(CallerError) as caught:
        router.targets(model, protocol)
    assert caught.value.param == "model"
    return caught.value


@pytest.mark.parametrize(
    ("model", "protocol", "provider", "there"),
    [
        ("gpt-4o", CHAT, "openai", "gpt-4o"),
        ("o3", CHAT, "openai", "o3"),
        ("ft:gpt-4o:acme::x", CHAT, "openai", "ft:gpt-4o:acme::x"),
        ("openai/gpt-4o", CHAT, "openai", "gpt-4o"),
        ("openai/a-model-of-tomorrow", CHAT, "openai", "a-model-of-tomorrow"),
        ("claude-sonnet-4-5", MESSAGES, "anthropic", "claude-sonnet-4-5"),
        ("claude-sonnet-4-5", CHAT, "anthropic", "claude-sonnet-4-5"),
        ("anthropic/claude-sonnet-4-5", "count_tokens", "anthropic", "claude-sonnet-4-5"),
        ("deepseek-chat", MESSAGES, "deepseek", "deepseek-chat"),
        ("openrouter/anthropic/claude-sonnet-4.5", CHAT, "openrouter", "anthropic/claude-sonnet-4.5"),
        ("openrouter/openai/gpt-4o:free", CHAT, "openrouter", "openai/gpt-4o:free"),
        ("sim-small", CHAT, "simulated", "sim-small"),
        ("sim-err-503", MESSAGES, "simulated", "sim-err-503"),
        ("simulated/whatever", MESSAGES, "simulated", "whatever"),
    ],
)
def test_names_lead_where_people_expect(model: str, protocol: str, provider: str, there: str) -> None:
    assert Router(places(ALL_KEYS)).targets(model, protocol) == (Target(provider, there),)


def test_a_model_that_the_operator_lists_is_the_operators_even_with_a_providers_name_in_front() -> None:
    mine = {"mine": Override(base_url="http://h/v1", models=("openai/gpt-oss-120b", "gpt-local*"))}
    router = Router(places(ALL_KEYS, mine))
    assert router.targets("openai/gpt-oss-120b", CHAT) == (Target("mine", "openai/gpt-oss-120b"),)
    both = router.targets("gpt-local-7b", CHAT)
    assert {target.provider for target in both} == {"openai", "mine"}


def test_places_that_are_not_ready_or_lack_the_door_are_passed_over() -> None:
    one = Place(provider="one", protocols=(CHAT,), models=("m*",), ready=False)
    two = Place(provider="two", protocols=(MESSAGES,), models=("m*",), ready=True)
    three = Place(provider="three", protocols=(CHAT, MESSAGES), models=("m*",), ready=True)
    router = Router([one, two, three])
    assert router.targets("m1", CHAT) == (Target("three", "m1"),)
    assert router.targets("m1", MESSAGES) == (Target("two", "m1"), Target("three", "m1"))


def test_the_default_provider_serves_what_nobody_else_can() -> None:
    router = Router(places({"OPENROUTER_API_KEY": "k"}), default_provider="openrouter")
    assert router.targets("qwen/qwen3", CHAT) == (Target("openrouter", "qwen/qwen3"),)
    assert router.targets("gpt-4o", CHAT) == (Target("openrouter", "gpt-4o"),)
    assert router.targets("sim-small", CHAT) == (Target("simulated", "sim-small"),)
    with pytest.raises(ValueError, match="default_provider"):
        Router(places({}), default_provider="nobody")


def test_a_missing_key_is_named() -> None:
    router = Router(places({}))
    error = refusal(router, "gpt-4o")
    assert (error.status, error.code) == (404, "model_not_found")
    assert error.message == "gpt-4o is served by openai, which is not configured: set OPENAI_API_KEY"
    assert "set ANTHROPIC_API_KEY" in refusal(router, "anthropic/claude-x", MESSAGES).message


def test_a_mistyped_name_is_answered_with_close_ones() -> None:
    router = Router(places({}))
    assert "did you mean sim-small" in refusal(router, "sim-smal").message
    assert "gpt-4o-mini" in refusal(router, "chat-gpt-4o-mini").message
    error = refusal(router, "xyzzy")
    assert "did you mean" not in error.message
    assert "GET /v1/models" in error.message
    assert refusal(router, "openai/").status == 404


def test_a_door_that_the_provider_lacks_is_told_with_those_that_it_has() -> None:
    error = refusal(Router(places(ALL_KEYS)), "gpt-4o", MESSAGES)
    assert (error.status, error.code) == (400, "unsupported_protocol")
    assert "does not offer messages; it offers chat_completions" in error.message


def test_another_protocol_stands_in_only_where_nobody_has_the_door() -> None:
    others = {CHAT: (MESSAGES, "responses"), "embeddings": ()}
    chat, both = (
        Place(provider="chat", protocols=(CHAT,), models=("m",), ready=True),
        Place(
            provider="both", protocols=("responses", MESSAGES, "embeddings"), models=("m", "n"), ready=True
        ),
    )
    router = Router([both, chat], others=others)
    assert router.targets("m", CHAT) == (Target("chat", "m"),)
    assert router.targets("n", CHAT) == (Target("both", "n", (MESSAGES, "responses")),)
    assert router.targets("n", "embeddings") == (Target("both", "n"),)
    assert refusal(router, "chat/m", "embeddings").code == "unsupported_protocol"
    assert refusal(router, "chat/m", MESSAGES).code == "unsupported_protocol"


@pytest.mark.parametrize(
    "model", ["", "a\x00b", "gpt-4o\n", "a\u202eb", "\ud800", "\x7f", "x" * (NAME_CHARS_MAX + 1)]
)
def test_a_name_that_can_not_be_one_is_refused(model: str) -> None:
    error = refusal(Router(places(ALL_KEYS), default_provider="openrouter"), model)
    assert (error.status, error.code) == (400, "invalid_model")
    assert not model or model not in error.message


@given(st.text(max_size=300), st.sampled_from([CHAT, MESSAGES, "count_tokens", "?"]))
def test_any_name_is_answered_or_refused_and_always_the_same_way(model: str, protocol: str) -> None:
    router = Router(places(ALL_KEYS))

    def outcome() -> object:
        try:
            return router.targets(model, protocol)
        except CallerError as error:
            return error.code, error.message

    first = outcome()
    assert outcome() == first
    if isinstance(first, tuple) and isinstance(first[0], Target):
        assert model.endswith(first[0].model)


def test_the_memo_is_bounded_and_refusals_are_not_kept() -> None:
    router = Router(places(ALL_KEYS))
    for number in range(MEMO_MAX + 10):
        router.targets(f"gpt-{number}", CHAT)
        refusal(router, f"x{number}" * 10) if number % 1000 == 0 else None
    assert 0 < len(router._memo) <= MEMO_MAX
    assert all(model.startswith("gpt-") for model, _ in router._memo)


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("gpt-*", ["gpt-", "gpt-4o"], ["xgpt-4", "GPT-4", "gpt"]),
        ("*-mini", ["a-mini"], ["a-mini-x"]),
        ("a*b*c", ["abc", "aXbYc", "abbcc"], ["ab", "acb", "abcd"]),
        ("a.b*", ["a.bc"], ["axbc"]),
        ("*", ["anything", "a/b"], []),
    ],
)
def test_patterns_match_whole_names(pattern: str, matches: list[str], others: list[str]) -> None:
    router = Router([Place(provider="p", protocols=(CHAT,), models=(pattern,), ready=True)])
    for name in matches:
        assert router.targets(name, CHAT) == (Target("p", name),)
    for name in others:
        assert refusal(router, name).status == 404


def test_hostile_names_cost_no_time() -> None:
    stars = Place(provider="p", protocols=(CHAT,), models=("*a" * 20 + "*b",), ready=True)
    router = Router([stars, *places({})])
    began = time.process_time()
    for _ in range(20):
        refusal(router, "a" * NAME_CHARS_MAX)
    assert time.process_time() - began < 2.0  # exponential matching would take years
