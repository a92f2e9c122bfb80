"""There and back keeps meaning: of requests, of whole answers and of streams, in every language."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocols import PROTOCOLS
from gateway.protocols.base import Dialect, Request
from gateway.protocols.sse import events_in, payload_of
from gateway.translation.answering import Asked
from gateway.translation.freeform import as_functions
from gateway.translation.languages import GRAMMARS
from gateway.translation.meaning import Answer, Call, Conversation, Language, Text, Thinking
from gateway.translation.streaming import (
    Added,
    Begun,
    Closed,
    Event,
    Opened,
    Sealed,
    Sequencer,
    Stopped,
    collected,
)
from gateway.translation.translated import TranslatedMeter, decoded
from tests.translation.conversations import ANSWERS, CONVERSATIONS
from tests.translation.kept import flat, kept, kept_answer, merged

DOORS = {door.name: door for door in PROTOCOLS.values()}
ASKED = Asked(model="m", at_unix_s=1_700_000_000)
ALL = sorted(GRAMMARS)
COUNTS = st.fixed_dictionaries(
    {"input": st.integers(1000, 9000), "output": st.integers(500, 900)},
    optional={
        "cache_read": st.integers(0, 400),
        "cache_write": st.integers(0, 400),
        "reasoning": st.integers(0, 400),
    },
)


def all_needed(language: Language, counts: dict[str, int]) -> dict[str, int]:
    """Return the counts that a caller reads: in responses none may be missing."""
    return {"cache_read": 0, "reasoning": 0, **counts} if language == "responses" else counts


def written(meant: Conversation, language: Language) -> dict[str, Any]:
    body = GRAMMARS[language].write_request(as_functions(meant), "m", Dialect())
    told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(body))
    return told


@pytest.mark.parametrize("language", ALL)
@given(meant=CONVERSATIONS)
def test_a_request_means_what_it_meant_but_for_what_is_documented(
    language: Language, meant: Conversation
) -> None:
    back = GRAMMARS[language].read_request(written(meant, language), language)
    assert flat(back) == flat(kept(meant, language))


@pytest.mark.parametrize("there", ALL)
@pytest.mark.parametrize("here", ALL)
@given(meant=CONVERSATIONS)
def test_a_request_that_went_there_and_back_means_the_same(
    here: Language, there: Language, meant: Conversation
) -> None:
    """What the other language kept, it still has when it is written in the first one and read again."""
    seen = GRAMMARS[there].read_request(written(meant, there), here)
    back = GRAMMARS[here].read_request(written(seen, here), there)
    assert flat(back) == flat(kept(kept(meant, there), here))


def _comparable(answer: Answer) -> Answer:
    return msgspec.structs.replace(merged(answer), id=None, model=None)


@pytest.mark.parametrize("language", ALL)
@given(answer=ANSWERS, counts=COUNTS)
def test_an_answer_says_what_it_said_with_the_counts_of_the_bill(
    language: Language, answer: Answer, counts: dict[str, int]
) -> None:
    body = msgspec.json.encode(GRAMMARS[language].write_answer(answer, ASKED, counts))
    back = GRAMMARS[language].read_answer(msgspec.json.decode(body))
    assert _comparable(back) == _comparable(kept_answer(answer, language))
    assert (back.id, back.model) == (answer.id, answer.model)
    usage = DOORS[language].read_reply(200, body, Dialect()).usage
    assert usage is not None
    assert usage.counts == all_needed(language, counts)


def events_of(answer: Answer) -> list[Event]:
    events: list[Event] = [Begun(answer.id, answer.model)]
    for part in answer.parts:
        match part:
            case Text():
                events += [Opened("refusal" if part.refusal else "text"), *_pieces(part.text)]
            case Call():
                events += [Opened("call", part.id, part.name), *_pieces(part.arguments)]
            case Thinking():
                events += [Opened("thinking"), *_pieces(part.text)]
                if part.seal is not None and part.origin is not None:
                    events.append(Sealed(part.seal, part.origin))
        events.append(Closed())
    return [*events, Stopped(answer.stop, answer.stop_sequence)]


def _pieces(text: str) -> list[Event]:
    return [Added(text[at : at + 3]) for at in range(0, len(text), 3)]


def streamed(answer: Answer, language: Language, counts: dict[str, int]) -> bytes:
    writer = GRAMMARS[language].writer(ASKED)
    return b"".join([writer.write(event) for event in events_of(answer)]) + writer.end(counts)


def read_back(language: Language, data: bytes) -> Answer:
    reader = GRAMMARS[language].reader()
    payloads = [payload_of(event) for event in events_in(data)]
    meant = [
        event
        for payload in payloads
        if payload and payload != b"[DONE]"
        for event in reader.read(decoded(payload))
    ]
    return collected([*meant, *reader.finish()])


@pytest.mark.parametrize("there", ALL)
@pytest.mark.parametrize("here", ALL)
@given(answer=ANSWERS, counts=COUNTS, cuts=st.lists(st.integers(0, 4000), max_size=9))
def test_a_stream_says_the_same_in_another_language_wherever_it_is_cut(
    here: Language, there: Language, answer: Answer, counts: dict[str, int], cuts: list[int]
) -> None:
    data = streamed(answer, there, counts)
    request = Request(model="m", stream=True, usage_requested=True)
    meter = TranslatedMeter(
        DOORS[there].stream_meter(request, Dialect()),
        GRAMMARS[there].reader(),
        GRAMMARS[here].writer(ASKED),
        DOORS[here],
    )
    edges = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    out = b"".join([meter.feed(data[a:b]) for a, b in pairwise(edges)])
    tail = meter.finish()
    wanted = kept_answer(read_back(there, data), here)
    assert _comparable(kept_answer(read_back(here, out + tail.held), here)) == _comparable(wanted)
    last = DOORS[here].stream_meter(request, Dialect())
    assert last.feed(out) == out, "the terminal event went out before the end"
    last.feed(tail.held)
    reply = last.finish().reply
    assert reply.complete
    assert reply.usage is not None
    assert reply.usage.counts == all_needed(here, all_needed(there, counts))


@given(
    calls=st.lists(
        st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=2), min_size=1, max_size=4
    ),
    chance=st.randoms(use_true_random=False),
)
def test_calls_that_are_told_at_once_come_one_after_another(calls: list[dict[str, int]], chance: Any) -> None:
    """However their deltas are mixed, each has its own arguments, whole and in order."""
    texts = [json.dumps(call) for call in calls]
    parts = Sequencer()
    left = [[text[at : at + 2] for at in range(0, len(text), 2)] for text in texts]
    opened: list[int] = []
    while any(left):
        at = chance.choice([index for index, pieces in enumerate(left) if pieces])
        for index in range(at + 1):
            if index not in opened:
                parts.open(index, Opened("call", str(index), "f"))
                opened.append(index)
        parts.put(at, Added(left[at].pop(0)))
    parts.finish()
    open_now = False
    for event in parts.out:
        if isinstance(event, Opened):
            assert not open_now
            open_now = True
        elif isinstance(event, Closed):
            assert open_now
            open_now = False
    told = collected(parts.out).parts
    assert [(part.id, part.arguments) for part in told if isinstance(part, Call)] == [
        (str(index), text) for index, text in enumerate(texts)
    ]
