"""The official SDKs at doors that their model's provider does not have: answers, tools and streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import anthropic
import openai
import pydantic
import pytest

from deploy.stack import wait_until
from tests.gateway_process import KEYS, Gateway, bills_in_journal

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
PROTOCOLS: Final = ("chat_completions", "messages", "responses")
PIXEL: Final = "R0lGODlhAQABAAAAACw="


class Place(pydantic.BaseModel):
    city: str


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose providers `only-PROTOCOL` speak one protocol each; another one simulates them."""
    with Gateway(tmp_path_factory.mktemp("provider")) as provider:
        providers = {
            f"only-{protocol}": {
                "base_url": provider.url if protocol == "messages" else f"{provider.url}/v1",
                "api_key": KEYS["carol"],
                "protocols": [protocol],
                "prices": "simulated",
            }
            for protocol in PROTOCOLS
        }
        folder = tmp_path_factory.mktemp("translating")
        config = folder / "spanbill.yaml"
        targets = [{"model": "only-responses/sim-err-503"}, {"model": "only-messages/sim-large"}]
        routing = {"aliases": {"either": {"targets": targets, "selector": "in_order", "attempts_max": 2}}}
        config.write_text(json.dumps({"providers": providers, "routing": routing}))
        with Gateway(folder, SPANBILL_CONFIG=str(config)) as running:
            yield running
            assert running.stop() == 0
            assert "unforeseen fault" not in running.log()


@pytest.fixture
def chat(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["alice"], max_retries=0) as client:
        yield client


@pytest.fixture
def messages(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key=KEYS["bob"], max_retries=0) as client:
        yield client


def bill_of(gateway: Gateway, request_id: str | None) -> dict[str, Any]:
    assert request_id is not None
    return bills_in_journal(gateway.journal)[request_id]


@pytest.fixture(params=["messages", "responses"])
def not_chat(request: pytest.FixtureRequest) -> str:
    return f"only-{request.param}"


@pytest.fixture(params=["chat_completions", "responses"])
def not_messages(request: pytest.FixtureRequest) -> str:
    return f"only-{request.param}"


@pytest.fixture(params=["chat_completions", "messages"])
def not_responses(request: pytest.FixtureRequest) -> str:
    return f"only-{request.param}"


# chat completions


def test_a_chat_is_answered_and_billed_with_the_numbers_that_it_reads(
    gateway: Gateway, chat: openai.OpenAI, not_chat: str
) -> None:
    reply = chat.chat.completions.create(
        model=f"{not_chat}/sim-large",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        max_tokens=40,
        temperature=0.5,
    )
    assert "Hello" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    bill = bill_of(gateway, reply._request_id)
    assert (bill["billing.status"], bill["billing.protocol"]) == ("final", "chat_completions")
    assert bill["gen_ai.provider.name"] == not_chat
    assert bill["gen_ai.usage.input_tokens"] == reply.usage.prompt_tokens
    assert bill["gen_ai.usage.output_tokens"] == reply.usage.completion_tokens
    assert bill["gen_ai.response.id"] == reply.id
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize("usage", [False, True])
def test_a_chat_stream_has_usage_only_if_it_asked(
    gateway: Gateway, chat: openai.OpenAI, not_chat: str, usage: bool
) -> None:
    stream = chat.chat.completions.create(
        model=f"{not_chat}/sim-large",
        messages=[{"role": "user", "content": "Hello, 30 words"}],
        stream=True,
        stream_options={"include_usage": usage},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(text.split()) == 30
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}
    bill = bill_of(gateway, stream.response.headers["x-request-id"])
    assert (bill["billing.status"], bill["billing.outcome"]) == ("final", "ok")
    last = chunks[-1].usage
    assert (last is not None) is usage
    if last is not None:
        assert bill["gen_ai.usage.output_tokens"] == last.completion_tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_a_chat_calls_its_tool_and_takes_its_result(
    chat: openai.OpenAI, not_chat: str, streamed: bool
) -> None:
    question: Any = {"role": "user", "content": "Weather in Paris?"}
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    model = f"{not_chat}/sim-large"
    if streamed:
        with chat.chat.completions.stream(model=model, messages=[question], tools=tools) as stream:
            completion: Any = stream.get_final_completion()
    else:
        completion = chat.chat.completions.create(model=model, messages=[question], tools=tools)
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    answered = chat.chat.completions.create(
        model=model,
        messages=[
            question,
            choice.message.model_dump(exclude_none=True, exclude={"parsed"}),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ],
        tools=tools,
    )
    assert answered.choices[0].finish_reason == "stop"
    assert answered.choices[0].message.content


