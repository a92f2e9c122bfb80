"""Commands: each one reads the settings, says plainly what is wrong with them, and exits with a stated code.

Exit codes: 0 done; 1 verified, and found wanting; 2 wrong usage; 78 the configuration, the journal's folder
or the address cannot be used (EX_CONFIG).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gateway import __version__
from gateway.cli import budgets as budget_commands
from gateway.cli import ledger as ledger_commands
from gateway.cli.costs import costs, export_app
from gateway.cli.keys import app as keys
from gateway.cli.prices import app as prices
from gateway.cli.providers import app as providers
from gateway.cli.rerate import CannotRerate, rerate_journal, selection_of
from gateway.cli.serve import serve_forever
from gateway.cli.stopping import settings_or_stop, stop
from gateway.cli.verify import verify_journal
from gateway.inforce import checked
from gateway.reloading import Source, stamp_of
from gateway.settings import Settings, SettingsError, load_settings, settings_file
from otel.journal.audit import Logs

app = typer.Typer(name="spanbill", no_args_is_help=True, add_completion=False, help=__doc__.splitlines()[0])
app.add_typer(prices, name="prices")
app.add_typer(keys, name="keys")
app.add_typer(providers, name="providers")
app.add_typer(ledger_commands.app)
app.add_typer(export_app)
app.command()(costs)
app.add_typer(budget_commands.app)


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; overrides server.port.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that serve; overrides server.workers.")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    own = {
        name: value
        for name, value in (("host", host), ("port", port), ("workers", workers))
        if value is not None
    }

    def load() -> Settings:
        settings = load_settings()
        return settings.model_copy(update={"server": settings.server.model_copy(update=own)})

    path = settings_file()
    seen = stamp_of(path)
    try:
        source = Source(load(), load, path, seen)
    except SettingsError as fault:
        stop(str(fault))
    why = serve_forever(source)
    if why is not None:
        stop(why)


@app.command()
def check() -> None:
    """Check the configuration as a gateway does that is to take it over, and print it without secrets."""
    settings = settings_or_stop()
    try:
        checked(settings, os.environ)
    except SettingsError as fault:
        stop(str(fault))
    typer.echo(settings.model_dump_json(indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def verify(
    journal: Annotated[Path | None, typer.Option(help="Folder; the configured one by default.")] = None,
    collector_log: Annotated[Path | None, typer.Option(help="OTLP/JSON lines of a Collector.")] = None,
    upstream_log: Annotated[Path | None, typer.Option(help="JSON lines of calls at a provider.")] = None,
    client_log: Annotated[Path | None, typer.Option(help="JSON lines of what clients saw.")] = None,
    ledger: Annotated[str | None, typer.Option(help="URL of a ledger, as in ledger.url.")] = None,
    heads: Annotated[Path | None, typer.Option(help="An earlier report (--json), to be held to.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    strict: Annotated[bool, typer.Option(help="Intents that wait for recovery are a breach.")] = False,
) -> None:
    """Say whether the journal is complete and intact; docs/verify.md explains every finding."""
    directory = journal if journal is not None else settings_or_stop().journal.directory
    held = None if ledger is None else ledger_commands.read_for_audit(directory, ledger)
    logs = Logs(collector=collector_log, upstream=upstream_log, client=client_log, ledger=held)
    sound = verify_journal(directory, logs, heads=heads, as_json=json, strict=strict)
    if isinstance(sound, str):
        stop(sound)
    raise SystemExit(0 if sound else 1)


@app.command()
def rerate(
    since: Annotated[str, typer.Option("--from", help="Bills that ended from this day (UTC) or time on.")],
    until: Annotated[str, typer.Option("--to", help="Bills that ended before this day (UTC) or time.")],
    model: Annotated[str | None, typer.Option(help="Only bills of this model, requested or served.")] = None,
    user: Annotated[str | None, typer.Option(help="Only bills of this user.")] = None,
    catalog: Annotated[
        Path | None, typer.Option(help="Catalogue file; the configured one by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the same, write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Rate bills anew and write a revision of each that comes out otherwise; docs/prices.md shows how."""
    settings = settings_or_stop()
    try:
        selection = selection_of(since, until, model, user)
    except ValueError as fault:
        stop(str(fault), 2)
    try:
        rerate_journal(settings, selection, catalog=catalog, dry_run=dry_run, as_json=json)
    except CannotRerate as fault:
        stop(str(fault))
