"""Coding clients against any target: requests as they send them, and what they bring back with the next."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.core.errors import CallerError
from gateway.core.exchange import Reply
from gateway.protocols.base import Dialect, Request
from gateway.translation import TRANSLATORS, Translated

REQUEST = Request(model="m", stream=True)
BUDGETS, ADAPTIVE = Dialect(), Dialect(adaptive_thinking=True)
PICTURE = {"type": "base64", "media_type": "image/png", "data": "aa"}
CLAUDE_CODE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 32_000,
    "stream": True,
    "temperature": 1,
    "system": [
        {"type": "text", "text": "You are a coding agent."},
        {
            "type": "text",
            "text": "Rules.",
            "cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"},
        },
    ],
    "tools": [
        {
            "name": "Read",
            "description": "Reads a file.",
            "input_schema": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"},
            "eager_input_streaming": True,
            "cache_control": {"type": "ephemeral"},
        }
    ],
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "metadata": {"user_id": "user_" + "0" * 64 + "_account__session_0000"},
    "messages": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "Look."}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "It is a picture.", "signature": "c2lnbmVk"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a.png"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "is_error": False,
                    "content": [
                        {"type": "text", "text": "a.png"},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": "aa"},
                        },
                    ],
                },
                {"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ],
}
CODEX: dict[str, Any] = {
    "model": "m",
    "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Permissions."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix it."}]},
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "A patch."}],
            "content": None,
            "encrypted_content": "gAAAAB",
        },
        {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "a.py"},
        {"type": "custom_tool_call", "name": "apply_patch", "input": "*** Begin", "call_id": "call_2"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "Done"},
    ],
    "tools": [
        {
            "type": "function",
            "name": "shell",
            "strict": False,
            "parameters": {"type": "object", "properties": {}},
        },
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Edits files.",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin"},
        },
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "high", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0193",
    "client_metadata": {"x": "y"},
}


def begun(door: str, spoken: str, body: dict[str, Any], dialect: Dialect = BUDGETS) -> Translated:
    return TRANSLATORS[door, spoken].begin(
        json.dumps(body).encode(), REQUEST, model="m", dialect=dialect, at_unix_s=1
    )


def sent(door: str, spoken: str, body: dict[str, Any], dialect: Dialect = BUDGETS) -> dict[str, Any]:
    told = begun(door, spoken, body, dialect)
    value: dict[str, Any] = msgspec.json.decode(told.upstream_body(b"", REQUEST, model="m", dialect=dialect))
    return value


def answered(exchange: Translated, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(body).encode()
    status, told = exchange.relayed(200, data, exchange.read_reply(200, data, BUDGETS), streamed=False)
    assert status == 200
    value: dict[str, Any] = msgspec.json.decode(told)
    return value


def test_a_messages_coding_client_is_served_by_chat_completions() -> None:
    body = sent("messages", "chat_completions", CLAUDE_CODE)
    system, look, called, result, picture = body["messages"]
    assert system == {"role": "system", "content": "You are a coding agent.\n\nRules."}
    assert look == {"role": "user", "content": "<reminder>\n\nLook."}
    assert called["content"] == "I look."
    assert "reasoning_content" not in called
    (call,) = called["tool_calls"]
    assert (call["id"], call["function"]) == ("toolu_1", {"name": "Read", "arguments": '{"path":"a.png"}'})
    assert result == {"role": "tool", "tool_call_id": "toolu_1", "content": "a.png"}
    assert [part["type"] for part in picture["content"]] == ["image_url", "text"]
    assert picture["content"][0]["image_url"] == {"url": "data:image/png;base64,aa"}
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_tokens"] == 32_000
    assert body["reasoning_effort"] == "medium"
    assert "user" not in body
    assert set(body) == {
        *("model", "messages", "max_tokens", "temperature", "tools", "reasoning_effort"),
        *("stream", "stream_options"),
    }


def test_the_card_decides_how_a_chat_is_limited_and_whether_thoughts_go_back() -> None:
    dialect = Dialect(output_limit="max_completion_tokens", reasoning_content=True, stream_usage="always")
    body = sent("messages", "chat_completions", CLAUDE_CODE, dialect)
    assert "stream_options" not in body
    assert body["max_completion_tokens"] == 32_000
    assert "max_tokens" not in body
    assert body["messages"][2]["reasoning_content"] == "It is a picture."


def test_a_messages_coding_client_is_served_by_responses() -> None:
    body = sent("messages", "responses", CLAUDE_CODE)
    assert body["instructions"] == "You are a coding agent.\n\nRules."
    kinds = [item["type"] for item in body["input"]]
    assert kinds == ["message", "message", "function_call", "function_call_output", "message"]
    assert [part["type"] for part in body["input"][3]["output"]] == ["input_text", "input_image"]
    assert body["tools"][0]["strict"] is False
    assert body["reasoning"] == {"effort": "medium", "summary": "auto"}
    assert body["include"] == ["reasoning.encrypted_content"]
    assert body["store"] is False


@pytest.mark.parametrize(("dialect", "thinks"), [(BUDGETS, False), (ADAPTIVE, True)])
def test_a_responses_coding_client_is_served_by_messages(dialect: Dialect, thinks: bool) -> None:
    body = sent("responses", "messages", CODEX, dialect)
    assert [block["text"] for block in body["system"]] == ["You are a coding agent.", "Permissions."]
    kinds = [[block["type"] for block in message["content"]] for message in body["messages"]]
    assert kinds == [["text"], ["tool_use"], ["tool_result"], ["tool_use"], ["tool_result"]]
    assert body["messages"][3]["content"][0]["input"] == {"input": "*** Begin"}
    shell, patch = body["tools"]
    assert shell["input_schema"] == {"type": "object", "properties": {}}
    assert patch["input_schema"]["required"] == ["input"]
    assert patch["description"].endswith("start: begin")
    assert body["max_tokens"] == 32_000
    assert ("thinking" in body) is thinks  # with a budget only where the thoughts of the call came along
    if thinks:
        assert body["thinking"]["type"] == "adaptive"
        assert body["output_config"] == {"effort": "high"}


def test_a_responses_coding_client_is_served_by_chat_completions() -> None:
    body = sent("responses", "chat_completions", CODEX)
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert body["messages"][0]["content"] == "You are a coding agent.\n\nPermissions."
    assert [tool["function"]["name"] for tool in body["tools"]] == ["shell", "apply_patch"]
    assert body["reasoning_effort"] == "high"
    assert body["parallel_tool_calls"] is True


def test_a_free_form_call_comes_back_as_one() -> None:
    call = {"type": "tool_use", "id": "toolu_9", "name": "apply_patch", "input": {"input": "*** Begin"}}
    reply = {"id": "msg_1", "type": "message", "model": "c", "content": [call], "stop_reason": "tool_use"}
    told = answered(begun("responses", "messages", CODEX), {**reply, "usage": {"output_tokens": 1}})
    (item,) = told["output"]
    assert (item["type"], item["call_id"], item["input"]) == ("custom_tool_call", "toolu_9", "*** Begin")
    assert told["instructions"] == CODEX["instructions"]
    assert told["tools"] == CODEX["tools"]


def test_a_messages_providers_seal_comes_back_to_it_through_a_responses_client() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
    redacted = {"type": "redacted_thinking", "data": "ZGF0YQ"}
    call = {"type": "tool_use", "id": "toolu_1", "name": "shell", "input": {}}
    reply = {"id": "msg_1", "content": [thought, redacted, call], "stop_reason": "tool_use"}
    told = answered(begun("responses", "messages", CODEX), reply)
    result = {"type": "function_call_output", "call_id": "toolu_1", "output": "ok"}
    body = sent("responses", "messages", {**CODEX, "input": [*told["output"], result]})
    assert body["messages"][0]["content"] == [thought, redacted, call]
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 24_576}
    elsewhere = sent("responses", "chat_completions", {**CODEX, "input": [*told["output"], result]})
    assert "c2ln" not in json.dumps(elsewhere), "a seal is of no use to another provider"


def test_a_messages_providers_seal_comes_back_to_it_through_a_chat_client() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Go"}], "reasoning_effort": "low"}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
    call = {"type": "tool_use", "id": "toolu_1", "name": "shell", "input": {}}
    reply = {"id": "msg_1", "content": [thought, call], "stop_reason": "tool_use"}
    told = answered(begun("chat_completions", "messages", asked), reply)
    message = told["choices"][0]["message"]
    assert message["reasoning_content"] == "Hm."
    result = {"role": "tool", "tool_call_id": "toolu_1", "content": "ok"}
    again = {**asked, "messages": [*asked["messages"], message, result]}
    body = sent("chat_completions", "messages", again)
    assert body["messages"][1]["content"] == [thought, call]
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 2048}


def test_a_responses_providers_seal_comes_back_to_it_through_a_messages_client() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
    silent = {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "gAAB"}
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "Read", "arguments": "{}"}
    output = [{**thought, "encrypted_content": "gAAA"}, silent, call]
    reply = {"id": "resp_1", "status": "completed", "output": output}
    told = answered(begun("messages", "responses", CLAUDE_CODE), reply)
    assert [block["type"] for block in told["content"]] == ["thinking", "redacted_thinking", "tool_use"]
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": "ok"}
    messages = [{"role": "assistant", "content": told["content"]}, {"role": "user", "content": [result]}]
    body = sent("messages", "responses", {**CLAUDE_CODE, "messages": messages})
    sealed = [item["encrypted_content"] for item in body["input"] if item["type"] == "reasoning"]
    assert sealed == ["gAAA", "gAAB"]
    native = TRANSLATORS["messages", "chat_completions"]
    assert b"gAAA" not in native.begin(
        json.dumps({**CLAUDE_CODE, "messages": messages}).encode(),
        REQUEST,
        model="m",
        dialect=BUDGETS,
        at_unix_s=1,
    ).upstream_body(b"", REQUEST, model="m", dialect=BUDGETS)


FILED = {"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("chat_completions", "messages", {"n": 2}, "n"),
    ("chat_completions", "messages", {"logprobs": True}, "logprobs"),
    ("chat_completions", "messages", {"temperature": 1.5}, "temperature"),
    ("chat_completions", "messages", {"response_format": {"type": "json_object"}}, "response_format"),
    ("chat_completions", "messages", {"service_tier": "flex"}, "service_tier"),
    ("chat_completions", "messages", {"max_tokens": 500, "reasoning_effort": "low"}, "max_tokens"),
    ("chat_completions", "responses", {"stop": ["x"]}, "stop"),
    ("chat_completions", "responses", {"seed": 1}, "seed"),
    ("messages", "chat_completions", {"top_k": 3}, "top_k"),
    ("messages", "chat_completions", {"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
    ("messages", "chat_completions", {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ("messages", "responses", {"stop_sequences": ["x"]}, "stop"),
    ("responses", "messages", {"previous_response_id": "resp_1"}, "previous_response_id"),
    ("responses", "messages", {"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ("responses", "messages", {"input": [FILED]}, "input[0].content[0].file_id"),
    ("responses", "chat_completions", {"truncation": "auto"}, "truncation"),
    ("responses", "chat_completions", {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
]


@pytest.mark.parametrize(("door", "spoken", "members", "param"), REFUSED)
def test_what_the_other_protocol_cannot_say_is_refused_by_name(
    door: str, spoken: str, members: dict[str, Any], param: str
) -> None:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
    if door == "responses":
        said = {"input": "Hello"}
    with pytest.raises(CallerError) as caught:
        sent(door, spoken, {"model": "m", **said, **members})
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "not_translatable", param)
    assert spoken in caught.value.message


@pytest.mark.parametrize(
    "members",
    [
        *({"n": 1}, {"logprobs": False}, {"presence_penalty": 0}, {"seed": None}, {"tools": []}),
        *({"metadata": {"a": "b"}}, {"store": True}, {"modalities": ["text"]}, {"logit_bias": {}}),
        *({"response_format": {"type": "text"}}, {"prompt_cache_key": "k"}, {"service_tier": "auto"}),
    ],
)
def test_what_says_nothing_or_harms_nobody_passes(members: dict[str, Any]) -> None:
    hello = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    plain = sent("chat_completions", "messages", hello)
    with_members = sent("chat_completions", "messages", {**hello, **members})
    with_members.pop("service_tier", None)
    assert with_members == plain


def test_an_error_keeps_its_status_and_its_words() -> None:
    exchange = begun("messages", "chat_completions", CLAUDE_CODE)
    error = {"message": "Too long.", "type": "invalid_request_error", "code": "context_length_exceeded"}
    status, told = exchange.relayed(400, json.dumps({"error": error}).encode(), Reply(), streamed=False)
    assert status == 400
    assert msgspec.json.decode(told) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "Too long."},
    }
    exchange = begun("responses", "messages", CODEX)
    error = {"type": "overloaded_error", "message": "Overloaded"}
    status, told = exchange.relayed(
        529, json.dumps({"type": "error", "error": error}).encode(), Reply(), streamed=False
    )
    assert status == 529
    assert msgspec.json.decode(told)["error"]["message"] == "Overloaded"
    assert msgspec.json.decode(told)["error"]["code"] == "overloaded_error"


def test_a_stream_that_nobody_asked_for_is_told_as_a_whole() -> None:
    exchange = begun("messages", "chat_completions", CLAUDE_CODE)
    chunks = [
        {"id": "c", "model": "x", "choices": [{"index": 0, "delta": {"content": "Hel"}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"content": "lo"}, "finish_reason": "length"}]},
    ]
    data = (
        b"".join([b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]) + b"data: [DONE]\n\n"
    )
    status, told = exchange.relayed(200, data, Reply(), streamed=True)
    value = msgspec.json.decode(told)
    assert status == 200
    assert (value["content"], value["stop_reason"]) == ([{"type": "text", "text": "Hello"}], "max_tokens")
