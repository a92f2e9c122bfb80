"""The offline tokenizer is the published one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import tiktoken_ext.openai_public as published

from gateway.metering import tokenizer


@pytest.fixture(scope="module")
def count() -> Callable[[str], int]:
    return tokenizer.load()


def test_the_vocabulary_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stated: dict[str, Any] = {}
    monkeypatch.setattr(
        published, "load_tiktoken_bpe", lambda url, expected_hash: stated.update(hash=expected_hash)
    )
    pattern = published.o200k_base()["pat_str"]
    lines = b"".join([b"%b %d\n" % (token, rank) for rank, token in enumerate(tokenizer.vocabulary())])
    assert hashlib.sha256(lines).hexdigest() == stated["hash"]
    assert pattern == tokenizer._PATTERN


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("Hello, world!", 4), (" hello", 1), ("1234567", 3), ("<|endoftext|>", 7)]
)
def test_tokens_of_known_texts(text: str, tokens: int, count: Callable[[str], int]) -> None:
    assert count(text) == tokens


def test_a_long_text_is_measured_by_its_beginning(count: Callable[[str], int]) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 10_000
    assert count(text) == pytest.approx(10 * 10_000, rel=0.01)
