"""Rerate: bills of a range of time rated anew, and the difference by model, user and day.

What is printed is the same with `--dry-run`, which writes nothing. Every sum says how many bills it covers
and how many of them have no cost.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gateway.assembly import book_of
from gateway.cli.printing import display, table_of
from gateway.pricing.catalogue import CatalogueError
from gateway.pricing.rates import parse_instant
from gateway.pricing.selling import Book
from gateway.rerating import AlreadyRerating, DamagedRevisions, Outcome, Selection, Sums, rerate, usd
from gateway.settings import JournalSettings, Settings
from otel.journal import Bounds, JournalUnavailable, JournalWriter
from otel.journal.segments import REVISER

COLUMNS: Final = ("bills", "revised", "no cost", "old USD", "new USD", "difference")


class CannotRerate(Exception):
    """Why nothing was rated, or not everything; the message says what to do."""


def selection_of(since: str, until: str, model: str | None, user: str | None) -> Selection:
    """Return what was asked for.

    Raises:
        ValueError: a time cannot be read, or the range is empty.
    """
    first, end = parse_instant(since), parse_instant(until)
    if first >= end:
        raise ValueError(f"--from {since} is not before --to {until}")
    return Selection(from_unix_s=first, until_unix_s=end, model=model, user=user)


def rerate_journal(
    settings: Settings, selection: Selection, *, catalog: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Rate, write unless it is a dry run, and print.

    Raises:
        CannotRerate: nothing, or not everything, was done.
    """
    journal, prices = settings.journal, settings.prices
    if catalog is not None:
        prices = prices.model_copy(update={"catalog": catalog})
    if not journal.directory.is_dir():
        raise CannotRerate(f"{journal.directory} is no folder: there is no journal")
    try:
        book = book_of(prices)
        if not dry_run:
            _as_the_gateway(journal.directory)
        outcome = _run(journal, book, selection, dry_run=dry_run)
    except (AlreadyRerating, CatalogueError) as fault:
        raise CannotRerate(str(fault)) from fault
    except DamagedRevisions as fault:
        raise CannotRerate(
            f"a revision in {fault} cannot be read, so nothing was written; see `spanbill verify`"
        ) from fault
    except JournalUnavailable as fault:
        raise CannotRerate(
            f"the journal takes no more ({fault}); what was written stays, run the command again"
        ) from fault
    except OSError as fault:
        raise CannotRerate(f"{fault.filename or journal.directory}: {fault.strerror}") from fault
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(_machine(outcome, dry_run=dry_run)) + b"\n")
    else:
        _show(outcome, dry_run=dry_run)


def _as_the_gateway(directory: Path) -> None:
    """Refuse to write what the gateway could not read: its shipper would stop at it.

    Raises:
        CannotRerate: the gateway of this folder ran as another user.
    """
    lock = directory / "lock"
    if lock.exists() and lock.stat().st_uid != os.geteuid():
        raise CannotRerate(
            f"run this as the gateway's user (id {lock.stat().st_uid}): it must read what is written"
        )


def _run(journal: JournalSettings, book: Book, selection: Selection, *, dry_run: bool) -> Outcome:
    console = Console(stderr=True)
    columns = (TextColumn("rating"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def writer() -> JournalWriter:
            return JournalWriter(
                journal.directory,
                boot=REVISER + secrets.token_hex(8),
                now_ns=time.time_ns,
                segment_id=lambda: secrets.token_hex(16),
                bounds=Bounds(
                    segment_bytes_max=journal.segment_bytes_max, free_bytes_min=journal.min_free_bytes
                ),
            )

        return asyncio.run(
            rerate(journal.directory, book, selection, None if dry_run else writer, progress=progress)
        )


# for machines


def _machine(outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "catalog": outcome.catalog,
        "read": outcome.read,
        "removed": outcome.removed,
        "damaged": outcome.damaged,
        "skipped": dict(sorted(outcome.skipped.items())),
        "status": [
            {"old": old, "new": new, "bills": bills} for (old, new), bills in sorted(outcome.status.items())
        ],
        "total": _row(outcome.total),
        **{
            name: {key: _row(sums) for key, sums in sorted(rows.items())}
            for name, rows in (
                ("by_model", outcome.by_model),
                ("by_user", outcome.by_user),
                ("by_day", outcome.by_day),
            )
        },
    }


def _row(sums: Sums) -> dict[str, Any]:
    old, new, delta = usd(sums)
    return {
        "bills": sums.bills,
        "revised": sums.revised,
        "no_cost_old": sums.without_old,
        "no_cost_new": sums.without_new,
        "old_usd": old,
        "new_usd": new,
        "delta_usd": delta,
    }


# for people


def _show(outcome: Outcome, *, dry_run: bool) -> None:
    for title, rows in (
        ("model", outcome.by_model),
        ("user", outcome.by_user),
        ("day (UTC)", outcome.by_day),
    ):
        display(_table(title, rows, outcome.total if title == "day (UTC)" else None), "")
    statuses = table_of("status", "then", "bills", right=["bills"])
    for (old, new), bills in sorted(outcome.status.items()):
        statuses.add_row(old, new, str(bills))
    display(statuses, "")
    for reason, bills in sorted(outcome.skipped.items()):
        print(f"not rated: {bills}, {reason}")
    if outcome.removed:
        print(f"not touched: {outcome.removed} bills of these days that retention has removed")
    if outcome.damaged:
        print(f"{outcome.damaged} stretches of the journal are damaged: see `spanbill verify`")
    done = "would be written: this was a dry run" if dry_run else "written"
    print(
        f"{outcome.read} bills read, {outcome.total.bills} of them selected; "
        f"{outcome.total.revised} revisions {done}; catalogue {outcome.catalog}"
    )


def _table(title: str, rows: dict[str, Sums], total: Sums | None) -> Table:
    table = table_of(title, *COLUMNS, right=COLUMNS)
    for key, sums in sorted(rows.items()):
        table.add_row(key, *_cells(sums))
    if total is not None:
        table.add_row("total", *_cells(total))
    return table


def _cells(sums: Sums) -> tuple[str, ...]:
    old, new, delta = usd(sums)
    without = str(sums.without_old)
    if sums.without_new != sums.without_old:
        without = f"{without} → {sums.without_new}"
    sign = "+" if sums.new_pico_usd > sums.old_pico_usd else ""
    return (str(sums.bills), str(sums.revised), without, old, new, sign + delta)
