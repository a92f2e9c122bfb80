"""A provider gets its own key and, of the caller's headers, only those on the card's list."""

from __future__ import annotations

import pickle

import msgspec
import pytest

from gateway.providers.cards import NEVER_FORWARDED, CardError, DoorCard, Override, load_cards
from gateway.providers.places import Provider, Secret, resolve

ENVIRON = {
    "OPENAI_API_KEY": "sk-open",
    "ANTHROPIC_API_KEY": "sk-ant",
    "DEEPSEEK_API_KEY": "sk-deep",
    "HF_TOKEN": "hf_x",
    "OPENROUTER_API_KEY": "sk-or",
    "AZURE_OPENAI_API_KEY": "sk-az",
    "AZURE_OPENAI_ENDPOINT": "https://ours.openai.azure.com/",
    "AWS_BEARER_TOKEN_BEDROCK": "sk-aws",
    "BEDROCK_BASE_URL": "https://bedrock-mantle.eu-central-1.api.aws/v1",
    "FIREWORKS_API_KEY": "sk-fw",
    "GEMINI_API_KEY": "sk-gem",
    "GROQ_API_KEY": "sk-gq",
    "MISTRAL_API_KEY": "sk-mis",
    "OLLAMA_BASE_URL": "http://localhost:11434/v1",
    "TOGETHER_API_KEY": "sk-tog",
    "VLLM_API_KEY": "sk-vllm",
    "VLLM_BASE_URL": "http://localhost:8000/v1",
    "XAI_API_KEY": "sk-xai",
}
TRACEPARENT = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"
CREDENTIALS = {
    ("openai", "chat_completions"): (b"authorization", b"Bearer sk-open"),
    **{
        ("openai", door): (b"authorization", b"Bearer sk-open")
        for door in ("responses", "responses_compact", "responses_input_tokens", "embeddings")
    },
    ("deepseek", "responses"): (b"authorization", b"Bearer sk-deep"),
    ("openrouter", "responses"): (b"authorization", b"Bearer sk-or"),
    ("openrouter", "embeddings"): (b"authorization", b"Bearer sk-or"),
    ("anthropic", "messages"): (b"x-api-key", b"sk-ant"),
    ("anthropic", "count_tokens"): (b"x-api-key", b"sk-ant"),
    ("anthropic", "chat_completions"): (b"authorization", b"Bearer sk-ant"),
    ("deepseek", "chat_completions"): (b"authorization", b"Bearer sk-deep"),
    ("deepseek", "messages"): (b"x-api-key", b"sk-deep"),
    ("huggingface", "chat_completions"): (b"authorization", b"Bearer hf_x"),
    ("openrouter", "chat_completions"): (b"authorization", b"Bearer sk-or"),
    ("openrouter", "messages"): (b"authorization", b"Bearer sk-or"),
    **{("azure", door): (b"api-key", b"sk-az") for door in ("chat_completions", "responses", "embeddings")},
    **{
        (name, door): (b"authorization", b"Bearer " + key)
        for name, key, doors in (
            ("bedrock", b"sk-aws", ("chat_completions", "responses")),
            ("fireworks", b"sk-fw", ("chat_completions", "embeddings")),
            ("gemini", b"sk-gem", ("chat_completions", "embeddings")),
            ("groq", b"sk-gq", ("chat_completions",)),
            ("mistral", b"sk-mis", ("chat_completions", "embeddings")),
            ("together", b"sk-tog", ("chat_completions", "embeddings")),
            ("vllm", b"sk-vllm", ("chat_completions", "embeddings")),
            ("xai", b"sk-xai", ("chat_completions", "responses")),
        )
        for door in doors
    },
}


def providers(environ: dict[str, str] = ENVIRON) -> dict[str, Provider]:
    return {name: resolve(card, environ) for name, card in load_cards().items()}


def test_each_door_carries_the_providers_key_in_its_own_way() -> None:
    for provider in providers().values():
        for protocol, door in provider.doors.items():
            headers = door.headers([], TRACEPARENT)
            found = [h for h in headers if h[0] in (b"authorization", b"x-api-key", b"api-key")]
            wanted = CREDENTIALS.get((provider.name, protocol))
            assert found == ([] if wanted is None else [wanted])
            assert dict(headers)[b"traceparent"] == TRACEPARENT
            assert dict(headers)[b"content-type"] == b"application/json"
            assert dict(headers)[b"accept-encoding"] == b"identity"
            assert len(headers) == len(dict(headers))


