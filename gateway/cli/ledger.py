"""The ledger: what it holds, whether that is what the journal says, and how to make it again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gateway.cli.stopping import settings_or_stop, stop
from gateway.cli.verify import verify_journal
from gateway.core.money import pico_to_usd
from gateway.ledger.opening import store_at
from gateway.ledger.rebuilding import WouldLose, rebuild
from gateway.ledger.sqlite import SqliteStore
from gateway.ledger.store import LedgerBroken, LedgerNewer, LedgerUnavailable, Store
from gateway.ledger.summary import Summary, says, summary_of
from gateway.ledger.writing import Overtaken
from otel.journal.audit import LedgerSays, Logs
from otel.journal.files import Files, reason_of
from otel.journal.removed import UnreadableManifest
from otel.journal.segments import segments_in
from otel.journal.turn import Lock

LARGE_BYTES: Final = 256 * 1024 * 1024
"""A larger journal is worth other processes."""
PROCESSES_MAX: Final = 4
LEAD: Final = "cursors/ledger.lock"
FAULTS: Final = (LedgerUnavailable, LedgerBroken, LedgerNewer, WouldLose, UnreadableManifest, ValueError)

app = typer.Typer(name="ledger", no_args_is_help=True, help=__doc__.splitlines()[0])

_Journal = Annotated[Path | None, typer.Option("--journal", help="Folder; the configured one by default.")]
_Url = Annotated[str | None, typer.Option("--ledger", help="ledger.url; the configured one by default.")]


@app.command()
def status(
    journal: _Journal = None,
    ledger: _Url = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Say what the ledger holds of this journal, and how far it is behind."""
    directory, store = _named(journal, ledger)
    with _opened(store):
        summary = summary_of(store, directory, Files())
    if json:
        sys.stdout.buffer.write(msgspec.json.encode(_machine(store, summary)) + b"\n")
    else:
        Console(highlight=False, markup=False).print(_table(store, summary))


@app.command()
def verify(journal: _Journal = None, ledger: _Url = None) -> None:
    """Hold the ledger to the journal, bill by bill; the same as `spanbill verify --ledger`."""
    directory, store = _named(journal, ledger)
    sound = verify_journal(directory, Logs(ledger=_read(directory, store)), as_json=False, strict=False)
    if isinstance(sound, str):
        stop(sound)
    raise SystemExit(0 if sound else 1)


@app.command("rebuild")
def rebuild_(
    journal: _Journal = None,
    ledger: _Url = None,
    accept_loss: Annotated[
        bool, typer.Option(help="Go on without the bills that retention removed from the journal.")
    ] = False,
) -> None:
    """Make this journal's part of the ledger again, with the gateway stopped."""
    directory, store = _named(journal, ledger)
    lead = Lock(directory / LEAD)
    try:
        if not lead.take():
            stop("a gateway follows this journal; stop it first")
        size = sum(path.stat().st_size for path in segments_in(directory, Files()))
        with _opened(store, again=accept_loss), _bar(size) as progress:
            done = rebuild(
                directory,
                store,
                accept=accept_loss,
                processes=min(PROCESSES_MAX, os.cpu_count() or 1) if size > LARGE_BYTES else 1,
                progress=progress,
            )
    except Overtaken:
        stop("somebody else follows this journal into this ledger")
    except OSError as fault:
        stop(f"{fault.filename or directory}: {reason_of(fault)}")
    finally:
        lead.release()
    rate = round(done.bills / done.seconds) if done.seconds else 0
    print(f"{done.bills} bills in {done.seconds:.1f} s ({rate} a second)")
    if done.revisions:
        print(f"{done.revisions} revisions of them")
    if done.lost:
        print(f"{done.lost} bills are in no journal any more and are lost to this ledger")
    if done.conflicts or done.refused:
        stop(f"{done.conflicts} conflicts and {done.refused} refused bills: see the table `conflicts`")


def read_for_audit(journal: Path, url: str) -> LedgerSays:
    """Return what the ledger at a URL says of a journal; the command ends where it cannot be read."""
    try:
        return _read(journal, store_at(url, journal))
    except ValueError as fault:
        stop(str(fault))


def _read(journal: Path, store: Store) -> LedgerSays:
    with _opened(store):
        return says(store, journal, Files())


def _named(journal: Path | None, ledger: str | None) -> tuple[Path, Store]:
    settings = settings_or_stop()
    directory = journal if journal is not None else settings.journal.directory
    if not directory.is_dir():
        stop(f"{directory} is no folder")
    try:
        return directory, store_at(
            ledger if ledger is not None else settings.ledger.url.get_secret_value(), directory
        )
    except ValueError as fault:
        stop(str(fault))


@contextmanager
def _opened(store: Store, *, again: bool = False) -> Iterator[None]:
    """Open a ledger; a broken one is set aside if it is to be made `again` whatever is lost."""
    try:
        try:
            store.open()
            store.check()
        except LedgerBroken:
            if not again or not isinstance(store, SqliteStore):
                raise
            print(f"the broken ledger is now {store.set_aside()}")
            store.open()
        yield
    except FAULTS as fault:
        stop(str(fault))
    finally:
        store.close()


@contextmanager
def _bar(size: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    # Drawn as it moves and not by a thread: beside one no process can be copied.
    shown = Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, auto_refresh=False
    )
    with shown as bar:
        task = bar.add_task("", total=size)
        yield lambda done: bar.update(task, completed=done, refresh=True)


def _machine(store: Store, summary: Summary) -> Mapping[str, Any]:
    facts = msgspec.to_builtins(summary)
    facts["cost_usd_by_status"] = {
        name: pico_to_usd(pico) for name, pico in facts.pop("cost_pico_by_status").items()
    }
    return {"ledger": store.name, **facts}


def _table(store: Store, summary: Summary) -> Table:
    table = Table(title=f"Ledger {store.name}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_row("schema", summary.revision, "")
    table.add_row("size", f"{summary.bytes} bytes", "")
    table.add_row("bills of this journal", str(sum(summary.bills_by_status.values())), "")
    for name, count in summary.bills_by_status.items():
        table.add_row(f"  {name}", str(count), f"{pico_to_usd(summary.cost_pico_by_status[name])} USD")
    table.add_row("revisions of bills", str(summary.revisions), "")
    if summary.waiting:
        table.add_row("  without their bills yet", str(summary.waiting), "")
    table.add_row("behind the journal", f"{summary.pending_bytes} bytes", "")
    table.add_row("conflicts", str(summary.conflicts), "")
    table.add_row("refused", str(summary.refused), "")
    if summary.lost_bills:
        table.add_row("lost, as accepted", str(summary.lost_bills), "")
    return table