def test_a_chats_schema_is_kept(chat: openai.OpenAI) -> None:
    reply = chat.chat.completions.parse(
        model="only-responses/sim-large",
        messages=[{"role": "user", "content": "Where?"}],
        response_format=Place,
    )
    assert isinstance(reply.choices[0].message.parsed, Place)


def test_a_chat_shows_what_was_thought(chat: openai.OpenAI) -> None:
    reply = chat.chat.completions.create(
        model="only-messages/sim-reasoning",
        messages=[{"role": "user", "content": "Hello"}],
        reasoning_effort="low",
    )
    message = reply.choices[0].message
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"]
    (detail,) = message.model_extra["reasoning_details"]
    assert detail["signature"].startswith("spanbill:messages:")


def test_a_chat_reads_what_was_cached(gateway: Gateway, chat: openai.OpenAI) -> None:
    """A hint to the cache is kept to messages, and its reads and writes are told in the caller's words."""
    part: Any = {"type": "text", "text": "long " * 2000, "cache_control": {"type": "ephemeral"}}
    messages: Any = [{"role": "system", "content": [part]}, {"role": "user", "content": "Hello"}]
    seen = []
    for _ in range(2):
        reply = chat.chat.completions.create(model="only-messages/sim-cache", messages=messages)
        assert reply.usage is not None
        details: Any = reply.usage.prompt_tokens_details
        bill = bill_of(gateway, reply._request_id)
        assert bill["gen_ai.usage.input_tokens"] == reply.usage.prompt_tokens
        assert bill["gen_ai.usage.cache_read.input_tokens"] == details.cached_tokens
        assert bill["gen_ai.usage.cache_write.input_tokens"] == details.cache_write_tokens
        seen.append((details.cached_tokens > 0, details.cache_write_tokens > 0))
    assert seen == [(False, True), (True, False)]


def test_a_message_reads_how_much_was_thought(
    gateway: Gateway, messages: anthropic.Anthropic, not_messages: str
) -> None:
    with messages.messages.stream(
        model=f"{not_messages}/sim-reasoning",
        max_tokens=4000,
        thinking={"type": "enabled", "budget_tokens": 2048},
        messages=[{"role": "user", "content": "Hello"}],
    ) as stream:
        final = stream.get_final_message()
        request_id = stream.response.headers["request-id"]
    bill = bill_of(gateway, request_id)
    assert final.usage.output_tokens_details is not None
    thought = final.usage.output_tokens_details.thinking_tokens
    assert thought > 0
    assert bill["gen_ai.usage.reasoning.output_tokens"] == thought


def test_a_chat_sends_pictures(chat: openai.OpenAI, not_chat: str) -> None:
    parts: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    reply = chat.chat.completions.create(
        model=f"{not_chat}/sim-large", messages=[{"role": "user", "content": parts}]
    )
    assert reply.choices[0].message.content


# messages


def test_a_message_is_answered_and_billed_with_the_numbers_that_it_reads(
    gateway: Gateway, messages: anthropic.Anthropic, not_messages: str
) -> None:
    reply = messages.messages.create(
        model=f"{not_messages}/sim-large",
        max_tokens=40,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": "Hello"}],
        metadata={"user_id": "end-user-7"},
    )
    assert reply.content[0].type == "text"
    assert "Hello" in reply.content[0].text
    assert reply.stop_reason == "end_turn"
    bill = bill_of(gateway, reply._request_id)
    assert (bill["billing.status"], bill["billing.protocol"]) == ("final", "messages")
    cached = (reply.usage.cache_read_input_tokens or 0) + (reply.usage.cache_creation_input_tokens or 0)
    assert bill["gen_ai.usage.input_tokens"] == reply.usage.input_tokens + cached
    assert bill["gen_ai.usage.output_tokens"] == reply.usage.output_tokens
    assert bill["user.id"] == "end-user-7"


def test_a_message_is_cut_by_its_limit(messages: anthropic.Anthropic, not_messages: str) -> None:
    reply = messages.messages.create(
        model=f"{not_messages}/sim-large",
        max_tokens=5,
        messages=[{"role": "user", "content": "Hello, 50 words"}],
    )
    assert reply.stop_reason == "max_tokens"


