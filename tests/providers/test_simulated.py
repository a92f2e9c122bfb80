"""The simulated provider keeps the real ones' forms, counts by its rule, and fails as it is told to."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import openai
import pytest
import uvicorn

from gateway.core.errors import UpstreamError
from gateway.providers.simulated import Script, SimulatedTransport, State, simulate, simulated_app
from gateway.providers.simulated.state import REMEMBERED_MAX, SEEN_MAX
from gateway.providers.upstream import Endpoint, Timeouts

CHAT, MESSAGES, COUNT = "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"
VERSION = [(b"anthropic-version", b"2023-06-01")]
PATIENT = Timeouts()
USER = [{"role": "user", "content": "How long is this?"}]  # 17 bytes: 5 tokens
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 3},
        "unit": {"enum": ["C", "F"]},
        "where": {"$ref": "#/$defs/point"},
        "optional": {"type": "string"},
    },
    "required": ["city", "days", "unit", "where"],
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
}
ARGUMENTS = {"city": "text", "days": 3, "unit": "C", "where": {"x": 1}}
CHAT_TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
MESSAGES_TOOLS = [{"name": "weather", "input_schema": SCHEMA}]


def call(path: str, state: State | None = None, **request: Any) -> Script:
    request = {"messages": USER, **request}
    if path == MESSAGES:
        request = {"max_tokens": 100, **request}
    return simulate(path, json.dumps(request).encode(), VERSION, state or State())


def body(script: Script) -> bytes:
    return b"".join(piece.data for piece in script.pieces)


def reply(script: Script) -> Any:
    assert script.status == 200, body(script)
    assert script.content_length == len(body(script))
    return json.loads(body(script))


def chat_events(script: Script) -> list[Any]:
    lines = body(script).decode().split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line[6:] == "[DONE]" else json.loads(line[6:]) for line in lines]


def message_events(script: Script) -> list[Any]:
    blocks = body(script).decode().split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


# form


def test_a_chat_stream_has_role_content_finish_usage_and_done_in_this_order() -> None:
    events = chat_events(call(CHAT, model="sim-small", stream=True, stream_options={"include_usage": True}))
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chunks[-1]["choices"] == []
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    whole = reply(call(CHAT, model="sim-small"))
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize(
    "options", [{}, {"stream_options": {"include_usage": False}}, {"stream_options": None}]
)
def test_a_chat_stream_reports_no_usage_that_was_not_asked_for(options: dict[str, Any]) -> None:
    assert b'"usage"' not in body(call(CHAT, model="sim-large", stream=True, **options))


def test_a_message_stream_starts_with_a_placeholder_and_ends_with_the_count() -> None:
    events = message_events(call(MESSAGES, model="sim-large", stream=True))
    assert [event["type"] for event in events[:3]] == ["message_start", "content_block_start", "ping"]
    assert [event["type"] for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["usage"]["output_tokens"] == 1
    whole = reply(call(MESSAGES, model="sim-large"))
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"] > 1
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_the_limit_of_tokens_is_kept_and_told(path: str) -> None:
    answer = reply(call(path, model="sim-small", max_tokens=3))
    if path == CHAT:
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 3)
    else:
        assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 3)


def test_a_reply_of_a_wanted_length_can_be_asked_for() -> None:
    messages = [{"role": "user", "content": "Write 120 words, please"}]
    events = chat_events(call(CHAT, model="sim-small", messages=messages, stream=True))
    assert len(events) == 1 + 120 + 1 + 1


# counts


def test_tokens_are_four_bytes_each() -> None:
    usage = reply(call(CHAT, model="sim-small"))["usage"]
    assert usage["prompt_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert reply(call(COUNT, model="sim-small"))["input_tokens"] == 5
    assert reply(call(MESSAGES, model="sim-small"))["usage"]["input_tokens"] == 5
    text = [{"role": "user", "content": [{"type": "text", "text": "€€€€"}]}]  # 12 bytes
    assert reply(call(COUNT, model="sim-small", messages=text))["input_tokens"] == 3


def test_only_sim_cache_and_sim_large_report_cache_fields() -> None:
    assert set(reply(call(CHAT, model="sim-small"))["usage"]) == {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
    }
    assert set(reply(call(MESSAGES, model="sim-small"))["usage"]) == {"input_tokens", "output_tokens"}
    assert reply(call(CHAT, model="sim-large"))["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert reply(call(MESSAGES, model="sim-large"))["usage"]["cache_read_input_tokens"] == 0


def test_sim_cache_writes_a_prefix_first_and_reads_it_afterwards() -> None:
    state = State()
    messages = [{"role": "system", "content": "s" * 400}, *USER]
    first = reply(call(CHAT, state, model="sim-cache", messages=messages))["usage"]
    assert first["prompt_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 100}
    longer = [*messages[:1], {"role": "user", "content": "another"}]
    again = reply(call(CHAT, state, model="sim-cache", messages=longer))["usage"]
    assert again["prompt_tokens_details"] == {"cached_tokens": 100, "cache_write_tokens": 0}
    assert again["prompt_tokens"] == 102


def test_sim_cache_splits_message_writes_by_their_time_to_live() -> None:
    state = State()
    request = {
        "model": "sim-cache",
        "system": [
            {"type": "text", "text": "h" * 400, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
            {"type": "text", "text": "m" * 200, "cache_control": {"type": "ephemeral"}},
        ],
    }
    wrote = reply(call(MESSAGES, state, **request))["usage"]
    assert wrote["cache_creation"] == {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 100}
    assert (wrote["cache_creation_input_tokens"], wrote["cache_read_input_tokens"]) == (150, 0)
    assert wrote["input_tokens"] == 5
    start = message_events(call(MESSAGES, state, stream=True, **request))[0]["message"]["usage"]
    assert (start["cache_creation_input_tokens"], start["cache_read_input_tokens"]) == (0, 150)
    request["system"][1]["text"] = "another"  # type: ignore[index]
    part = reply(call(MESSAGES, state, **request))["usage"]
    assert (part["cache_read_input_tokens"], part["cache_creation_input_tokens"]) == (100, 1)


def test_sim_reasoning_counts_reasoning_inside_the_output() -> None:
    usage = reply(call(CHAT, model="sim-reasoning"))["usage"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    message = reply(call(MESSAGES, model="sim-reasoning"))
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] < message["usage"]["output_tokens"]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("stream", [True, False])
def test_sim_nousage_reports_nothing_even_if_asked(path: str, stream: bool) -> None:
    script = call(path, model="sim-nousage", stream=stream, stream_options={"include_usage": True})
    assert script.status == 200
    assert b"usage" not in body(script).replace(b"sim-nousage", b"")


# tools


def test_the_first_tool_is_called_after_a_user_message_and_text_follows_its_result() -> None:
    asked = reply(call(CHAT, model="sim-small", tools=CHAT_TOOLS))["choices"][0]
    assert asked["finish_reason"] == "tool_calls"
    tool_call = asked["message"]["tool_calls"][0]
    assert json.loads(tool_call["function"]["arguments"]) == ARGUMENTS
    history = [*USER, asked["message"], {"role": "tool", "tool_call_id": tool_call["id"], "content": "22"}]
    told = reply(call(CHAT, model="sim-small", tools=CHAT_TOOLS, messages=history))["choices"][0]
    assert (told["finish_reason"], told["message"].get("tool_calls")) == ("stop", None)
    assert (
        reply(call(CHAT, model="sim-small", tools=CHAT_TOOLS, tool_choice="none"))["choices"][0][
            "finish_reason"
        ]
        == "stop"
    )

    said = reply(call(MESSAGES, model="sim-small", tools=MESSAGES_TOOLS))
    assert said["stop_reason"] == "tool_use"
    assert said["content"][-1]["input"] == ARGUMENTS
    result = {"type": "tool_result", "tool_use_id": said["content"][-1]["id"], "content": "22"}
    history = [
        *USER,
        {"role": "assistant", "content": said["content"]},
        {"role": "user", "content": [result]},
    ]
    assert reply(call(MESSAGES, model="sim-small", tools=MESSAGES_TOOLS, messages=history))[
        "stop_reason"
    ] == ("end_turn")


def test_streamed_arguments_add_up_to_the_whole() -> None:
    events = chat_events(call(CHAT, model="sim-small", tools=CHAT_TOOLS, stream=True))[:-1]
    calls = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", [])]
    assert json.loads("".join(c["function"]["arguments"] for c in calls)) == ARGUMENTS
    messages = message_events(call(MESSAGES, model="sim-small", tools=MESSAGES_TOOLS, stream=True))
    parts = [e["delta"]["partial_json"] for e in messages if e["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == ARGUMENTS


def test_a_schema_that_refers_to_itself_many_times_is_sampled_within_bounds() -> None:
    names = [f"p{n}" for n in range(40)]
    schema = {"type": "object", "required": names, "properties": {name: {"$ref": "#"} for name in names}}
    tools = [{"type": "function", "function": {"name": "deep", "parameters": schema}}]
    assert len(body(call(CHAT, model="sim-small", tools=tools))) < 100_000


# refusals


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"messages": USER}, None),
        ({"model": "sim-small", "messages": None}, "messages"),
        ({"model": "sim-small", "messages": []}, "messages"),
        ({"model": "sim-small", "messages": ["x"]}, "messages"),
        ({"model": "sim-small", "max_tokens": 0}, "max_tokens"),
        ({"model": "sim-small", "max_tokens": "9"}, "max_tokens"),
    ],
)
def test_a_chat_request_of_the_wrong_shape_is_refused_in_openais_envelope(
    request_: dict[str, Any], param: str | None
) -> None:
    script = call(CHAT, **request_)
    assert script.status == 400
    error = json.loads(body(script))["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    for path in (CHAT, MESSAGES, COUNT):
        assert simulate(path, data, VERSION, State()).status == 400


def test_messages_need_a_version_and_a_limit() -> None:
    request = {"model": "sim-small", "messages": USER}
    for headers in ([], VERSION):
        script = simulate(MESSAGES, json.dumps(request).encode(), headers, State())
        assert script.status == 400
        assert json.loads(body(script))["error"]["type"] == "invalid_request_error"
    assert call(MESSAGES, model="sim-small").status == 200


@pytest.mark.parametrize(("path", "key"), [(CHAT, "code"), (MESSAGES, "type")])
def test_an_unknown_model_is_not_found(path: str, key: str) -> None:
    script = call(path, model="sim-none")
    assert script.status == 404
    assert json.loads(body(script))["error"][key] == (
        "model_not_found" if path == CHAT else "not_found_error"
    )


@pytest.mark.parametrize("status", [400, 401, 429, 503, 529, 599])
def test_sim_err_answers_with_its_status(status: int) -> None:
    for path in (CHAT, MESSAGES):
        script = call(path, model=f"sim-err-{status}", stream=True)
        assert script.status == status
        assert ((b"retry-after", b"1") in script.headers) == (status == 429)
        assert "message" in json.loads(body(script))["error"]
    assert call(CHAT, model="sim-err-600").status == 404


def test_sim_flaky_fails_the_first_of_every_two_equal_requests() -> None:
    state = State()
    seen = [call(CHAT, state, model="sim-flaky").status for _ in range(4)]
    assert seen == [503, 200, 503, 200]
    assert call(CHAT, state, model="sim-flaky", user="other").status == 503


# faults


@pytest.mark.parametrize(("path", "end"), [(CHAT, b"[DONE]"), (MESSAGES, b"message_stop")])
def test_broken_streams_never_carry_the_terminal_event(path: str, end: bytes) -> None:
    fine = call(path, model="sim-small", stream=True)
    assert end in body(fine)
    cut = call(path, model="sim-cut", stream=True)
    assert (cut.status, cut.ending) == (200, "cut")
    assert end not in body(cut)
    assert not body(cut).endswith(b"\n\n")
    broken = call(path, model="sim-midstream-error", stream=True)
    assert (broken.status, broken.ending) == (200, "complete")
    assert end not in body(broken)
    assert b"error" in broken.pieces[-1].data
    whole = call(path, model="sim-cut")
    assert whole.ending == "cut"
    assert whole.content_length is not None
    assert len(body(whole)) < whole.content_length


def test_the_same_calls_in_the_same_order_give_the_same_bytes() -> None:
    def run() -> list[Script]:
        state = State()
        models = ("sim-small", "sim-cache", "sim-cache", "sim-flaky", "sim-flaky")
        return [call(CHAT, state, model=model, stream=True) for model in models]

    first = run()
    assert first == run()
    assert len({body(script) for script in first}) == len(first)  # an id of its own for each


def test_memory_is_bounded_and_calls_are_counted() -> None:
    state = State()
    for number in range(REMEMBERED_MAX + 100):
        content = [{"role": "user", "content": str(number)}]
        call(CHAT, state, model="sim-cache", messages=content)
        call(CHAT, state, model="sim-flaky", messages=content)
    assert state.seen == {
        (CHAT, "sim-cache"): REMEMBERED_MAX + 100,
        (CHAT, "sim-flaky"): REMEMBERED_MAX + 100,
    }
    assert len(state._prefixes) == len(state._failed) == REMEMBERED_MAX
    for number in range(SEEN_MAX + 10):
        call(CHAT, state, model=f"sim-{number}")
    assert len(state.seen) == SEEN_MAX + 1


# shells


def endpoint(path: str, port: int = 80) -> Endpoint:
    return Endpoint(scheme="http", host="127.0.0.1", port=port, target=path.encode())


async def send(
    transport: SimulatedTransport, model: str, timeouts: Timeouts = PATIENT, **request: Any
) -> Any:
    data = json.dumps({"model": model, "messages": USER, **request}).encode()
    return await transport.send(b"POST", endpoint(CHAT + "?beta=true"), VERSION, data, timeouts)


async def read_all(reply_: Any) -> bytes:
    data = b""
    while part := await reply_.read():
        data += part
    return data


async def test_the_transport_plays_the_script() -> None:
    transport = SimulatedTransport(pace=0)
    got = await read_all(await send(transport, "sim-slow", stream=True))
    request = json.dumps({"model": "sim-slow", "messages": USER, "stream": True}).encode()
    assert got == body(simulate(CHAT, request, VERSION, State()))
    assert transport.state.seen == {(CHAT, "sim-slow"): 1}


async def test_a_cut_reaches_the_reader_after_the_bytes_that_came_before_it() -> None:
    reply_ = await send(SimulatedTransport(), "sim-cut", stream=True)
    assert (await reply_.read()).startswith(b"data: ")
    with pytest.raises(UpstreamError) as caught:
        await reply_.read()
    assert (caught.value.code, caught.value.sent, caught.value.retryable) == (
        "upstream_incomplete",
        True,
        False,
    )


async def test_delays_are_waited_for_and_bounded_by_the_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def note(delay_s: float) -> None:
        slept.append(delay_s)

    monkeypatch.setattr(asyncio, "sleep", note)
    reads = 0
    reply_ = await send(SimulatedTransport(pace=2), "sim-slow", stream=True)
    while await reply_.read():
        reads += 1
    assert slept == [0.1] * reads
    assert reads > 5
    with pytest.raises(UpstreamError) as caught:
        await send(SimulatedTransport(), "sim-slow", Timeouts(first_byte_s=0.1))
    assert caught.value.code == "upstream_timeout"
    reply_ = await send(SimulatedTransport(), "sim-slow", Timeouts(idle_s=0.01), stream=True)
    with pytest.raises(UpstreamError, match="in time"):
        await reply_.read()
    reply_ = await send(SimulatedTransport(), "sim-slow", Timeouts(total_s=0.12), stream=True)
    await reply_.read()
    await reply_.read()
    with pytest.raises(UpstreamError, match="in time"):
        await reply_.read()


@asynccontextmanager
async def served(state: State) -> AsyncIterator[str]:
    """Serve the ASGI application on a real socket of this loop."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(simulated_app(state, pace=0), log_config=None, lifespan="off")
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await server.shutdown(sockets=[listener])


