"""Headers of a reply: the provider's own, except where they would contradict the gateway's."""

from __future__ import annotations

from gateway.core.exchange import Attempt
from gateway.release.headers import reply_headers

PROVIDERS = [
    (b"x-ratelimit-remaining-requests", b"9999"),
    (b"anthropic-ratelimit-tokens-limit", b"8000000"),
    (b"retry-after", b"7"),
    (b"openai-version", b"2020-10-01"),
]
IDS = [(b"x-request-id", b"r1")]
MADE = [
    Attempt(
        span_id="a" * 16,
        provider="p",
        model="m",
        host="h",
        port=443,
        path="/",
        started_unix_ns=1,
        ended_unix_ns=2,
    )
]


def test_where_the_gateway_limits_nothing_the_providers_limits_are_told() -> None:
    told = reply_headers(PROVIDERS, IDS, None, made=MADE)
    assert all(header in told for header in PROVIDERS)


def test_where_the_gateway_tells_its_limits_the_providers_are_not_told() -> None:
    own = (b"x-ratelimit-remaining-requests", b"3")
    told = reply_headers(PROVIDERS, [*IDS, own], None, made=MADE)
    assert [header for header in told if b"ratelimit" in header[0]] == [own]
    assert (b"retry-after", b"7") in told
    assert (b"openai-version", b"2020-10-01") in told
