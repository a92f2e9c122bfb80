"""Cards say where providers are; every mistake in one is named with its file and key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from genai_prices import data

from gateway.providers.cards import Card, CardError, Origin, Override, load_cards, read_card

GOOGLE = "https://generativelanguage.googleapis.com:443"
TARGETS = {
    ("openai", "chat_completions"): "https://api.openai.com:443/v1/chat/completions",
    ("openai", "responses"): "https://api.openai.com:443/v1/responses",
    ("openai", "responses_compact"): "https://api.openai.com:443/v1/responses/compact",
    ("openai", "responses_input_tokens"): "https://api.openai.com:443/v1/responses/input_tokens",
    ("openai", "embeddings"): "https://api.openai.com:443/v1/embeddings",
    ("anthropic", "messages"): "https://api.anthropic.com:443/v1/messages",
    ("anthropic", "count_tokens"): "https://api.anthropic.com:443/v1/messages/count_tokens",
    ("anthropic", "chat_completions"): "https://api.anthropic.com:443/v1/chat/completions",
    ("deepseek", "chat_completions"): "https://api.deepseek.com:443/chat/completions",
    ("deepseek", "messages"): "https://api.deepseek.com:443/anthropic/v1/messages",
    ("deepseek", "responses"): "https://api.deepseek.com:443/responses",
    ("huggingface", "chat_completions"): "https://router.huggingface.co:443/v1/chat/completions",
    ("openrouter", "chat_completions"): "https://openrouter.ai:443/api/v1/chat/completions",
    ("openrouter", "messages"): "https://openrouter.ai:443/api/v1/messages",
    ("openrouter", "responses"): "https://openrouter.ai:443/api/v1/responses",
    ("openrouter", "embeddings"): "https://openrouter.ai:443/api/v1/embeddings",
    ("azure", "chat_completions"): "https://resource.openai.azure.com:443/openai/v1/chat/completions",
    ("azure", "responses"): "https://resource.openai.azure.com:443/openai/v1/responses",
    ("azure", "embeddings"): "https://resource.openai.azure.com:443/openai/v1/embeddings",
    ("bedrock", "chat_completions"): "https://bedrock-mantle.us-east-1.api.aws:443/v1/chat/completions",
    ("bedrock", "responses"): "https://bedrock-mantle.us-east-1.api.aws:443/v1/responses",
    ("fireworks", "chat_completions"): "https://api.fireworks.ai:443/inference/v1/chat/completions",
    ("fireworks", "embeddings"): "https://api.fireworks.ai:443/inference/v1/embeddings",
    ("gemini", "chat_completions"): f"{GOOGLE}/v1beta/openai/chat/completions",
    ("gemini", "embeddings"): f"{GOOGLE}/v1beta/openai/embeddings",
    ("groq", "chat_completions"): "https://api.groq.com:443/openai/v1/chat/completions",
    ("mistral", "chat_completions"): "https://api.mistral.ai:443/v1/chat/completions",
    ("mistral", "embeddings"): "https://api.mistral.ai:443/v1/embeddings",
    ("ollama", "chat_completions"): "http://localhost:11434/v1/chat/completions",
    ("ollama", "embeddings"): "http://localhost:11434/v1/embeddings",
    ("together", "chat_completions"): "https://api.together.xyz:443/v1/chat/completions",
    ("together", "embeddings"): "https://api.together.xyz:443/v1/embeddings",
    ("vllm", "chat_completions"): "http://localhost:8000/v1/chat/completions",
    ("vllm", "embeddings"): "http://localhost:8000/v1/embeddings",
    ("xai", "chat_completions"): "https://api.x.ai:443/v1/chat/completions",
    ("xai", "responses"): "https://api.x.ai:443/v1/responses",
    ("simulated", "chat_completions"): "http://simulated.invalid:80/v1/chat/completions",
    ("simulated", "messages"): "http://simulated.invalid:80/v1/messages",
    ("simulated", "count_tokens"): "http://simulated.invalid:80/v1/messages/count_tokens",
    ("simulated", "responses"): "http://simulated.invalid:80/v1/responses",
    ("simulated", "responses_compact"): "http://simulated.invalid:80/v1/responses/compact",
    ("simulated", "responses_input_tokens"): "http://simulated.invalid:80/v1/responses/input_tokens",
    ("simulated", "embeddings"): "http://simulated.invalid:80/v1/embeddings",
}


def where(card: Card, protocol: str) -> str:
    endpoint = Origin.of(card.base_url).endpoint(card.doors[protocol].path)
    return f"{endpoint.scheme}://{endpoint.host}:{endpoint.port}{endpoint.target.decode()}"


def test_the_built_in_cards_lead_to_the_providers_own_addresses() -> None:
    cards = load_cards()
    assert {(name, door): where(card, door) for name, card in cards.items() for door in card.doors} == TARGETS
    assert [card.name for card in cards.values() if card.in_process] == ["simulated"]


def test_the_built_in_cards_name_sections_of_the_price_catalogue() -> None:
    known = {provider.id for provider in data.providers}
    cards = load_cards()
    without = {"huggingface", "simulated", "ollama", "vllm"}
    assert {card.prices for name, card in cards.items() if name not in without} <= known
    assert cards["huggingface"].prices.format(route="groq") in known


def test_no_built_in_card_follows_the_variables_that_lead_callers_to_this_gateway() -> None:
    followed = {card.name: card.base_url_env for card in load_cards().values() if card.base_url_env}
    assert followed == {
        "azure": "AZURE_OPENAI_ENDPOINT",
        "bedrock": "BEDROCK_BASE_URL",
        "ollama": "OLLAMA_BASE_URL",
        "vllm": "VLLM_BASE_URL",
    }


@pytest.mark.parametrize(
    "base_url",
    [
        "https://r.openai.azure.com",
        "https://r.openai.azure.com/",
        "https://r.openai.azure.com/openai",
        "https://r.openai.azure.com/openai/v1/",
    ],
)
def test_what_a_base_url_ends_with_is_not_repeated(base_url: str) -> None:
    card = load_cards({"azure": Override(base_url=base_url)})["azure"]
    assert where(card, "responses") == "https://r.openai.azure.com:443/openai/v1/responses"
    assert not card.base_url_needed


def test_a_local_server_may_be_named_with_or_without_the_version() -> None:
    for base_url in ("http://localhost:11434", "http://localhost:11434/", "http://localhost:11434/v1"):
        card = load_cards({"ollama": Override(base_url=base_url)})["ollama"]
        assert where(card, "chat_completions") == "http://localhost:11434/v1/chat/completions"


def test_only_whole_segments_of_a_base_url_are_repeated() -> None:
    assert Origin.of("https://h/xv1").endpoint("/v1/messages").target == b"/xv1/v1/messages"
    assert Origin.of("https://h/v1").endpoint("/v1beta/x").target == b"/v1/v1beta/x"
    assert Origin.of("https://h/chat").endpoint("/chat").target == b"/chat/chat"


def test_a_built_in_provider_may_have_more_doors_than_its_card_knows() -> None:
    url = "http://localhost:8000/v1"
    override = Override(base_url=url, protocols=("chat_completions", "responses", "messages"))
    card = load_cards({"vllm": override})["vllm"]
    assert set(card.doors) == {"chat_completions", "embeddings", "responses", "messages", "count_tokens"}
    assert where(card, "messages") == "http://localhost:8000/v1/messages"
    assert card.doors["messages"].auth == "x-api-key"
    assert card.default_headers == {"anthropic-version": "2023-06-01"}
    with pytest.raises(CardError, match=r"providers\.groq: protocols: 'images'"):
        load_cards({"groq": Override(protocols=("images",))})


@pytest.mark.parametrize(
    ("base_url", "chat", "messages"),
    [
        ("http://localhost:11434/v1", "/v1/chat/completions", "/v1/messages"),
        ("http://localhost:11434/v1/", "/v1/chat/completions", "/v1/messages"),
        ("http://localhost:8000", "/v1/chat/completions", "/v1/messages"),
        ("https://h.example/a/b", "/a/b/chat/completions", "/a/b/v1/messages"),
        ("https://h.example/v1beta/openai", "/v1beta/openai/chat/completions", "/v1beta/openai/v1/messages"),
    ],
)
def test_a_providers_own_base_url_is_taken_as_the_sdks_take_it(
    base_url: str, chat: str, messages: str
) -> None:
    override = Override(
        base_url=base_url,
        protocols=("chat_completions", "messages", "responses", "embeddings"),
        models=("llama*",),
    )
    card = load_cards({"mine": override})["mine"]
    origin = Origin.of(base_url)
    found = {name: origin.endpoint(door.path).target.decode() for name, door in card.doors.items()}
    assert found == {
        "chat_completions": chat,
        "responses": chat.replace("chat/completions", "responses"),
        "embeddings": chat.replace("chat/completions", "embeddings"),
        "messages": messages,
        "count_tokens": f"{messages}/count_tokens",
    }
    assert (card.auth, card.key_env, card.models) == ("none", (), ("llama*",))


def test_a_providers_own_key_goes_as_each_protocol_wants_it() -> None:
    override = Override(base_url="http://h", api_key_env="MINE", protocols=("chat_completions", "messages"))
    card = load_cards({"mine": override})["mine"]
    assert (card.auth, card.doors["messages"].auth, card.key_env) == ("bearer", "x-api-key", ("MINE",))
    assert card.default_headers == {"anthropic-version": "2023-06-01"}


def test_the_configuration_may_move_or_remove_a_built_in_provider() -> None:
    cards = load_cards(
        {
            "openai": Override(base_url="http://localhost:9/v1", api_key_env="OTHER", prices="azure"),
            "simulated": Override(base_url="http://localhost:9"),
            "anthropic": Override(enabled=False),
        }
    )
    assert where(cards["openai"], "chat_completions") == "http://localhost:9/v1/chat/completions"
    assert (cards["openai"].key_env, cards["openai"].prices) == (("OTHER",), "azure")
    assert cards["openai"].models == load_cards()["openai"].models
    assert not cards["simulated"].in_process
    assert "anthropic" not in cards


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080",
        "ftp://h/v1",
        "file:///etc/passwd",
        "http://",
        "http:///v1",
        "http://user:secret@h/v1",
        "http://@h/v1",
        "https://h/v1?key=secret",
        "https://h/v1#x",
        "https://h:0/",
        "https://h:65536/",
        "https://h:x/",
        "https://h /v1",
        "https://h\r\nx: y/v1",
        "https://h\\@evil/v1",
        "https://bücher.example/v1",
        "https://[::1/v1",
        "https://h/" + "a" * 3000,
    ],
)
def test_an_address_that_could_lead_elsewhere_or_hold_a_secret_is_refused(url: str) -> None:
    with pytest.raises(CardError, match=r"providers\.mine: .*") as caught:
        load_cards({"mine": Override(base_url=url)})
    assert "secret" not in str(caught.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(CardError) as caught:
        load_cards(
            {
                "Mine": Override(base_url="http://h"),
                "a/b": Override(base_url="http://h"),
                "nowhere": Override(),
                "doors": Override(base_url="http://h", protocols=("images",)),
                "none": Override(base_url="http://h", protocols=()),
                "openai": Override(base_url="x"),
            }
        )
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "providers.Mine",
        "providers.a/b",
        "providers.nowhere",
        "providers.doors",
        "providers.none",
        "providers.openai",
    ]


GOOD = """
name = "x"
title = "X"
base_url = "https://x.example"
prices = "x"
[doors.messages]
path = "/v1/messages"
"""


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (('title = "X"', ""), "title"),
        (('title = "X"', "title = 1"), "title"),
        (('title = "X"', 'titel = "X"'), "titel"),
        (('title = "X"', 'title = "X"\nauth = "basic"'), "auth"),
        (('"https://x.example"', '"x.example"'), "base_url"),
        (('"/v1/messages"', '"v1/messages"'), "doors.messages.path"),
        (('"/v1/messages"', '"/v1/messages?beta=true"'), "doors.messages.path"),
        (('title = "X"', 'title = "X"\nforward_headers = ["authorization"]'), "authorization"),
        (('title = "X"', 'title = "X"\nforward_headers = ["X-Y"]'), "X-Y"),
        (('title = "X"', 'title = "X"\nforward_headers = ["baggage"]'), "baggage"),
        (('title = "X"', 'title = "X"\ndefault_headers = {a = "b\\nc"}'), "default_headers.a"),
        (('name = "x"', 'name = "x/y"'), "name"),
        (('title = "X"', "title = "), "line"),
    ],
)
def test_a_mistake_in_a_card_is_named_with_file_and_key(
    tmp_path: Path, change: tuple[str, str], key: str
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(GOOD)
    assert read_card(file).name == "x"
    text = GOOD.replace(*change)
    assert text != GOOD
    file.write_text(text)
    with pytest.raises(CardError) as caught:
        read_card(file)
    assert str(caught.value).startswith("x.toml: ")
    assert key in str(caught.value)


def test_a_card_can_not_be_changed() -> None:
    card = load_cards()["openai"]
    with pytest.raises(AttributeError):
        card.name = "other"  # type: ignore[misc]
    assert msgspec.structs.replace(card, title="T").title == "T"