async def test_both_official_sdks_understand_it_over_a_socket() -> None:
    state = State()
    async with served(state) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="sim-cache",
                messages=[{"role": "user", "content": "hello"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            usage = chunks[-1].usage
            assert usage is not None
            assert usage.prompt_tokens == 2
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(
                    model="sim-err-429", messages=[{"role": "user", "content": "hello"}]
                )
        async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as other:
            async with other.messages.stream(
                model="sim-reasoning",
                max_tokens=99,
                messages=[{"role": "user", "content": "hello"}],
            ) as events:
                message = await events.get_final_message()
            assert [block.type for block in message.content] == ["thinking", "text"]
            assert message.usage.output_tokens > 32
            count = await other.messages.count_tokens(
                model="sim-small", messages=[{"role": "user", "content": "hello"}]
            )
            assert count.input_tokens == 2
            with pytest.raises(anthropic.NotFoundError):
                await other.messages.create(
                    model="sim-none", max_tokens=9, messages=[{"role": "user", "content": "hello"}]
                )
    assert state.seen[CHAT, "sim-cache"] == 1


async def collect(reply_: httpx.Response, into: bytearray) -> None:
    async for part in reply_.aiter_raw():
        into += part


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cut_closes_the_socket_inside_the_body(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with served(State()) as url, httpx.AsyncClient() as client:
        request = {"model": "sim-cut", "messages": USER, "stream": stream}
        async with client.stream("POST", url + CHAT, json=request) as reply_:
            assert reply_.status_code == 200
            got = bytearray()
            with pytest.raises(httpx.RemoteProtocolError):
                await collect(reply_, got)
        assert got
        assert b"[DONE]" not in got
        assert (await client.get(url + CHAT)).status_code == 405
