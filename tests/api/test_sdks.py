"""The official SDKs, unchanged but for base URL and key, against a real gateway."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from gateway.metering.estimate import FORM_TOKENS_MAX, METHOD
from tests.gateway_process import KEYS, Gateway, bills_in_journal, journal_lines

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "name": "weather",
    "description": "The weather somewhere.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("sdk")) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def chat(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["alice"], max_retries=0) as client:
        yield client


@pytest.fixture
def messages(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key=KEYS["bob"], max_retries=0) as client:
        yield client


def bill_of(gateway: Gateway, request_id: str | None) -> dict[str, object]:
    assert request_id is not None
    return bills_in_journal(gateway.journal)[request_id]


def test_openai_chat_is_answered_and_billed_to_the_owner(gateway: Gateway, chat: openai.OpenAI) -> None:
    reply = chat.chat.completions.create(model="sim-small", messages=HELLO, user="end-user-7")
    assert "Hello" in (reply.choices[0].message.content or "")
    assert reply.usage is not None
    bill = bill_of(gateway, reply._request_id)
    assert bill["billing.user.id"] == "alice"
    assert bill["user.id"] == "end-user-7"
    assert bill["gen_ai.usage.input_tokens"] == reply.usage.prompt_tokens
    assert bill["gen_ai.usage.output_tokens"] == reply.usage.completion_tokens
    assert bill["billing.status"] == "final"


def test_every_bill_has_an_intent_before_it(gateway: Gateway, chat: openai.OpenAI) -> None:
    for model in ("sim-small", "sim-err-500"):
        with contextlib.suppress(openai.InternalServerError):
            chat.chat.completions.create(model=model, messages=HELLO)
    told: dict[str, list[str]] = {}
    for line in journal_lines(gateway.journal):
        if line["j"]["k"] != "H":
            told.setdefault(line["j"]["id"], []).append(line["j"]["k"])
    assert told
    assert all(kinds == ["I", "S"] for kinds in told.values())


def test_openai_stream_without_usage_gets_none_and_is_billed_all_the_same(
    gateway: Gateway, chat: openai.OpenAI
) -> None:
    with chat.chat.completions.with_streaming_response.create(
        model="sim-small", messages=HELLO, stream=True
    ) as raw:
        request_id = raw.headers["x-request-id"]
        body = b"".join(raw.iter_bytes())
    assert body.endswith(b"data: [DONE]\n\n")
    assert b'"usage":{' not in body
    assert bill_of(gateway, request_id)["gen_ai.usage.output_tokens"] > 0  # type: ignore[operator]


def test_openai_stream_with_usage_gets_the_bills_numbers(gateway: Gateway, chat: openai.OpenAI) -> None:
    stream = chat.chat.completions.create(
        model="sim-small", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    usage = chunks[-1].usage
    assert usage is not None
    bill = bill_of(gateway, stream.response.headers["x-request-id"])
    assert bill["gen_ai.usage.output_tokens"] == usage.completion_tokens
    assert bill["gen_ai.response.time_to_first_chunk"] > 0  # type: ignore[operator]


def test_openai_tools(chat: openai.OpenAI) -> None:
    reply = chat.chat.completions.create(
        model="sim-small", messages=HELLO, tools=[{"type": "function", "function": TOOL}]
    )
    calls = reply.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "weather"


def test_openai_models(chat: openai.OpenAI) -> None:
    assert "sim-small" in {model.id for model in chat.models.list()}
    assert chat.models.retrieve("sim-small").id == "sim-small"


@pytest.mark.parametrize(
    ("model", "status", "kind"),
    [
        ("no-such-model", 404, openai.NotFoundError),
        ("sim-err-429", 429, openai.RateLimitError),
        ("sim-err-500", 500, openai.InternalServerError),
        ("sim-err-503", 503, openai.InternalServerError),
    ],
)
def test_openai_errors_are_its_own(
    chat: openai.OpenAI, model: str, status: int, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        chat.chat.completions.create(model=model, messages=HELLO)
    assert isinstance(caught.value, openai.APIStatusError)
    assert caught.value.status_code == status
    assert caught.value.request_id


def test_openai_wrong_key_is_its_authentication_error(gateway: Gateway) -> None:
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(model="sim-small", messages=HELLO)
    assert "sk-wrong" not in str(caught.value)


def test_openai_error_inside_a_stream_is_raised(chat: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError):
        list(chat.chat.completions.create(model="sim-midstream-error", messages=HELLO, stream=True))


def test_a_stream_that_is_cut_off_is_never_taken_for_a_whole_one(
    gateway: Gateway, chat: openai.OpenAI
) -> None:
    stream = chat.chat.completions.create(model="sim-cut", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError):
        list(stream)
    bill = bill_of(gateway, stream.response.headers["x-request-id"])
    assert bill["billing.outcome"] == "upstream_incomplete"
    assert bill["billing.status"] == "estimated"
    assert bill["gen_ai.usage.output_tokens"] > 0
    assert bill["billing.usage.source"] == "estimated"


def test_anthropic_message_with_cache_counts(gateway: Gateway, messages: anthropic.Anthropic) -> None:
    for _ in range(2):
        reply = messages.messages.create(
            model="sim-cache",
            max_tokens=64,
            system=[{"type": "text", "text": "long " * 2000, "cache_control": {"type": "ephemeral"}}],
            messages=HELLO,
        )
        bill = bill_of(gateway, reply._request_id)
        usage = reply.usage
        assert bill["gen_ai.usage.cache_read.input_tokens"] == usage.cache_read_input_tokens
        assert bill["gen_ai.usage.cache_write.input_tokens"] == usage.cache_creation_input_tokens
        assert bill["billing.cache_hit"] is bool(usage.cache_read_input_tokens)
        assert bill["gen_ai.usage.input_tokens"] == (
            usage.input_tokens
            + (usage.cache_read_input_tokens or 0)
            + (usage.cache_creation_input_tokens or 0)
        )
    assert bill["billing.cache_hit"] is True


def test_cache_attributes_are_absent_where_nothing_was_reported(
    gateway: Gateway, chat: openai.OpenAI
) -> None:
    reply = chat.chat.completions.create(model="sim-nousage", messages=HELLO)
    bill = bill_of(gateway, reply._request_id)
    assert (bill["billing.status"], bill["billing.usage.source"]) == ("estimated", "estimated")
    assert not [name for name in bill if "cache" in name or "reasoning" in name]
    said = reply.choices[0].message.content
    assert said
    if bill["billing.usage.estimate.method"] == METHOD:  # the tokenizer was not there yet
        assert bill["gen_ai.usage.output_tokens"] == -(-len(said.encode()) // 4)
    else:
        assert len(said) // 8 < bill["gen_ai.usage.output_tokens"] < len(said)
    assert bill["billing.usage.estimate.output_tokens_max"] == len(said.encode()) + FORM_TOKENS_MAX


def test_anthropic_stream(gateway: Gateway, messages: anthropic.Anthropic) -> None:
    with messages.messages.stream(model="sim-small", max_tokens=64, messages=HELLO) as stream:
        final = stream.get_final_message()
        request_id = stream.response.headers["request-id"]
    assert bill_of(gateway, request_id)["gen_ai.usage.output_tokens"] == final.usage.output_tokens


def test_anthropic_tools(messages: anthropic.Anthropic) -> None:
    tool = {"name": "weather", "description": "w", "input_schema": TOOL["parameters"]}
    reply = messages.messages.create(
        model="sim-small",
        max_tokens=64,
        messages=HELLO,
        tools=[tool],  # type: ignore[list-item]
    )
    assert reply.stop_reason == "tool_use"


def test_anthropic_count_tokens_is_free_and_billed_as_such(
    gateway: Gateway, messages: anthropic.Anthropic
) -> None:
    raw = messages.messages.with_raw_response.count_tokens(model="sim-small", messages=HELLO)
    assert raw.parse().input_tokens > 0
    bill = bill_of(gateway, raw.headers["request-id"])
    assert bill["gen_ai.operation.name"] == "count_tokens"
    assert (bill["billing.status"], bill["billing.cost.usd"]) == ("final", "0")
    assert "gen_ai.usage.input_tokens" not in bill


def test_anthropic_models(messages: anthropic.Anthropic) -> None:
    assert "sim-small" in {model.id for model in messages.models.list()}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("no-such-model", anthropic.NotFoundError),
        ("sim-err-429", anthropic.RateLimitError),
        ("sim-err-500", anthropic.InternalServerError),
        ("sim-err-503", anthropic.InternalServerError),
    ],
)
def test_anthropic_errors_are_its_own(
    messages: anthropic.Anthropic, model: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        messages.messages.create(model=model, max_tokens=64, messages=HELLO)


def test_anthropic_wrong_key_is_its_authentication_error(gateway: Gateway) -> None:
    with (
        anthropic.Anthropic(base_url=gateway.url, api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        client.messages.create(model="sim-small", max_tokens=64, messages=HELLO)


def test_no_secret_and_no_content_stand_in_journal_or_log(tmp_path: Path) -> None:
    canary, key = "canary-prompt-93817", "sk-provider-canary-5512"
    with Gateway(tmp_path, OPENAI_API_KEY=key) as gateway:
        errors: list[str] = []
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["alice"], max_retries=0) as client:
            for model in ("sim-small", "sim-err-500", "sim-cut", "no-such-model"):
                try:
                    client.chat.completions.create(
                        model=model, messages=[{"role": "user", "content": canary}]
                    )
                except openai.APIError as error:
                    errors.append(str(error))
        gateway.stop()
        assert len(errors) == 3
        written = (
            gateway.log()
            + "".join(errors)
            + "".join(p.read_text() for p in gateway.journal.glob("2*/*.jsonl"))
        )
    assert "billing.record.id" in written
    for secret in (canary, key, *KEYS.values()):
        assert secret not in written
