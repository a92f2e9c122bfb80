"""Effort: levels of thinking and budgets in tokens, which some languages name and others count."""

from __future__ import annotations

from typing import Final, cast

from gateway.translation.meaning import Effort, Language, Level, refused

BUDGET_OF: Final[dict[Level, int]] = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 24_576,
    "xhigh": 28_672,
}
"""What a level is worth where a budget is asked for; a budget is the highest level that it pays for."""
BUDGET_MIN: Final = 1024
"""Anthropic takes no smaller one, and it must be below `max_tokens`."""
LEVELS: Final[tuple[Level, ...]] = ("none", "minimal", "low", "medium", "high", "xhigh")
_ALSO: Final[dict[str, Level]] = {"max": "xhigh"}


def level_named(value: str | None, param: str, target: Language) -> Level | None:
    """Return the level of that name.

    Raises:
        CallerError: 400: there is none.
    """
    if value is None:
        return None
    level: str = _ALSO.get(value, value)
    if level not in LEVELS:
        raise refused(param, target, f"{value[:32]!r} is no known level")
    return level


def level_of(effort: Effort | None) -> Level | None:
    """Return the level of an effort, None where it says none."""
    if effort is None or effort.level is not None or effort.budget is None:
        return None if effort is None else effort.level
    found: Level = "minimal"
    for level, budget in BUDGET_OF.items():  # from low to high
        if effort.budget >= budget:
            found = level
    return found


def adaptive_level_of(effort: Effort | None) -> str | None:
    """Return the level in Anthropic's words, None where nothing is to be thought."""
    level = level_of(effort)
    if level in (None, "none"):
        return None
    return {"minimal": "low", "xhigh": "max"}.get(level, level)


def budget_of(effort: Effort | None, max_tokens: int, param: str) -> int | None:
    """Return the budget of an effort below `max_tokens`, None where nothing is to be thought.

    Raises:
        CallerError: 400: `max_tokens` leaves no room for the smallest one.
    """
    if effort is None or (effort.budget is None and effort.level in (None, "none")):
        return None
    if max_tokens <= BUDGET_MIN:
        raise refused(param, "messages", f"thinking needs a limit of more than {BUDGET_MIN} tokens")
    if effort.budget is not None:
        return max(BUDGET_MIN, min(effort.budget, max_tokens - 1))
    wanted = BUDGET_OF[cast("Level", effort.level)]
    return max(BUDGET_MIN, min(wanted, max_tokens * 4 // 5))  # a level leaves room for the answer
