"""No secret stays in what is captured, wherever it stands and wherever the body is cut."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.capture.redaction import FIELDS, GONE, Redactor, secrets_in, shown_headers

REDACTOR = Redactor(["Diagnosis"])
SECRET = "hunter2-canary"


@pytest.mark.parametrize(
    "token",
    [
        "sk-proj-abc123DEF456ghi",
        "sk-ant-api03-abcdefghijkl",
        "hf_abcdefghijklmnop1",
        "ghp_0123456789abcdef0123",
        "xoxb-12345-67890-abc",
        "AKIAABCDEFGHIJKLMNOP",
        "AIzaSyA0123456789012345678901234567890",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc-def_ghi",
        "Bearer 0123456789abcdef",
    ],
)
@pytest.mark.parametrize("around", ["%s", "my key is %s, use it", '{"content":"a\\n%s\\n"}', "key=%s&x=1"])
def test_what_looks_like_a_key_goes(token: str, around: str) -> None:
    clean = REDACTOR.body((around % token).encode(), ()).decode()
    assert token not in clean
    assert token[-8:] not in clean
    assert clean == around % GONE.decode()


def test_a_private_key_goes() -> None:
    text = b"-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY----- and on"
    clean = REDACTOR.body(text, ())
    assert b"MIIabc" not in clean
    assert clean.endswith(b" and on")
    assert b"MIIabc" not in REDACTOR.body(text[:40], ())


@pytest.mark.parametrize(
    "text", ["ask-me about task-force and risk-adjusted returns", "desk-lamp", '{"a":[1]}']
)
def test_plain_words_stay(text: str) -> None:
    assert REDACTOR.body(text.encode(), ()) == text.encode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(f'{SECRET}"\\{SECRET}]}}'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*FIELDS, "diagnosis", "DIAGNOSIS", "Password"])


def nested(value: object, depth: int) -> object:
    """Return a value inside strings of JSON."""
    for _ in range(depth):
        value = {"arguments": json.dumps(value)}
    return value


@given(NAMES, VALUES, st.integers(0, 3), st.booleans())
@example("password", {"a": [f'{SECRET}"']}, 1, True)
def test_the_value_of_a_named_field_goes_whole_and_alone_at_any_depth(
    name: str, value: object, depth: int, spaced: bool
) -> None:
    kept = {"before": "stays", "after": ["stays", 1]}
    whole = nested({"before": "stays", name: value, "after": ["stays", 1]}, depth)
    text = json.dumps(whole, ensure_ascii=False, separators=(", ", " : ") if spaced else (",", ":"))
    found = json.loads(REDACTOR.body(text.encode(), ()))
    for _ in range(depth):
        found = json.loads(found["arguments"])
    assert found == {**kept, name: GONE.decode()}


@given(NAMES, VALUES, st.integers(0, 2), st.floats(0, 1))
def test_nothing_of_a_named_field_stays_where_the_body_is_cut(
    name: str, value: object, depth: int, cut: float
) -> None:
    text = json.dumps(nested({name: [SECRET, value, SECRET]}, depth)).encode()
    clean = REDACTOR.body(text[: round(cut * len(text))], ())
    assert SECRET.encode()[:6] not in clean


def test_fields_in_the_events_of_a_stream_go() -> None:
    stream = b'data: {"secret": "%b", "x": 1}\n\ndata: {"delta":"hi"}\n\n' % SECRET.encode()
    assert REDACTOR.body(stream, ()) == (
        b'data: {"secret": "[redacted]", "x": 1}\n\ndata: {"delta":"hi"}\n\n'
    )


def test_only_listed_headers_are_shown_and_the_values_of_others_leave_the_bodies() -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer plain1"),
        (b"cookie", b"session=c00kie; theme=dark-and-long"),
        (b"x-own", b"some-own-secret-value"),
        (b"user-agent", b"client sk-abc123456789"),
    ]
    shown, others = shown_headers(headers)
    assert shown == {"content-type": "application/json", "user-agent": "client [redacted]"}
    assert others == ["authorization", "cookie", "x-own"]
    secrets = secrets_in(headers)
    clean = REDACTOR.body(b"plain1 c00kie some-own-secret-value application/json Bearer", secrets)
    assert clean == b"[redacted] [redacted] [redacted] application/json Bearer"


@given(st.binary(max_size=200))
def test_any_bytes_can_be_redacted(data: bytes) -> None:
    REDACTOR.body(data, (b"secret-secret",))


HOSTILE = [
    b"eyJ" * 90_000,
    b"sk-" * 90_000,
    b'"' * 260_000,
    b"\\" * 260_000,
    b'\\"' * 130_000,
    b"{" * 260_000,
    b'"password":' * 24_000,
    b'"password":{' * 22_000,
    b'"password":"' * 22_000,
    b"password" * 32_000,
    b"-----BEGIN PRIVATE KEY" * 12_000,
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: repr(data[:12]))
def test_hostile_bodies_take_no_longer_than_their_length(data: bytes) -> None:
    def seconds(part: bytes) -> float:
        return min(_timed(part) for _ in range(3))

    def _timed(part: bytes) -> float:
        started = time.thread_time()
        REDACTOR.body(part, (b"some-own-secret",))
        return time.thread_time() - started

    assert seconds(data) < 0.05 + 12 * seconds(data[: len(data) // 4])
