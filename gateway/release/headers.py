"""Headers of a relayed reply: the provider's own, less those that belong to its connection, plus ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.core.exchange import Attempt, Exchange
from gateway.core.money import pico_to_usd

Header = tuple[bytes, bytes]

NOT_RELAYED: Final = frozenset(
    {
        # of one hop (RFC 9110, section 7.6.1), or of the framing, which is ours
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"content-encoding",
        # of the provider's own server and site: they would speak for a host that the caller did not ask
        b"date",
        b"server",
        b"set-cookie",
        b"strict-transport-security",
        b"alt-svc",
        # ours: one id per request
        b"x-request-id",
        b"request-id",
        b"x-trace-id",
        b"traceresponse",
    }
)

OURS: Final = b"x-spanbill-"
"""A provider that sends such a header, a gateway of this kind or a liar, must not speak for this one."""

LIMITS: Final = (b"x-ratelimit-", b"anthropic-ratelimit-")
"""Where the gateway tells its own limits, those of the provider's account would contradict them."""


def reply_headers(
    provider_headers: Sequence[Header],
    ids: list[Header],
    exchange: Exchange | None,
    *,
    content_length: int | None = None,
    made: Sequence[Attempt] = (),
) -> list[Header]:
    """Return the head's headers.

    Args:
        ids: ours: the correlation ids, and limits.
        exchange: the settled exchange of a whole reply, whose cost the headers tell; None for a stream.
        made: for a stream, its attempts.
    """
    withheld: tuple[bytes, ...] = (OURS,)
    if any(name.startswith(LIMITS) for name, _ in ids):
        withheld += LIMITS
    headers = [
        header
        for header in provider_headers
        if header[0] not in NOT_RELAYED and not header[0].startswith(withheld)
    ]
    headers += ids
    if content_length is not None:
        headers.append((b"content-length", b"%d" % content_length))
    if exchange is None:
        headers.append((b"x-spanbill-provider", made[-1].provider.encode()))
        headers.append((b"x-spanbill-model", _latin(made[-1].model)))
        headers.append((b"x-spanbill-attempts", _tried(made)))
        return headers
    last = exchange.attempts[-1]
    headers.append((b"x-spanbill-provider", last.provider.encode()))
    headers.append((b"x-spanbill-model", _latin(exchange.reply.response_model or last.model)))
    headers.append((b"x-spanbill-attempts", _tried(exchange.attempts)))
    headers.append((b"x-spanbill-cost-status", exchange.status.encode()))
    if exchange.charge is not None:
        headers.append((b"x-spanbill-cost-usd", pico_to_usd(exchange.charge.cost_pico_usd).encode()))
    headers.append((b"x-spanbill-latency-ms", b"%d" % (exchange.latency_ns // 1_000_000)))
    return headers


def _tried(attempts: Sequence[Attempt]) -> bytes:
    return f"{len(attempts)}; {','.join([attempt.provider for attempt in attempts])}".encode()


def _latin(text: str) -> bytes:
    """Return the text as a header value: anything but printable ASCII becomes `?`; no line is split."""
    if text.isascii() and text.isprintable():
        return text.encode()
    return bytes(byte if 0x20 <= byte < 0x7F else 0x3F for byte in text.encode("ascii", "replace"))
