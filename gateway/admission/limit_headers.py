"""Limit headers: what a caller is told of its limits, in the words of the SDK that it uses.

Of several limits of one kind the one with the least left is told. `reset` is when all of it is there again if
nothing more is used; how long to wait after a refusal stands in `retry-after`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from gateway.limits.store import Charge, Standing, Unit

Header = tuple[bytes, bytes]

TOLD: tuple[Unit, ...] = ("requests", "tokens")


def limit_headers(
    charges: Sequence[Charge], standings: Sequence[Standing], *, anthropic: bool, now_unix_ms: int
) -> list[Header]:
    """Return the headers of an answer.

    Args:
        anthropic: in the form of Anthropic's API, with the time of the reset; otherwise OpenAI's, with how
            long it is until then.
    """
    headers: list[Header] = []
    for unit in TOLD:
        tightest: tuple[int, int, int] | None = None
        for charge, standing in zip(charges, standings, strict=True):
            if charge.unit == unit:
                left = max(0, charge.limit - standing.used)
                if tightest is None or left < tightest[0]:
                    tightest = (left, charge.limit, standing.full_again_ms)
        if tightest is None:
            continue
        left, limit, again_ms = tightest
        if anthropic:
            prefix = f"anthropic-ratelimit-{unit}-"
            names = (f"{prefix}limit", f"{prefix}remaining", f"{prefix}reset")
            reset = _instant(now_unix_ms + again_ms)
        else:
            prefix = "x-ratelimit-"
            names = (f"{prefix}limit-{unit}", f"{prefix}remaining-{unit}", f"{prefix}reset-{unit}")
            reset = _duration(again_ms)
        for name, value in zip(names, (str(limit), str(left), reset), strict=True):
            headers.append((name.encode(), value.encode()))
    return headers


def _instant(unix_ms: int) -> str:
    """Return RFC 3339 in UTC; a begun second is a whole one."""
    return datetime.fromtimestamp(-(-unix_ms // 1000), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _duration(ms: int) -> str:
    """Return a duration as OpenAI writes it: `1m0s`, `6.3s`, `120ms`."""
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms // 1000}"
    if rest_ms % 1000:
        seconds += f".{rest_ms % 1000:03d}".rstrip("0")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
