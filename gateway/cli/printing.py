"""Printing: tables as people read them at a terminal, and as other programs read them from a pipe.

Piped, a row is a line and nothing is cut. At a terminal a cell that is too wide is folded and never cut:
half an amount would be another amount.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Final

from rich.console import Console
from rich.table import Table

WIDTH: Final = 1_000
"""Of a table that is piped."""


def table_of(*columns: str, title: str | None = None, right: Collection[str] = ()) -> Table:
    """Return an empty table.

    Args:
        right: the columns whose cells stand at the right: numbers.
    """
    plain = not sys.stdout.isatty()
    table = Table(title=title, title_justify="left", box=None if plain else Table().box, pad_edge=not plain)
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=plain
        )
    return table


def display(*shown: Table | str, to_errors: bool = False) -> None:
    """Print tables and lines."""
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(width=width, highlight=False, markup=False, stderr=to_errors)
    for one in shown:
        console.print(one)
