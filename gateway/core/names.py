"""Names: patterns of model names, as cards and keys have them: exact, or with `*` for any characters."""

from __future__ import annotations

import re


def glob(pattern: str) -> re.Pattern[str]:
    """Return a pattern that `fullmatch`es what is meant, in time that no hostile name makes exponential."""
    # Atomic groups: a pattern with many stars must not be tried in all the ways that it could match.
    parts = [re.escape(part) for part in pattern.split("*")]
    middle = "".join(f"(?>.*?{part})" for part in parts[1:-1] if part)
    return re.compile(f"{parts[0]}{middle}.*{parts[-1]}" if len(parts) > 1 else parts[0], re.DOTALL)


def covers(wide: str, narrow: str) -> bool:
    """Say whether all names that `narrow` means are meant by `wide`, too.

    A star of `narrow` stands for any characters, so only a star of `wide` can take it in: read as a name,
    `narrow` matches `wide` exactly where it is a subset, for no star of `wide` is a character.
    """
    return glob(wide).fullmatch(narrow) is not None