def test_a_message_stream_ends_with_the_bills_numbers(
    gateway: Gateway, messages: anthropic.Anthropic, not_messages: str
) -> None:
    with messages.messages.stream(
        model=f"{not_messages}/sim-large",
        max_tokens=400,
        messages=[{"role": "user", "content": "Hello, 30 words"}],
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
        request_id = stream.response.headers["request-id"]
    assert len(text.split()) == 30
    assert final.stop_reason == "end_turn"
    bill = bill_of(gateway, request_id)
    assert (bill["billing.status"], bill["billing.outcome"]) == ("final", "ok")
    assert bill["gen_ai.usage.output_tokens"] == final.usage.output_tokens
    cached = (final.usage.cache_read_input_tokens or 0) + (final.usage.cache_creation_input_tokens or 0)
    assert bill["gen_ai.usage.input_tokens"] == final.usage.input_tokens + cached


@pytest.mark.parametrize("streamed", [False, True])
def test_a_message_calls_its_tool_and_takes_its_result(
    messages: anthropic.Anthropic, not_messages: str, streamed: bool
) -> None:
    question: Any = {"role": "user", "content": "Weather in Paris?"}
    asked: dict[str, Any] = {
        "model": f"{not_messages}/sim-large",
        "max_tokens": 400,
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
    }
    if streamed:
        with messages.messages.stream(messages=[question], **asked) as stream:
            reply: Any = stream.get_final_message()
    else:
        reply = messages.messages.create(messages=[question], **asked)
    assert reply.stop_reason == "tool_use"
    (call,) = [block for block in reply.content if block.type == "tool_use"]
    assert call.name == "weather"
    assert set(call.input) == {"city"}
    content: list[Any] = [{"type": "text", "text": "sunny"}]
    if not_messages == "only-responses":  # in a chat it is a message behind the result, to be answered anew
        picture = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        content.append({"type": "image", "source": picture})
    shown: Any = {"type": "tool_result", "tool_use_id": call.id, "content": content}
    answered = messages.messages.create(
        messages=[
            question,
            {"role": "assistant", "content": [block.model_dump() for block in reply.content]},
            {"role": "user", "content": [shown]},
        ],
        **asked,
    )
    assert answered.stop_reason == "end_turn"


# responses


def test_a_response_is_answered_and_billed_with_the_numbers_that_it_reads(
    gateway: Gateway, chat: openai.OpenAI, not_responses: str
) -> None:
    reply = chat.responses.create(
        model=f"{not_responses}/sim-large", instructions="Be brief.", input="Hello", max_output_tokens=40
    )
    assert "Hello" in reply.output_text
    assert reply.status == "completed"
    assert reply.instructions == "Be brief."
    assert reply.usage is not None
    bill = bill_of(gateway, reply._request_id)
    assert (bill["billing.status"], bill["billing.protocol"]) == ("final", "responses")
    assert bill["gen_ai.usage.input_tokens"] == reply.usage.input_tokens
    assert bill["gen_ai.usage.output_tokens"] == reply.usage.output_tokens


def test_a_response_stream_ends_with_the_bills_numbers(
    gateway: Gateway, chat: openai.OpenAI, not_responses: str
) -> None:
    with chat.responses.stream(model=f"{not_responses}/sim-large", input="Hello, 30 words") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
        request_id = stream._response.headers["x-request-id"]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert kinds.count("response.output_text.delta") == 30
    assert len(final.output_text.split()) == 30
    assert final.usage is not None
    bill = bill_of(gateway, request_id)
    assert (bill["billing.status"], bill["billing.outcome"]) == ("final", "ok")
    assert bill["gen_ai.usage.output_tokens"] == final.usage.output_tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_a_response_calls_its_tool_and_takes_its_result(
    chat: openai.OpenAI, not_responses: str, streamed: bool
) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
    model = f"{not_responses}/sim-large"
    question: Any = [{"role": "user", "content": "Weather in Paris?"}]
    if streamed:
        with chat.responses.stream(model=model, input=question, tools=tools) as stream:
            reply: Any = stream.get_final_response()
    else:
        reply = chat.responses.create(model=model, input=question, tools=tools)
    (call,) = [item for item in reply.output if item.type == "function_call"]
    assert call.name == "weather"
    assert set(json.loads(call.arguments)) == {"city"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    told = [item.model_dump(exclude={"parsed_arguments"}) for item in reply.output]
    answered = chat.responses.create(model=model, input=[*question, *told, result], tools=tools)
    assert answered.output_text


def test_a_free_form_tool_is_called_as_one(chat: openai.OpenAI, not_responses: str) -> None:
    """As a coding client offers its patches."""
    tools: Any = [{"type": "custom", "name": "apply_patch", "description": "Edit files."}]
    with chat.responses.stream(model=f"{not_responses}/sim-large", input="Change it", tools=tools) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    (call,) = [item for item in final.output if item.type == "custom_tool_call"]
    assert call.name == "apply_patch"
    assert isinstance(call.input, str)
    assert call.input
    assert "response.custom_tool_call_input.done" in kinds


# what goes wrong


def test_what_cannot_be_carried_over_is_refused_before_a_provider_is_called(
    gateway: Gateway, chat: openai.OpenAI
) -> None:
    before = len(bills_in_journal(gateway.journal))
    with pytest.raises(openai.BadRequestError) as caught:
        chat.chat.completions.create(
            model="only-messages/sim-large", messages=[{"role": "user", "content": "Hello"}], seed=7
        )
    assert (caught.value.code, caught.value.param) == ("not_translatable", "seed")
    assert "messages" in caught.value.message
    assert len(bills_in_journal(gateway.journal)) == before


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("sim-err-429", anthropic.RateLimitError),
        ("sim-err-500", anthropic.InternalServerError),
        ("sim-err-404", anthropic.NotFoundError),
    ],
)
def test_a_providers_errors_are_anthropics_own_to_its_sdk(
    messages: anthropic.Anthropic, not_messages: str, model: str, kind: type[anthropic.APIStatusError]
) -> None:
    with pytest.raises(kind) as caught:
        messages.messages.create(
            model=f"{not_messages}/{model}", max_tokens=9, messages=[{"role": "user", "content": "Hello"}]
        )
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["message"]


