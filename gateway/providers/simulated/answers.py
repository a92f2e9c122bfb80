"""Answers: what the simulated models say and count, in no protocol's words.

Ask     what a request comes to        read by `chat`, `messages`, `responses` or `embeddings`
Answer  what is said and counted       written by the same
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal

import msgspec

from gateway.providers.simulated.schema import sample
from gateway.providers.simulated.state import State

BYTES_PER_TOKEN: Final = 4
REASONING_TOKENS: Final = 32
WORDS_MAX: Final = 20_000
CREATED_UNIX_S: Final = 1_767_225_600
"""2026-01-01: replies are a function of the requests before them, so there is no clock in them."""

UsageForm = Literal["plain", "zeros", "cache", "reasoning", "none"]
Ttl = Literal["5m", "1h"]

_WORDS: Final = re.compile(r"\b(\d{1,5}) words\b")
_PIECES: Final = re.compile(r"\s*\S+|\s+$")


class Segment(msgspec.Struct, frozen=True):
    """One part of a prompt; `cache` marks the end of a prefix to be cached."""

    text: str
    cache: Ttl | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A call of a tool; `arguments` is a JSON object."""

    name: str
    arguments: str


class Vectors(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be embedded: a vector of `length` numbers for each text, `encoded` in base64 or not."""

    texts: tuple[str, ...]
    length: int
    encoded: bool


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a request comes to.

    Args:
        prompt: all text of the request in order, tools and system first.
        last_text: what the user said last.
        tool: the tool to call, with a schema for its arguments; None where text is due.
        schema: what the text must satisfy as JSON; None for plain text.
    """

    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    prompt: tuple[Segment, ...]
    messages: int
    last_text: str
    tool: tuple[str, object] | None
    schema: object = None
    vectors: Vectors | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens; `input` and `output` include their parts."""

    input: int
    output: int
    reasoning: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0

    @property
    def cache_write(self) -> int:
        """Both kinds of cache writes."""
        return self.cache_write_5m + self.cache_write_1h


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What is said and counted."""

    id: str
    created: int
    model: str
    text: str
    tool: ToolCall | None
    thinking: str | None
    cut_by_limit: bool
    form: UsageForm
    counts: Counts
    vectors: Vectors | None = None


def answer(ask: Ask, form: UsageForm, body: bytes, state: State) -> Answer:
    """Return the answer to a request."""
    input_tokens = tokens("".join(segment.text for segment in ask.prompt))
    reasoning, room = 0, ask.max_tokens
    if form == "reasoning":
        reasoning = REASONING_TOKENS if room is None else min(REASONING_TOKENS, room // 2)
        room = None if room is None else room - reasoning
    tool = None if ask.tool is None else ToolCall(ask.tool[0], _arguments(ask.tool[1]))
    full = "" if tool is not None else _reply_text(ask)
    text = full if room is None else full.encode()[: room * BYTES_PER_TOKEN].decode(errors="ignore")
    said = text if tool is None else tool.name + tool.arguments
    read, write_5m, write_1h = _cache(ask, state) if form == "cache" else (0, 0, 0)
    return Answer(
        id=state.next_id(body),
        created=CREATED_UNIX_S + state.calls,
        model=ask.model,
        text=text,
        tool=tool,
        thinking="The characters of the message are to be counted." if reasoning else None,
        cut_by_limit=len(text) < len(full),
        form=form,
        counts=Counts(
            input=input_tokens,
            output=tokens(said) + reasoning,
            reasoning=reasoning,
            cache_read=read,
            cache_write_5m=write_5m,
            cache_write_1h=write_1h,
        ),
        vectors=ask.vectors,
    )


def tokens(text: str) -> int:
    """Return the count of tokens: one for each four bytes of UTF-8, begun ones counted, at least one."""
    return max(1, -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN))


def pieces(text: str) -> list[str]:
    """Cut a text into the pieces of a stream: a word each."""
    return _PIECES.findall(text)


def attachment(part: object) -> str:
    """Return a text that stands for an image or another part without text: 96 tokens, its own for each."""
    return hashlib.sha256(msgspec.json.encode(part)).hexdigest() * 6


def _reply_text(ask: Ask) -> str:
    if ask.schema is not None:
        return msgspec.json.encode(sample(ask.schema)).decode()
    wanted = _WORDS.search(ask.last_text)
    if wanted:
        count = min(int(wanted[1]), WORDS_MAX)
        return " ".join(f"word{number}" for number in range(1, count + 1)) or "."
    heard = ask.last_text[:80].encode("utf-8", "replace").decode()
    return (
        f"You said {len(ask.last_text)} characters in {ask.messages} message(s): "
        f"“{heard}”. This is {ask.model}, a simulated model."
    )


def _cache(ask: Ask, state: State) -> tuple[int, int, int]:
    """Return (read, written for 5 minutes, written for an hour); the written prefixes are known from then on.

    Without marks, as at OpenAI, everything before the last part is one prefix (all of it, if it is alone).
    """
    prompt = ask.prompt
    marks: dict[int, Ttl] = {at: part.cache for at, part in enumerate(prompt) if part.cache is not None}
    if not marks:
        marks = {max(len(prompt) - 2, 0): "5m"}
    digest = hashlib.sha256(ask.model.encode())
    size = before = read = 0
    written: dict[Ttl, int] = {"5m": 0, "1h": 0}
    for at, part in enumerate(prompt):
        data = part.text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data) + data)
        size += len(data)
        mark = marks.get(at)
        if mark is None:
            continue
        key, upto = digest.digest(), size // BYTES_PER_TOKEN
        if state.knows_prefix(key):
            read, written = upto, {"5m": 0, "1h": 0}
        else:
            written[mark] += upto - before
        state.write_prefix(key)
        before = upto
    return read, written["5m"], written["1h"]


def _arguments(schema: object) -> str:
    value = sample(schema)
    return msgspec.json.encode(value if isinstance(value, dict) else {}).decode()
