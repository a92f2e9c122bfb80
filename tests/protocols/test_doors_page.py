"""The page of the doors says of each what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.protocols import PROTOCOLS
from gateway.providers.cards import load_cards

PAGE = (Path(__file__).parents[2] / "docs" / "doors.md").read_text()
COLUMNS = ("chat_completions", "messages", "responses", "embeddings")


def rows(first: str) -> list[list[str]]:
    """Return the cells of the rows that begin with these words."""
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| {first}")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_every_door_has_its_row() -> None:
    told = {row[0].removeprefix("POST "): row[1:3] for row in rows("`POST /v1/")}
    assert told == {path: [door.name, door.operation] for path, door in PROTOCOLS.items()}


@pytest.mark.parametrize("name", list(load_cards()))
def test_every_provider_has_the_doors_of_its_card(name: str) -> None:
    ((_, *cells),) = rows(f"`{name}` |")
    told = {door for door, cell in zip(COLUMNS, cells, strict=True) if cell.startswith("yes")}
    assert told == set(load_cards()[name].doors) & set(COLUMNS)