def test_nothing_of_the_callers_goes_out_that_is_not_listed() -> None:
    secret = [(name.encode(), b"of-the-caller") for name in sorted(NEVER_FORWARDED)]
    unlisted = [(b"x-forwarded-for", b"of-the-caller"), (b"openai-organization", b"of-the-caller")]
    for provider in providers().values():
        for door in provider.doors.values():
            headers = door.headers([*secret, *unlisted], TRACEPARENT)
            assert b"of-the-caller" not in [value for _, value in headers]


def test_the_callers_version_replaces_the_cards_default() -> None:
    door = providers()["anthropic"].doors["messages"]
    assert dict(door.headers([], TRACEPARENT))[b"anthropic-version"] == b"2023-06-01"
    sent = [(b"anthropic-version", b"2024-10-22"), (b"anthropic-beta", b"a"), (b"anthropic-beta", b"b")]
    headers = door.headers([*sent, (b"user-agent", b"theirs")], TRACEPARENT)
    assert [h for h in headers if h[0].startswith(b"anthropic-")] == sent
    assert dict(headers)[b"user-agent"] == b"theirs"


def test_the_operators_account_is_sent_and_not_the_callers() -> None:
    openai = resolve(load_cards()["openai"], {**ENVIRON, "OPENAI_ORG_ID": "org-ours"})
    headers = openai.doors["chat_completions"].headers([(b"openai-organization", b"org-theirs")], TRACEPARENT)
    assert [v for n, v in headers if n == b"openai-organization"] == [b"org-ours"]


def test_a_header_that_the_operator_sets_is_not_forwarded_even_if_listed() -> None:
    card = msgspec.structs.replace(load_cards()["openai"], forward_headers=("openai-organization",))
    theirs = [(b"openai-organization", b"org-theirs")]
    for environ, sent in ((ENVIRON, b"org-theirs"), ({**ENVIRON, "OPENAI_ORG_ID": "org-ours"}, b"org-ours")):
        headers = resolve(card, environ).doors["chat_completions"].headers(theirs, TRACEPARENT)
        assert [v for n, v in headers if n == b"openai-organization"] == [sent]


def test_a_provider_is_ready_when_it_has_a_key_or_needs_none() -> None:
    assert {p.name for p in providers({}).values() if p.ready} == {"simulated"}
    assert {p.name for p in providers({"OPENAI_API_KEY": "  "}).values() if p.ready} == {"simulated"}
    assert all(p.ready for p in providers().values())
    assert resolve(load_cards()["openai"], {}, Secret("k")).ready
    mine = load_cards({"mine": Override(base_url="http://h", api_key_env="MINE")})["mine"]
    assert not resolve(mine, {}).ready
    assert resolve(mine, {"MINE": "k"}).ready


