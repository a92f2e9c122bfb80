"""Prices: the catalogue for operators: list, show, import, compare and check; nothing here changes a bill.

Tables for people, plain when piped, and one JSON document with `--json`. `current` is the catalogue that the
settings name, `packaged` is what ships, and a path is a catalogue file alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from gateway.assembly import book_of
from gateway.cli.printing import display, table_of
from gateway.cli.stopping import settings_or_stop, stop
from gateway.pricing import importer, litellm
from gateway.pricing.catalogue import Catalogue, CatalogueError, nothing_shipped, packaged_rates
from gateway.pricing.own import FILE_BYTES_MAX, FORMAT, exact, parse_catalogue, read_catalogue
from gateway.pricing.rates import parse_exchange, parse_instant
from gateway.pricing.views import MAIN, differences, listed, shown

LEFT_OUT_MAX: Final = 40
"""Lines of what an import left out; the total is always told."""

app = typer.Typer(no_args_is_help=True, help="The price catalogue: list, show, import, diff, check.")

At = Annotated[str | None, typer.Option(help="A day or time, such as 2026-10-01; now by default.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Which = Annotated[str, typer.Option("--catalog", help="`current`, `packaged`, or a catalogue file.")]


@app.command("list")
def list_(
    at: At = None,
    provider: Annotated[str | None, typer.Option(help="Only this section of the catalogue.")] = None,
    catalog: Which = "current",
    json: Json = False,
) -> None:
    """List what every model costs at a time, in USD per million tokens."""
    catalogue, when = _catalogue(catalog), _at(at)
    rows = list(listed(catalogue, when, provider))
    if json:
        _print({"catalog": catalogue.hash, "at_unix_s": when, "models": rows})
        return
    table = table_of("provider", "model", *MAIN, "more", "price id")
    for row in rows:
        more = len(row.rates.keys() - set(MAIN))
        cells = [row.rates.get(name, "").replace("/1M", "") for name in MAIN]
        table.add_row(row.section, row.model, *cells, str(more or ""), row.price_id)
    display(table)
    print(f"{len(rows)} models have a price; catalogue {catalogue.hash}, {catalogue.source}")


@app.command()
def show(model: str, at: At = None, catalog: Which = "current", json: Json = False) -> None:
    """Show every price of one model: `provider/model`, or a name in all providers."""
    catalogue, when = _catalogue(catalog), _at(at)
    entries = shown(catalogue, model, when)
    if json:
        _print({"catalog": catalogue.hash, "at_unix_s": when, "entries": entries})
    for entry in entries if not json else ():
        window = f", context of {entry.context_window} tokens" if entry.context_window else ""
        print(f"{entry.section}/{entry.model}{f' ({entry.name})' if entry.name else ''}{window}")
        table = table_of("price id", "valid", "in force", "dimension", "USD")
        for period in entry.periods:
            rates = list(period.rates.items()) or [("tokens", f"times {period.times or '1'}")]
            for place, (dimension, rate) in enumerate(rates):
                first = (period.price_id, period.valid, "yes" if period.in_force else "")
                table.add_row(*(first if place == 0 else ("", "", "")), dimension, rate)
        display(table)
    if not entries:
        stop(f"{model}: no price is known; `spanbill prices list` names the models that have one", 1)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="`genai-prices`, or a LiteLLM-format JSON file.")],
    out: Annotated[Path, typer.Option("--out", help="The catalogue file to write.")],
    provider: Annotated[str | None, typer.Option(help="Only this section.")] = None,
) -> None:
    """Write a catalogue file from other price data; it is checked before it replaces a file."""
    try:
        sections, left_out = _imported(source)
    except (OSError, ValueError) as fault:
        stop(f"{source}: {fault}")
    if provider is not None:
        sections = {name: section for name, section in sections.items() if name == provider}
    document = {"format": FORMAT, "source": source, "providers": sections}
    data = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    try:
        found, _ = parse_catalogue(data, str(out), {})
    except CatalogueError as fault:
        stop(str(fault))
    part = out.with_name(out.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(out)
    except OSError as fault:
        stop(f"{out}: {fault.strerror}")
    for line in left_out[:LEFT_OUT_MAX]:
        print(f"left out: {line}", file=sys.stderr)
    if len(left_out) > LEFT_OUT_MAX:
        print(f"left out: {len(left_out) - LEFT_OUT_MAX} more", file=sys.stderr)
    models = sum(len(section.models) for section in found.values())
    print(f"{out}: {models} models of {len(found)} providers; {len(left_out)} entries left out")


@app.command()
def diff(before: str, after: str, at: At = None, json: Json = False) -> None:
    """Compare two catalogues at a time: `current`, `packaged` or files; exit 1 if they differ."""
    when = _at(at)
    old, new = _catalogue(before), _catalogue(after)
    rows = list(differences(old, new, when))
    if json:
        _print({"before": old.hash, "after": new.hash, "at_unix_s": when, "differences": rows})
    else:
        table = table_of("", "provider", "model", "dimension", "before", "after")
        for row in rows:
            table.add_row(
                row.kind, row.section, row.model, row.dimension, row.before or "–", row.after or "–"
            )
        display(table)
        counts = [
            f"{sum(row.kind == kind for row in rows)} {kind}" for kind in ("added", "removed", "changed")
        ]
        print(f"{', '.join(counts)} rates; before {old.hash}, after {new.hash}")
    raise SystemExit(1 if rows else 0)


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(help="A catalogue file; the configured one by default.")
    ] = None,
) -> None:
    """Check the settings' prices, or a catalogue file, wholly; exit 78 and name every mistake."""
    settings = settings_or_stop()
    if file is not None:
        settings = settings.model_copy(
            update={"prices": settings.prices.model_copy(update={"catalog": file})}
        )
    try:
        book = book_of(settings.prices)
    except CatalogueError as fault:
        stop(str(fault))
    rows = list(listed(book.catalogue, _at(None)))
    own = settings.prices.catalog
    print(
        f"{len(rows)} models have a price today; {len(settings.prices.overrides)} overrides, "
        f"{len(book.adjustments)} adjustments, {own if own is not None else 'no'} catalogue file; "
        f"catalogue {book.catalogue.hash}"
    )


def _imported(source: str) -> tuple[dict[str, Any], list[str]]:
    """Return sections as they stand in a catalogue file, and what was left out."""
    if source == "genai-prices":
        return importer.as_sections(packaged_rates())
    path = Path(source)
    if path.stat().st_size > FILE_BYTES_MAX:
        raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
    prices = exact(path.read_bytes())
    if not isinstance(prices, dict):
        raise ValueError("the file must hold a mapping of models")  # of the file, not of the code
    return litellm.sections_of(prices)


def _catalogue(which: str) -> Catalogue:
    settings = settings_or_stop().prices
    try:
        if which == "current":
            return book_of(settings).catalogue
        if which == "packaged":
            return Catalogue(packaged_rates())
        exchange = parse_exchange(settings.exchange)
        own = read_catalogue(Path(which), exchange)
        return Catalogue(nothing_shipped(), own=own, exchange=exchange)
    except (CatalogueError, ValueError) as fault:
        stop(str(fault))


def _at(written: str | None) -> int:
    if written is None:
        return time.time_ns() // 1_000_000_000
    try:
        return parse_instant(written)
    except ValueError as fault:
        stop(f"--at: {fault}", 2)


def _print(document: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
