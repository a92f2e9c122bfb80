"""Regular expressions: every one in the product, found in its source, answers 100 KB of malice in 10 ms."""

from __future__ import annotations

import ast
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core import names
from gateway.pricing.catalogue import packaged_rates
from gateway.providers.cards import load_cards

ROOT = Path(__file__).resolve().parents[2]
SIZE = 100_000
BUDGET_S = 0.010
TRIES = 6
CALLS = {"compile", "match", "search", "fullmatch", "sub", "split", "findall", "finditer"}
OPERATOR_WRITTEN = {("entries.py", "search"), ("names.py", "compile")}
"""Patterns that are data: the catalogue's own and the globs of cards; both are tested from their data."""


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Yield every call into `re` of the product, and every `pattern=` given to a field."""
    for folder in ("gateway", "otel"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                function = node.func
                if (
                    isinstance(function, ast.Attribute)
                    and isinstance(function.value, ast.Name)
                    and function.value.id == "re"
                    and function.attr in CALLS
                ) or any(keyword.arg == "pattern" for keyword in node.keywords):
                    yield path, node


def pattern_of(call: ast.Call) -> tuple[Any, int] | None:
    """Return pattern and flags where they are literals."""
    keyword = next((k.value for k in call.keywords if k.arg == "pattern"), None)
    first = keyword if keyword is not None else call.args[0]
    if not isinstance(first, ast.Constant):
        return None
    flags = 0
    for argument in call.args[1:] if keyword is None else ():
        if isinstance(argument, ast.Attribute) and hasattr(re.RegexFlag, argument.attr):
            flags |= getattr(re, argument.attr)
    return first.value, flags


def literals() -> dict[str, re.Pattern[Any]]:
    found = {}
    for path, call in calls():
        literal = pattern_of(call)
        if literal is None:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else "?"
            assert (path.name, name) in OPERATOR_WRITTEN, (
                f"{path}:{call.lineno}: not a literal; test its data"
            )
            continue
        found[f"{path.relative_to(ROOT)}:{call.lineno}"] = re.compile(*literal)
    return found


LITERALS = literals()


def malice(pattern: re.Pattern[Any]) -> Iterator[Any]:
    """Yield inputs of 100 KB: runs of what the pattern speaks of, near misses, and their mixtures."""
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    atoms = [
        "a",
        "0",
        "=",
        " ",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\\",
        "\\u00",
        "/",
        "-",
        ".",
        "5 ",
        "{",
        '"',
        "\u00e9",
    ]
    atoms += re.findall(r"[A-Za-z0-9_:=/-]{2,}", source)
    atoms += ["event: a", "event: ", "12345 words", "sim-err-4", "-2024010"]
    atoms += [
        letter * (int(count) - 1) + "-" for count in re.findall(r"\{(\d{2,})", source) for letter in "a0"
    ]
    for atom in atoms:
        run = atom * (SIZE // len(atom))
        for text in (
            run,
            run + "\x00",
            "\x00" + run,
            run + "!",
            "a" + run + "\n",
            run[: SIZE // 2] + "=" * (SIZE // 2),
        ):
            yield text if isinstance(pattern.pattern, str) else text.encode("latin-1")


def slowest_s(pattern: re.Pattern[Any]) -> float:
    return max(
        best_s(ask, text)
        for text in malice(pattern)
        for ask in (pattern.search, pattern.match, pattern.fullmatch)
    )


def best_s(ask: Any, text: Any) -> float:
    """Return the CPU time of one call: the best of TRIES, as the machine has other work."""
    best = float("inf")
    for _ in range(TRIES):
        start = time.thread_time()
        ask(text)
        best = min(best, time.thread_time() - start)
        if best < BUDGET_S / 2:
            break
    return best


def test_the_product_has_the_regexes_that_this_test_looks_for() -> None:
    assert len(LITERALS) >= 15


@pytest.mark.parametrize("where", LITERALS)
def test_a_regex_takes_no_longer_than_its_input_deserves(where: str) -> None:
    assert slowest_s(LITERALS[where]) < BUDGET_S


def test_the_regexes_of_the_price_catalogue_are_as_fast() -> None:
    patterns = set(_strings(json.loads(packaged_rates()), "regex"))
    for pattern in patterns:
        assert slowest_s(re.compile(pattern)) < BUDGET_S, pattern


def test_the_globs_of_the_cards_are_as_fast() -> None:
    globs = {model for card in load_cards().values() for model in card.models if "*" in model}
    assert globs
    for glob in sorted(globs | {"*a*a*a*a*a*a*b", "a*" * 20 + "b"}):
        pattern = names.glob(glob)
        for atom in ("a", "ab", glob.replace("*", "x"), glob.split("*")[0] or "a"):
            text = (atom * (SIZE // len(atom) + 1))[:256]  # a longer name is refused before
            assert best_s(pattern.fullmatch, text) < BUDGET_S, glob


def test_a_slow_regex_would_be_found() -> None:
    assert best_s(re.compile(r"(a+)+$").fullmatch, "a" * 20 + "!") > BUDGET_S


def _strings(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key and isinstance(inner, str):
                yield inner
            else:
                yield from _strings(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)