@pytest.mark.parametrize(
    ("name", "environ", "wants"),
    [
        ("azure", {}, ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT")),
        ("azure", {"AZURE_OPENAI_API_KEY": "k"}, ("AZURE_OPENAI_ENDPOINT",)),
        ("azure", {"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com"}, ("AZURE_OPENAI_API_KEY",)),
        ("ollama", {}, ("OLLAMA_BASE_URL",)),
        ("ollama", {"OLLAMA_API_KEY": "k", "OLLAMA_BASE_URL": "  "}, ("OLLAMA_BASE_URL",)),
        ("ollama", {"OLLAMA_BASE_URL": "http://localhost:11434/v1"}, ()),
        ("vllm", {}, ("VLLM_BASE_URL",)),
        ("bedrock", {}, ("AWS_BEARER_TOKEN_BEDROCK", "BEDROCK_BASE_URL")),
        ("groq", {}, ("GROQ_API_KEY",)),
    ],
)
def test_a_provider_says_which_variables_it_still_wants(
    name: str, environ: dict[str, str], wants: tuple[str, ...]
) -> None:
    provider = resolve(load_cards()[name], environ)
    assert (provider.wants, provider.ready) == (wants, not wants)


def test_a_server_on_this_machine_is_called_only_where_the_operator_says_that_it_is_there() -> None:
    local = [p for p in providers({}).values() if p.origin.host == "localhost"]
    assert {p.name for p in local} == {"ollama", "vllm"}
    assert not any(p.ready for p in local)
    told = load_cards({"ollama": Override(base_url="http://localhost:11434/v1")})["ollama"]
    assert resolve(told, {"OLLAMA_BASE_URL": "http://elsewhere"}).origin.host == "localhost"
    assert resolve(told, {}).ready


def test_the_first_variable_that_holds_a_key_wins_and_a_configured_key_wins_over_all() -> None:
    card = load_cards()["huggingface"]
    environ = {"HUGGINGFACE_API_KEY": "second", "HUGGING_FACE_HUB_TOKEN": "third"}

    def key(provider: Provider) -> bytes:
        return dict(provider.doors["chat_completions"].headers([], TRACEPARENT))[b"authorization"]

    assert key(resolve(card, environ)) == b"Bearer second"
    assert key(resolve(card, environ, Secret("given\n"))) == b"Bearer given"


@pytest.mark.parametrize("value", ["a\nb", "a\r\nx-evil: 1", "ключ", "a\x00b", "x" * 10_000])
def test_a_key_that_could_break_a_header_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(CardError, match="OPENAI_API_KEY") as caught:
        resolve(load_cards()["openai"], {"OPENAI_API_KEY": value})
    assert value not in str(caught.value)


def test_no_repr_shows_a_key() -> None:
    provider = providers()["openai"]
    door = provider.doors["chat_completions"]
    for shown in (provider, door, Secret("sk-open"), [Secret("sk-open")], provider.doors):
        assert "sk-open" not in repr(shown)
        assert "sk-open" not in str(shown)
    with pytest.raises(TypeError):
        pickle.dumps(Secret("sk-open"))


def test_a_routers_prices_follow_the_route_in_the_models_name() -> None:
    provider = providers()["huggingface"]
    assert provider.prices_of("moonshotai/Kimi-K2-Instruct:groq") == "huggingface_groq"
    assert provider.prices_of("meta-llama/Llama-3.1-8B-Instruct") == "huggingface"
    assert provider.prices_of("m:") == "huggingface"
    assert providers()["openai"].prices_of("ft:gpt-4o:acme") == "openai"


def test_a_base_url_variable_is_followed_where_a_card_names_one() -> None:
    card = load_cards({"mine": Override(base_url="http://h")})["mine"]
    card = msgspec.structs.replace(card, base_url_env="MINE_URL")
    assert resolve(card, {}).origin.host == "h"
    assert resolve(card, {"MINE_URL": "https://other:1/v1"}).doors["chat_completions"].endpoint.port == 1
    with pytest.raises(CardError, match="MINE_URL"):
        resolve(card, {"MINE_URL": "https://u:p@other"})


def test_a_stream_is_asked_for_its_usage_except_where_it_comes_anyway() -> None:
    mine = load_cards({"mine": Override(base_url="http://h/v1", protocols=("chat_completions", "messages"))})
    resolved = [resolve(card, ENVIRON) for card in mine.values()]
    chats = {provider.name: provider.doors["chat_completions"] for provider in resolved}
    unasked = {name for name, door in chats.items() if door.stream_usage == "always"}
    assert unasked == {"mistral", "fireworks"}  # Mistral refuses to be asked
    assert {name for name, door in chats.items() if door.hidden_output} == {"gemini"}
    assert all(door.reasoning_in_output for provider in resolved for door in provider.doors.values())


def test_how_a_provider_counts_is_a_fact_of_its_card_or_of_one_door() -> None:
    mine = load_cards(
        {"mine": Override(base_url="http://h/v1", reasoning_in_output=False, hidden_output=True)}
    )
    door = resolve(mine["mine"], {}).doors["chat_completions"]
    assert (door.reasoning_in_output, door.hidden_output) == (False, True)
    own = msgspec.structs.replace(
        mine["mine"], doors={"chat_completions": DoorCard(path="/c", hidden_output=False)}
    )
    assert not resolve(own, {}).doors["chat_completions"].hidden_output
