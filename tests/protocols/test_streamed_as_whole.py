"""T-B2: the same numbers are the same usage, told whole or told in pieces, wherever the pieces are cut."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.usage import Usage
from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Request

CHAT, MESSAGES = PROTOCOLS["/v1/chat/completions"], PROTOCOLS["/v1/messages"]
ASKED = Request(model="m", stream=True, usage_requested=True)
COUNT = st.none() | st.integers(0, 10**7)
DIALECTS = st.builds(Dialect, reasoning_in_output=st.booleans(), hidden_output=st.booleans())
CHAT_USAGE = st.fixed_dictionaries(
    {"prompt_tokens": COUNT, "completion_tokens": COUNT},
    optional={
        "total_tokens": COUNT,
        "prompt_tokens_details": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("cached_tokens", "cache_write_tokens", "audio_tokens"), COUNT)
        ),
        "completion_tokens_details": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("reasoning_tokens", "image_tokens"), COUNT)
        ),
        "num_search_queries": COUNT,
        "cache_hit": COUNT | st.booleans(),
        "cost": st.integers(0, 3) | st.decimals(0, 9, places=6).map(float),
    },
)
PASS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["message", "compaction", "advisor_message"]),
        "output_tokens": st.integers(0, 9),
    },
    optional={"input_tokens": COUNT, "model": st.sampled_from(["claude-a", "claude-b"])},
)
MESSAGES_USAGE = st.fixed_dictionaries(
    {"input_tokens": COUNT, "output_tokens": st.integers(0, 10**7)},
    optional={
        "cache_read_input_tokens": COUNT,
        "cache_creation_input_tokens": COUNT,
        "cache_creation": st.fixed_dictionaries(
            {}, optional={f"ephemeral_{ttl}_input_tokens": COUNT for ttl in ("5m", "1h")}
        ),
        "server_tool_use": st.fixed_dictionaries({"web_search_requests": COUNT}),
        "output_tokens_details": st.fixed_dictionaries({"thinking_tokens": COUNT}),
        "iterations": st.lists(PASS, max_size=4),
        "service_tier": st.sampled_from(["standard", "batch"]),
        "speed": st.sampled_from(["fast", "standard"]),
    },
)


def chunk(**members: object) -> bytes:
    return b"data: " + json.dumps({"id": "c", "model": "m", **members}).encode() + b"\n\n"


def event(kind: str, **members: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def streamed(door: Any, dialect: Dialect, data: bytes, chance: random.Random) -> Usage | None:
    meter = door.stream_meter(ASKED, dialect)
    for a, b in pairwise([0, *sorted(chance.choices(range(len(data)), k=8)), len(data)]):
        meter.feed(data[a:b])
    usage: Usage | None = meter.finish().reply.usage
    return usage


@given(CHAT_USAGE, DIALECTS, st.sampled_from(["last", "with choices", "x_groq", "in a choice"]), st.randoms())
def test_chat_usage_is_the_same_whole_and_streamed(
    usage: dict[str, Any], dialect: Dialect, place: str, chance: random.Random
) -> None:
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage}
    whole = CHAT.read_reply(200, json.dumps(body).encode(), dialect).usage
    last = {
        "last": {"choices": [], "usage": usage},
        "with choices": {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage},
        "x_groq": {"choices": [], "x_groq": {"usage": usage}},
        "in a choice": {"choices": [{"delta": {}, "usage": usage}]},
    }[place]
    data = chunk(choices=[{"delta": {"content": "hi"}}], usage=None) + chunk(**last) + b"data: [DONE]\n\n"
    assert streamed(CHAT, dialect, data, chance) == whole


@given(MESSAGES_USAGE, st.integers(0, 9), st.randoms())
def test_messages_usage_is_the_same_whole_and_streamed(
    usage: dict[str, Any], before: int, chance: random.Random
) -> None:
    body = {"type": "message", "id": "m", "model": "claude-a", "content": [], "usage": usage}
    whole = MESSAGES.read_reply(200, json.dumps(body).encode(), Dialect()).usage
    start = {name: value for name, value in usage.items() if value is None or chance.random() < 0.5}
    told = {name: value for name, value in usage.items() if name not in start}
    told["output_tokens"] = usage["output_tokens"]
    for name in told:  # what the delta says overrides whatever the start said
        start[name] = before
    message = {"id": "m", "model": "claude-a", "usage": start}
    data = (
        event("message_start", message=message)
        + event("content_block_delta", delta={"type": "text_delta", "text": "hi"})
        + event("message_delta", delta={"stop_reason": "end_turn"}, usage=told)
        + event("message_stop")
    )
    assert streamed(MESSAGES, Dialect(), data, chance) == whole
