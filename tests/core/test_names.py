"""Patterns of names: what they match, and which is within which."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.names import covers, glob

PATTERNS = st.text("ab*", max_size=6)
NAMES = ["".join(letters) for size in range(6) for letters in itertools.product("abc", repeat=size)]


def meant(pattern: str) -> set[str]:
    plain = re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)
    return {name for name in NAMES if plain.fullmatch(name)}


@given(PATTERNS)
def test_a_pattern_matches_what_its_stars_mean(pattern: str) -> None:
    assert {name for name in NAMES if glob(pattern).fullmatch(name)} == meant(pattern)


@given(PATTERNS, PATTERNS)
def test_a_pattern_that_covers_another_matches_all_that_it_matches(wide: str, narrow: str) -> None:
    if covers(wide, narrow):
        assert meant(narrow) <= meant(wide)


@given(PATTERNS, PATTERNS)
def test_a_pattern_that_is_wider_is_seen_to_be(wide: str, narrow: str) -> None:
    filled = [narrow.replace("*", letters) for letters in ("", "c", "cc")]
    if all(glob(wide).fullmatch(name) for name in filled):
        # "c" is in no pattern, so what matches with it in a star's place matches with anything there.
        assert covers(wide, narrow)
