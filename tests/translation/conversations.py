"""Conversations and answers of all kinds, for properties."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from gateway.translation.effort import BUDGET_MIN
from gateway.translation.meaning import (
    Answer,
    Call,
    Choice,
    Conversation,
    Effort,
    File,
    Format,
    Image,
    Result,
    Text,
    Thinking,
    Tool,
    Turn,
    normal,
)

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
NAMES = st.text("abcdefghijklmnop_", min_size=1, max_size=12)
IDS = st.text("abcdefgXYZ0123:.-_", min_size=1, max_size=12).map("call_".__add__)
HINTS = st.sampled_from([None, "", "5m", "1h"])
BASE64 = st.sampled_from(["aGVsbG8=", "R0lGODlhAQABAAAAACw="])
URLS = st.sampled_from(["https://example.com/a.png", "http://h/b?c=d"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OBJECTS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(NAMES, JSON, max_size=3)
ARGUMENTS = OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False))
SCHEMAS = st.fixed_dictionaries({"type": st.just("object"), "properties": OBJECTS})


def texts(hint: bool = True) -> st.SearchStrategy[Text]:
    return st.builds(Text, text=WORDS, cache=HINTS if hint else st.none())


IMAGES = st.builds(Image, url=URLS, detail=st.sampled_from([None, "low"]), cache=HINTS) | st.builds(
    Image, media_type=st.sampled_from(["image/png", "image/gif"]), data=BASE64, cache=HINTS
)
FILES = st.builds(
    File, media_type=st.just("application/pdf"), data=BASE64, name=st.none() | NAMES, cache=HINTS
)
SEALS = st.tuples(
    st.text("abc+/=", min_size=1, max_size=9), st.sampled_from(["messages", "messages-redacted", "responses"])
)


@st.composite
def thoughts(draw: st.DrawFn) -> Thinking:
    sealed = draw(st.none() | SEALS)
    if sealed is None:
        return Thinking(text=draw(WORDS))
    seal, origin = sealed
    text = "" if origin == "messages-redacted" else draw(st.just("") | WORDS)
    return Thinking(text=text, seal=seal, origin=origin)  # type: ignore[arg-type]


CALLS = st.builds(Call, id=IDS, name=NAMES, arguments=ARGUMENTS)
FREEFORM_CALLS = st.builds(Call, id=IDS, name=NAMES, arguments=WORDS, freeform=st.just(True))
RESULTS = st.builds(
    Result,
    call_id=IDS,
    parts=st.lists(texts() | IMAGES, max_size=3).map(tuple),
    failed=st.booleans(),
    cache=HINTS,
)
ASSISTANT = st.lists(texts() | thoughts() | CALLS | FREEFORM_CALLS, max_size=4)
USER = st.lists(texts() | IMAGES | FILES | RESULTS, max_size=4)
TURNS = st.lists(
    st.builds(Turn, role=st.just("system"), parts=st.lists(texts(), max_size=2).map(tuple))
    | st.builds(Turn, role=st.just("user"), parts=USER.map(tuple))
    | st.builds(Turn, role=st.just("assistant"), parts=ASSISTANT.map(tuple)),
    max_size=6,
).map(normal)
TOOLS = st.lists(
    st.builds(
        Tool,
        name=NAMES,
        description=st.none() | WORDS,
        schema=st.none() | SCHEMAS,
        strict=st.sampled_from([None, True, False]),
        cache=HINTS,
    )
    | st.builds(
        Tool, name=NAMES, description=st.none() | WORDS, freeform=st.just(True), grammar=st.none() | WORDS
    ),
    max_size=3,
).map(tuple)
LEVELS = st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh"])
EFFORTS = st.none() | st.builds(Effort, level=LEVELS) | st.builds(Effort, budget=st.integers(1024, 50_000))
FORMATS = st.none() | st.builds(
    Format,
    schema=SCHEMAS,
    name=st.none() | NAMES,
    description=st.none() | WORDS,
    strict=st.sampled_from([None, True, False]),
)
CONVERSATIONS = st.builds(
    Conversation,
    turns=TURNS,
    tools=TOOLS,
    choice=st.none()
    | st.builds(Choice, kind=st.sampled_from(["auto", "none", "any"]))
    | st.builds(Choice, kind=st.just("named"), name=NAMES),
    parallel=st.sampled_from([None, True, False]),
    max_tokens=st.none() | st.integers(BUDGET_MIN + 1, 10**6),
    temperature=st.none() | st.floats(0, 1),
    top_p=st.none() | st.floats(0, 1),
    effort=EFFORTS,
    format=FORMATS,
    user=st.none() | st.text("abc", min_size=1, max_size=80),
    tier=st.sampled_from([None, "auto", "default"]),
    stream=st.booleans(),
)
"""What each of the languages can say; what one of them refuses is tested by name."""

ANSWERS = st.builds(
    Answer,
    id=st.text("abcdef0123", min_size=1, max_size=9),
    model=NAMES,
    parts=st.lists(
        texts(hint=False) | st.builds(Text, text=WORDS, refusal=st.just(True)) | thoughts() | CALLS,
        max_size=5,
    ).map(tuple),
    stop=st.sampled_from(["end", "length", "stop_sequence", "tool", "filtered"]),
    stop_sequence=st.none() | WORDS,
)
