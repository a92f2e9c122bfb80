"""Budgets: what keys, users, teams and projects may spend, and what is left of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from gateway.budgeting import configured_budgets
from gateway.budgets.desk import Desk
from gateway.budgets.overview import Overview
from gateway.budgets.shown import Changes, Fields
from gateway.budgets.spending import spending_of
from gateway.cli.printing import display, table_of
from gateway.cli.stopping import settings_or_stop, stop
from gateway.control.store import Control, control_store_at
from gateway.core.errors import SpanbillError
from gateway.settings import SettingsError
from otel.journal.files import Files

WHO: Final = "command"
PAGE: Final = 100
PAGES_MAX: Final = 1_000
COLUMNS: Final = (
    "id",
    "scope",
    "payer",
    "limit_usd",
    "period",
    "mode",
    "spent_usd",
    "reserved_usd",
    "left_usd",
)

app = typer.Typer(name="budgets", no_args_is_help=True, help=__doc__.splitlines()[0])

_Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@app.command("list")
def list_(json: _Json = False) -> None:
    """List all budgets with what is spent, reserved and left."""
    found: list[dict[str, Any]] = []
    with _desk() as desk:
        for _ in range(PAGES_MAX):
            page, more = desk.listed(lambda _: True, found[-1]["id"] if found else None, PAGE)
            found += page
            if not more:
                break
    _print(found, json)


@app.command()
def show(budget: str, json: _Json = False) -> None:
    """Show one budget, and of one for each payer apart what each has left."""
    with _desk() as desk:
        found = desk.get(budget)
    payers = found.get("payers")
    _print([found] if json or payers is None else [{**found, **payer} for payer in payers], json)


@app.command()
def create(
    budget: Annotated[str, typer.Argument(help="Its id.")],
    scope: Annotated[str, typer.Option(help="`key`, `user`, `team` or `project`.")],
    limit_usd: Annotated[str, typer.Option(help="What may be spent in a period.")],
    period: Annotated[str, typer.Option(help="`day`, `week`, `month` or `total`.")],
    payer: Annotated[str, typer.Option(help="Whose; `*` for each one apart.")] = "*",
    time_zone: Annotated[str, typer.Option(help="Where periods begin.")] = "UTC",
    mode: Annotated[str, typer.Option(help="`refuse` or `warn`.")] = "refuse",
    json: _Json = False,
) -> None:
    """Make a budget; it holds within a second."""
    fields = {
        "id": budget,
        "scope": scope,
        "limit_usd": limit_usd,
        "period": period,
        "payer": payer,
        "time_zone": time_zone,
        "mode": mode,
    }
    with _desk() as desk:
        _print([desk.create(_read(fields, Fields), WHO)], json)


@app.command("set")
def set_(
    budget: Annotated[str, typer.Argument(help="Its id.")],
    limit_usd: Annotated[str | None, typer.Option(help="What may be spent in a period.")] = None,
    period: Annotated[str | None, typer.Option(help="`day`, `week`, `month` or `total`.")] = None,
    time_zone: Annotated[str | None, typer.Option(help="Where periods begin.")] = None,
    mode: Annotated[str | None, typer.Option(help="`refuse` or `warn`.")] = None,
    json: _Json = False,
) -> None:
    """Change a budget; what is left out stays."""
    given = {"limit_usd": limit_usd, "period": period, "time_zone": time_zone, "mode": mode}
    changes = _read({name: value for name, value in given.items() if value is not None}, Changes)
    with _desk() as desk:
        _print([desk.change(budget, changes, WHO)], json)


@app.command()
def delete(budget: str) -> None:
    """Delete a budget."""
    with _desk() as desk:
        desk.remove(budget, WHO)
    print(f"deleted {budget}")


@contextmanager
def _desk() -> Iterator[Desk]:
    settings = settings_or_stop()
    directory: Path = settings.journal.directory
    ledger_url = settings.ledger.url.get_secret_value()
    try:
        control = Control(control_store_at(settings.control.url.get_secret_value(), ledger_url, directory))
        overview = Overview(control, spending_of(directory, ledger_url, Files()))
        configured = configured_budgets(settings.budgets)
    except (SettingsError, ValueError) as fault:
        stop(str(fault))
    try:
        yield Desk(control, overview, configured)
    except SpanbillError as fault:
        stop(fault.message, 2 if fault.status < 500 else 78)
    finally:
        overview.close()
        control.close()


def _read(values: dict[str, str], kind: type[msgspec.Struct]) -> Any:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as fault:
        stop(str(fault), 2)


def _print(found: list[dict[str, Any]], json: bool) -> None:
    if json:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        return
    table = table_of(*COLUMNS, right=[column for column in COLUMNS if column.endswith("_usd")])
    for one in found:
        table.add_row(*["–" if one.get(column) is None else str(one[column]) for column in COLUMNS])
    display(table)