@pytest.mark.parametrize(
    ("model", "kind"),
    [("sim-err-429", openai.RateLimitError), ("sim-err-503", openai.InternalServerError)],
)
def test_a_providers_errors_are_openais_own_to_its_sdk(
    chat: openai.OpenAI, not_chat: str, model: str, kind: type[openai.APIStatusError]
) -> None:
    with pytest.raises(kind) as caught:
        chat.chat.completions.create(
            model=f"{not_chat}/{model}", messages=[{"role": "user", "content": "Hello"}]
        )
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]


@pytest.mark.parametrize("model", ["sim-cut", "sim-midstream-error"])
def test_a_broken_stream_is_never_taken_for_a_whole_one(
    gateway: Gateway, messages: anthropic.Anthropic, chat: openai.OpenAI, model: str
) -> None:
    hello: Any = [{"role": "user", "content": "Hello"}]
    with (
        pytest.raises(anthropic.APIError),
        messages.messages.stream(
            model=f"only-chat_completions/{model}", max_tokens=99, messages=hello
        ) as stream,
    ):
        stream.get_final_message()
    with pytest.raises(openai.APIError):
        list(chat.chat.completions.create(model=f"only-messages/{model}", messages=hello, stream=True))
    with pytest.raises(openai.APIError):
        list(chat.responses.create(model=f"only-messages/{model}", input="Hello", stream=True))

    def outcomes() -> list[str]:
        bills = bills_in_journal(gateway.journal).values()
        return [
            bill["billing.outcome"] for bill in bills if bill["gen_ai.request.model"].endswith(f"/{model}")
        ]

    assert wait_until(lambda: len(outcomes()) == 3, 30.0, 0.05)  # an SDK leaves at the error event
    assert "ok" not in outcomes()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_falls_back_from_one_protocol_to_another(
    gateway: Gateway, chat: openai.OpenAI, streamed: bool
) -> None:
    hello: Any = [{"role": "user", "content": "Hello"}]
    if streamed:
        stream = chat.chat.completions.create(model="either", messages=hello, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" for chunk in stream])
        headers = stream.response.headers
    else:
        raw = chat.chat.completions.with_raw_response.create(model="either", messages=hello)
        text = raw.parse().choices[0].message.content or ""
        headers = raw.headers
    assert "Hello" in text
    bill = bill_of(gateway, headers["x-request-id"])
    assert (bill["billing.status"], bill["gen_ai.provider.name"]) == ("final", "only-messages")
    assert "only-responses" in headers["x-spanbill-attempts"]


def test_a_provider_that_streams_the_callers_protocol_passes_byte_for_byte(
    gateway: Gateway, chat: openai.OpenAI
) -> None:
    """A lane that needs no translation has none: the provider's own members come through."""
    reply = chat.chat.completions.create(
        model="only-chat_completions/sim-large", messages=[{"role": "user", "content": "Hello"}], seed=7
    )
    assert reply.system_fingerprint == "fp_simulated"
