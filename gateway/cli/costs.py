"""Costs and exports on the command line: the same questions as at the doors, put to the ledger directly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, TypeVar

import typer
from msgspec import UNSET
from rich.table import Table
from sqlalchemy import Connection

from gateway.api.cost_answers import CostsAnswer, Named, answer_of
from gateway.api.cost_exports import NO_PARQUET, events_question, focus_question, has_parquet, parquet_to
from gateway.api.cost_questions import GROUPINGS, STATUSES, costs_question
from gateway.api.costs import encode
from gateway.cli.printing import display, table_of
from gateway.cli.stopping import settings_or_stop, stop
from gateway.core.errors import CallerError
from gateway.ledger.events import event_of
from gateway.ledger.feed import read, token_of
from gateway.ledger.focus import Charge, RowsGone, TooManyRows, charges_of, csv_head, csv_rows, days_in
from gateway.ledger.lag import AsOf, as_of
from gateway.ledger.opening import store_at
from gateway.ledger.queries import RECORDS_MAX
from gateway.ledger.store import LedgerBroken, LedgerNewer, LedgerUnavailable, Store
from gateway.ledger.totals import StatusTotal, TooManyGroups, Total, totals_of
from otel.journal.files import Files, reason_of

T = TypeVar("T")
Params = list[tuple[str, str]]

FAULTS: Final = (LedgerUnavailable, LedgerBroken, LedgerNewer, TooManyGroups, TooManyRows, RowsGone)
WRONG_USAGE: Final = 2

export_app = typer.Typer(
    name="export", no_args_is_help=True, help="Hand bills to finance and to billing systems."
)

_From = Annotated[str | None, typer.Option("--from", help="From this day or instant on.")]
_To = Annotated[str | None, typer.Option("--to", help="Until before this day or instant.")]
_Url = Annotated[str | None, typer.Option("--ledger", help="ledger.url; the configured one by default.")]
_Many = list[str] | None


def costs(
    since: _From = None,
    until: _To = None,
    tz: Annotated[str | None, typer.Option(help="Time zone of days; UTC by default.")] = None,
    by: Annotated[_Many, typer.Option(help=f"Only this grouping: {', '.join(GROUPINGS)}.")] = None,
    api_key: Annotated[_Many, typer.Option(help="Only bills of this key; repeated: of any.")] = None,
    user: Annotated[_Many, typer.Option(help="The same for users.")] = None,
    team: Annotated[_Many, typer.Option(help="Teams; '' for bills that name none.")] = None,
    project: Annotated[_Many, typer.Option(help="Projects; '' for bills that name none.")] = None,
    provider: Annotated[_Many, typer.Option(help="Providers; '' for bills that name none.")] = None,
    model: Annotated[_Many, typer.Option(help="Models that served.")] = None,
    status: Annotated[_Many, typer.Option(help=", ".join(STATUSES))] = None,
    ledger: _Url = None,
    json: Annotated[bool, typer.Option("--json", help="What GET /v1/costs answers.")] = False,
) -> None:
    """Say what bills come to, as tables: the same as GET /v1/costs."""
    several = {
        "group_by": by,
        "api_key": api_key,
        "user": user,
        "team": team,
        "project": project,
        "provider": provider,
        "model": model,
        "status": status,
    }
    params = _given(start=since, end=until, tz=tz)
    params += [(name, value) for name, values in several.items() for value in values or ()]
    with _stopping():
        asked = costs_question(params)
        with _opened(ledger) as (store, journal):

            def work(connection: Connection) -> CostsAnswer:
                held = as_of(connection, journal, Files())
                totals = totals_of(connection, asked.dimensions, asked.filters, asked.period, asked.zone)
                return answer_of(asked, asked.filters, totals, held)

            answer = store.run(work)
    if json:
        sys.stdout.buffer.write(encode(answer) + b"\n")
        return
    statuses = [status for status in STATUSES if status in answer.total.by_status]
    sums = [(name, getattr(answer, f"by_{name}")) for name in asked.group_by]
    display(
        *[_table(name, groups, statuses) for name, groups in sums if groups is not UNSET],
        _table("total", [answer.total], statuses),
        _said(answer.as_of),
    )


def _table(name: str, groups: Any, statuses: Sequence[str]) -> Table:
    """Return the sums by one name, with the counts of those statuses that there are."""
    figures = ("requests", "USD", *statuses, "errors", "input", "output")
    table = table_of(
        "" if name == "total" else name,
        *figures,
        title=name if name == "total" else f"by {name}",
        right=figures,
    )
    for group in groups:
        label = (group.name if group.name is not None else "-") if isinstance(group, Named) else ""
        table.add_row(_visible(label), *_figures(group, statuses))
    return table


def _figures(group: Named | Total, statuses: Sequence[str]) -> list[str]:
    found: list[str] = [str(group.requests), "unknown" if group.cost_usd is None else group.cost_usd]
    for status in statuses:
        total: StatusTotal | None = group.by_status.get(status)
        found.append("" if total is None else str(total.requests))
    found.append(str(group.errors))
    return [*found, *(str(group.tokens.get(side, "")) for side in ("input", "output"))]


def _visible(text: str) -> str:
    """Return a name without what a terminal would obey."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def _said(held: AsOf) -> str:
    if held.complete:
        return f"as of {held.time}: all bills of this journal are in"
    if held.pending_bytes is None:
        return f"as of {held.time}: there is no journal here to compare with"
    return f"as of {held.time}: {held.pending_bytes} bytes of the journal are not in yet"


