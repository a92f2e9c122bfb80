"""Live: which settings a running gateway takes over, and which need a restart.

What a request is served by is taken over; what this process is (its address, its folders, its databases, its
bounds on memory) is not. A key of neither kind does not exist: what LIVE does not name needs a restart.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.settings.model import Settings

LIVE: Final = frozenset(
    {
        "api_keys",
        "keys",
        "providers",
        "routing.default_provider",
        "routing.selector",
        "routing.retries",
        "routing.cooldown",
        "routing.aliases",
        "upstream.connect_timeout_s",
        "upstream.first_byte_timeout_s",
        "upstream.idle_timeout_s",
        "upstream.total_timeout_s",
        "upstream.max_reply_bytes",
        "budgets.definitions",
        "budgets.when_unavailable",
        "budgets.unpriced",
        "budgets.assumed_output_tokens",
        "prices.catalog",
        "prices.overrides",
        "prices.exchange",
        "prices.adjustments",
        "prices.unpriced",
        "prices.fallback",
        "limits.rules",
        "limits.assumed_output_tokens",
    }
)
"""Keys, or what they begin with."""


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What a changed configuration comes to in a running gateway.

    Args:
        settings: those that are to be in force: the new ones, where they are live.
        waiting: names of the keys that changed and need a restart, in the order of the reference.
    """

    settings: Settings
    waiting: tuple[str, ...]


def is_live(key: str) -> bool:
    """Say whether a change of a key is taken over by a running gateway."""
    return any(key == live or key.startswith((f"{live}.", f"{live}[")) for live in LIVE)


def merged(started: Settings, new: Settings) -> Merged:
    """Return what is to be in force, where the process was started with other settings."""
    sections: dict[str, Any] = {}
    waiting: list[str] = []
    for name in type(started).model_fields:
        old, other = getattr(started, name), getattr(new, name)
        if is_live(name):
            sections[name] = other
        elif any(live.startswith(f"{name}.") for live in LIVE):
            keys = [key for key in type(old).model_fields if is_live(f"{name}.{key}")]
            sections[name] = old.model_copy(update={key: getattr(other, key) for key in keys})
            waiting += _changed(name, old, other)
        elif hasattr(type(old), "model_fields"):
            waiting += _changed(name, old, other)
        elif old != other:
            waiting.append(name)
    return Merged(settings=started.model_copy(update=sections), waiting=tuple(waiting))


def _changed(name: str, old: Any, other: Any) -> list[str]:
    return [
        f"{name}.{key}"
        for key in type(old).model_fields
        if not is_live(f"{name}.{key}") and getattr(old, key) != getattr(other, key)
    ]
