"""OTLP/HTTP: where bills go, and what the Collector's answer to them means. Decides; sends nothing.

Only an answer that speaks OTLP counts as an acceptance, and only a refusal that names the request as bad
counts as a refusal; anything else is to be tried again, for as long as it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})
"""OTLP asks for 429, 502, 503, 504; a Collector behind a proxy also answers 408 and 500 while it restarts."""
REFUSED: Final = frozenset({400, 413, 422})
UNSUPPORTED_ENCODING: Final = frozenset({400, 415})
"""What is answered to a compressed body by who does not take one."""
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
RETRY_AFTER_MAX_S: Final = 900.0
"""A Collector that asks for a longer pause is asked again after so long."""
TIMEOUT_MAX_S: Final = 600.0


class EndpointError(ValueError):
    """The standard variables name no usable endpoint; the message says which variable, and why."""


class Accepted(msgspec.Struct, frozen=True):
    """All spans were taken."""


class Rejected(msgspec.Struct, frozen=True):
    """Some or all spans were refused for good: find out which."""

    reason: str


class TryAgain(msgspec.Struct, frozen=True):
    """The same request may succeed later."""

    reason: str
    after_s: float | None = None


Verdict = Accepted | Rejected | TryAgain


class _Partial(msgspec.Struct):
    rejected: int | str = msgspec.field(name="rejectedSpans", default=0)
    message: str = msgspec.field(name="errorMessage", default="")


class _Answer(msgspec.Struct):
    partial: _Partial | None = msgspec.field(name="partialSuccess", default=None)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where bills go, as the standard variables say it."""

    url: str
    headers: dict[str, str]
    timeout_s: float
    gzip: bool
    certificate: str | None


def judge(status: int, body: bytes, headers: Mapping[str, str], now_unix_s: float) -> Verdict:
    """Return what an answer of the Collector means for the spans that were sent.

    A 200 whose body is no OTLP answer is not an acceptance: a proxy's login page also says 200.

    Args:
        headers: the answer's, by lower-case name.
        now_unix_s: our clock, for an answer that does not say its own.
    """
    if status in RETRYABLE:
        return TryAgain(f"HTTP {status}", retry_after_s(headers, now_unix_s))
    if status != 200:
        return Rejected(f"HTTP {status}") if status in REFUSED else TryAgain(f"HTTP {status}")
    if not body.strip():
        return Accepted()
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        rejected = int(answer.partial.rejected) if answer.partial is not None else 0
    except ValueError:
        return TryAgain("HTTP 200 with a body that is no OTLP answer")
    if rejected and answer.partial is not None:
        return Rejected(f"{rejected} spans rejected: {answer.partial.message[:200]}")
    return Accepted()


def backoff_s(failures: int, jitter: float) -> float:
    """Return the seconds to wait after `failures` (>= 1) in a row; `jitter` in [0, 1) spreads senders."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10)) * (0.5 + jitter / 2)


def retry_after_s(headers: Mapping[str, str], now_unix_s: float) -> float | None:
    """Return how long the Collector asks to be left alone, in seconds or as a date; None if it does not say.

    A date is held against the answer's own `Date`, where it has one: the two clocks may differ. Never less
    than BACKOFF_FIRST_S: a pause of 0 would be a loop without one.
    """
    text = headers.get("retry-after", "").strip()
    if text.isdecimal() and text.isascii():
        after_s = float(text[:9])
    else:
        at = _unix_s(text)
        if at is None:
            return None
        now = _unix_s(headers.get("date", ""))
        after_s = at - (now_unix_s if now is None else now)
    return min(max(after_s, BACKOFF_FIRST_S), RETRY_AFTER_MAX_S)


def _unix_s(http_date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(http_date)
    except (
        ValueError,
        IndexError,
        OverflowError,
    ):  # the standard library's parser lets the latter two through
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def endpoint_from_env(environ: Mapping[str, str]) -> Endpoint | None:
    """Return the endpoint of `OTEL_EXPORTER_OTLP_[TRACES_]*`, or None if there is none.

    Source: OpenTelemetry Protocol Exporter specification. `OTEL_EXPORTER_OTLP_TIMEOUT` is in seconds, as
    the Python SDK reads it. `OTEL_SDK_DISABLED` and samplers do not matter here: they are for traces.

    Raises:
        EndpointError: a variable cannot be used; a shipper that can never send must not start silently.
    """

    def read(name: str) -> str | None:
        return (
            environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}")
            or environ.get(f"OTEL_EXPORTER_OTLP_{name}")
            or None
        )

    url = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not url:
        base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        if not base:
            return None
        url = base.rstrip("/") + "/v1/traces"
    return Endpoint(
        url=_usable(url),
        headers=_headers(read("HEADERS") or ""),
        timeout_s=_timeout_s(read("TIMEOUT") or "10"),
        gzip=(read("COMPRESSION") or "none") == "gzip",
        certificate=read("CERTIFICATE"),
    )


def _usable(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")  # what resolves a name raises on one that this does not take
    except ValueError as fault:
        raise EndpointError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {url!r} is no URL: {fault}") from fault
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise EndpointError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {url!r} is no http:// or https:// URL of a host")
    return url


def _headers(text: str) -> dict[str, str]:
    headers = {}
    for pair in text.split(","):
        name, separator, value = pair.partition("=")
        if not (separator and name.strip()):
            continue
        name, value = unquote(name.strip()).lower(), unquote(value.strip())
        if not (name + value).isascii() or not (name + value).isprintable() or " " in name:
            raise EndpointError(f"OTEL_EXPORTER_OTLP_HEADERS: {name!r} cannot be sent as a header")
        headers[name] = value
    return headers


def _timeout_s(text: str) -> float:
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s <= TIMEOUT_MAX_S:
        raise EndpointError(
            f"OTEL_EXPORTER_OTLP_TIMEOUT: {text!r} is not between 0 and {TIMEOUT_MAX_S:.0f} s"
        )
    return timeout_s