@export_app.command("focus")
def focus(
    out: Annotated[Path, typer.Option(help="File to write; `.parquet` makes it Parquet, else CSV.")],
    since: _From = None,
    until: _To = None,
    billing_account: Annotated[str | None, typer.Option(help="BillingAccountId.")] = None,
    ledger: _Url = None,
) -> None:
    """Write costs as a FOCUS 1.2 file, by UTC day; docs/export.md explains the columns."""
    parquet = out.suffix == ".parquet"
    if parquet and not has_parquet():
        stop(f"--out {out.name}: Parquet {NO_PARQUET}", WRONG_USAGE)
    rows = unknown = 0
    part = out.with_name(f"{out.name}.part")
    with _stopping():
        asked = focus_question(_given(start=since, end=until, billing_account=billing_account))
        with _opened(ledger) as (store, journal), part.open("wb") as file:
            add, close = _writer(file, parquet=parquet)
            held, days = store.run(lambda c: (as_of(c, journal, Files()), days_in(c, asked.period)))
            for day in days:
                charges = store.run(lambda c, of=day: charges_of(c, of, asked.account))  # type: ignore[misc]  # bound now
                add(charges)
                rows += len(charges)
                unknown += sum(
                    int(str(charge["x_Requests"]))
                    for charge in charges
                    if str(charge["x_BillStatus"]).startswith("un")
                )
            close()
        os.replace(part, out)
    print(f"{rows} rows in {out}; {unknown} requests have no known cost: see x_BillStatus", file=sys.stderr)
    print(_said(held), file=sys.stderr)


def _writer(file: BinaryIO, *, parquet: bool) -> tuple[Callable[[list[Charge]], None], Callable[[], None]]:
    """Return what takes rows, and what ends the file."""
    if parquet:
        writer = parquet_to(file)
        return writer.add, writer.close
    file.write(csv_head())
    return lambda charges: (file.write(csv_rows(charges)), None)[1], lambda: None


@export_app.command("events")
def export_events(
    shape: Annotated[str, typer.Option("--format", help="openmeter or lago.")] = "openmeter",
    subject: Annotated[str, typer.Option(help="Who is metered: user or api_key.")] = "user",
    cursor_file: Annotated[
        Path | None, typer.Option(help="Go on where this file says, and note there how far it went.")
    ] = None,
    ledger: _Url = None,
) -> None:
    """Print bills and corrections as events, one JSON object a line; what was printed may come again."""
    token = ""
    if cursor_file is not None and cursor_file.exists():
        token = cursor_file.read_text(encoding="ascii", errors="replace").strip()
    with _stopping():
        asked = events_question(_given(format=shape, subject=subject, cursor=token or None))
        with _opened(ledger) as (store, _):
            cursor, more = asked.cursor, True
            while more:  # ends with the feed
                found = store.run(lambda c, at=cursor: read(c, at, RECORDS_MAX))  # type: ignore[misc]  # bound now
                for entry in found.entries:
                    sys.stdout.buffer.write(encode(event_of(entry, asked.shape, asked.subject)) + b"\n")
                sys.stdout.buffer.flush()
                cursor, more = found.cursor, found.more
                if cursor_file is not None:  # after the events, so that none can be missed
                    part = cursor_file.with_name(f"{cursor_file.name}.part")
                    part.write_text(token_of(cursor), encoding="ascii")
                    os.replace(part, cursor_file)


def _given(**params: str | None) -> Params:
    return [(name, value) for name, value in params.items() if value is not None]


@contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except CallerError as fault:
        stop(fault.message, WRONG_USAGE)
    except FAULTS as fault:
        stop(str(fault))
    except OSError as fault:
        stop(f"{fault.filename or 'file'}: {reason_of(fault)}")


@contextmanager
def _opened(url: str | None) -> Iterator[tuple[Store, Path]]:
    settings = settings_or_stop()
    journal = settings.journal.directory
    try:
        store = store_at(settings.ledger.url.get_secret_value() if url is None else url, journal)
    except ValueError as fault:
        stop(str(fault))
    try:
        store.open()
        yield store, journal
    finally:
        store.close()
