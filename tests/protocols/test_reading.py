"""Facts from a stranger's JSON: what does not fit is absent and said so, and nothing is rounded."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from gateway.core.errors import CallerError
from gateway.core.usage import COUNT_MAX
from gateway.protocols.reading import (
    CODE_CHARS_MAX,
    Counts,
    cost_usd,
    decode,
    replace_members,
    text,
    unique_members,
)


@pytest.mark.parametrize("value", [-1, 1.5, Decimal("3"), "12", True, [], {}, COUNT_MAX + 1, 10**30])
def test_what_is_no_count_is_absent_and_flagged(value: object) -> None:
    counts = Counts()
    assert not counts.take("input", {"prompt_tokens": value}, "prompt_tokens")
    assert counts.values == {}
    assert counts.anomalies == ["input_unusable"]


def test_zero_is_kept_and_null_is_absent_without_a_flag() -> None:
    counts = Counts()
    assert counts.take("input", {"prompt_tokens": 0}, "prompt_tokens")
    assert not counts.take("output", {"completion_tokens": None}, "completion_tokens")
    assert counts.values == {"input": 0}
    assert counts.anomalies == []


def test_a_second_spelling_is_used_where_the_first_is_unusable() -> None:
    counts = Counts()
    assert counts.take("input", {"prompt_tokens": "x", "input_tokens": 3}, "prompt_tokens", "input_tokens")
    assert counts.values == {"input": 3}
    assert counts.anomalies == ["input_unusable"]


def test_a_sum_past_the_largest_count_is_absent_not_an_exception() -> None:
    counts = Counts()
    counts.take("output", {"n": COUNT_MAX}, "n")
    counts.add("output", 1)
    assert counts.values == {}
    assert counts.anomalies == ["output_unusable"]


@pytest.mark.parametrize(
    ("value", "units", "seconds"),
    [
        (6, 6, 6),
        (Decimal("6.0"), 6, 6),
        (Decimal("6.2"), None, 7),
        (Decimal("-0.5"), None, None),
        (Decimal("-6"), None, None),
        (Decimal("1E30"), None, None),
        (Decimal("NaN"), None, None),
        (Decimal("-Infinity"), None, None),
        ("6", None, None),
        (True, None, None),
    ],
)
def test_a_zero_fraction_is_a_count_and_a_begun_second_a_whole_one(
    value: object, units: int | None, seconds: int | None
) -> None:
    counts = Counts()
    assert counts.whole("input", value) is (units is not None)
    assert counts.seconds("audio_second", value) is (seconds is not None)
    assert (counts.values.get("input"), counts.values.get("audio_second")) == (units, seconds)
    assert ("input_unusable" in counts.anomalies) is (units is None)


def test_counts_of_one_name_are_summed_and_what_is_none_changes_nothing() -> None:
    counts = Counts()
    for value in (3, Decimal("4.0"), None, "x"):
        counts.sum("page", value)
    assert (counts.values, counts.anomalies) == ({"page": 7}, ["page_unusable"])
    counts.sum("page", COUNT_MAX)
    assert counts.values == {}


@pytest.mark.parametrize(
    ("number", "cost"),
    [
        (b"0.000012300", "0.000012300"),
        (b"1e-7", "0.0000001"),
        (b"0.1234567890123456789012345", "0.1234567890123456789012345"),
        (b"0", "0"),
        (b"3", "3"),
        (b"0.0", "0.0"),
    ],
)
def test_a_reported_cost_keeps_every_digit(number: bytes, cost: str) -> None:
    assert cost_usd(decode(number)) == cost


@pytest.mark.parametrize(
    "number", [b"-1", b"-0.1", b'"1"', b"true", b"1e99", b"1e-999999", b"0e-999999", b"[]"]
)
def test_a_cost_that_is_none_is_absent(number: bytes) -> None:
    assert cost_usd(decode(number)) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "\\ud83d", "n": 1}',
        b'{"a": "\xff", "n": 1}',
        b'{"a": NaN, "n": 1}',
        b'{"a": "\x01", "n": 1}'[:0],
    ],
)
def test_a_broken_character_somewhere_does_not_lose_the_rest(body: bytes) -> None:
    value = decode(body)
    assert value is None if not body else value["n"] == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 200_000, b"9" * 5000 + b"x", b"nul", b"\x00" * 9])
def test_garbage_is_none(body: bytes) -> None:
    assert decode(body) is None


def test_text_is_bounded_and_printable() -> None:
    assert text("a" * 300) == "a" * 256
    assert text("a\nb\ud800", CODE_CHARS_MAX) == "a?b?"
    assert text("") is None
    assert text(3) is None


KEYS = (b'"model"', b'"stream"')


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":1,"model":"b"}',
        b'{"model":"a","m\\u006fdel":"b"}',
        b'{"model":"a","\\u006D\\u006f\\u0064\\u0065\\u006c":"b"}',
        b'{"stream":true,"model":"a","\\u0073trea\\u006d":0}',
        b'{"stream":true,"model":"a","\\u0073tream":0}',
        b'{"stream":true,"model":"a","x":{"stream":1},"stream":false}',
        b'{ "model" : "a" , "messages" : [] , "model" : "a" }',
    ],
)
def test_a_member_named_twice_is_refused_however_it_is_spelled(body: bytes) -> None:
    with pytest.raises(CallerError) as caught:
        unique_members(body, KEYS)
    assert (caught.value.status, caught.value.code) == (400, "duplicate_member")
    assert caught.value.param in {"model", "stream"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","x":{"model":"b","stream":1},"stream":true}',
        b'{"model":"a","messages":[{"content":"\\"model\\":\\"model\\""}]}',
        b'{"model":"a","tools":[{"model":{}},{"model":{}}]}',
        b'{"model":"a","user":"\\u0061\\u00e9","other":1,"other":2}',
        b'{"model":"a","\\u0000twice":"x"}',
        b'{\n    "model": "a",\n    "x": 1,\n    "y": {"model": "b"},\n    "z": [{"model": 3}]\n}',
    ],
)
def test_the_same_name_elsewhere_is_no_duplicate(body: bytes) -> None:
    unique_members(body, KEYS)


def test_other_members_keep_their_bytes_and_order() -> None:
    body = b'{"z": 1.10 , "model":"a","a":[1e2,  "\\u00e9"],"n":123456789012345678901234567890}'
    changed = replace_members(body, {"model": b'"b"'})
    members = msgspec.json.decode(changed, type=dict[str, msgspec.Raw])
    assert [(name, bytes(value)) for name, value in members.items()] == [
        ("z", b"1.10"),
        ("model", b'"b"'),
        ("a", b'[1e2,  "\\u00e9"]'),
        ("n", b"123456789012345678901234567890"),
    ]
