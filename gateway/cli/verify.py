"""Verify: the audit of a journal folder, for people and for machines; it reads and never repairs.

What is printed is bounded: of each kind of finding the first hundred, with totals. The two verdicts are
separate: a journal can be complete and damaged, or intact and with records missing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gateway.core.money import pico_to_usd
from otel.journal.audit import KINDS, Finding, Logs, NoJournal, Report, audit_folder

WIDTH: Final = 100
VERDICTS: Final = ("completeness", "integrity")
CONTROL: Final = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
"""A damaged line may hold anything; nothing of it may steer a terminal."""


class _Earlier(msgspec.Struct, frozen=True):
    """What an earlier report, as printed with --json, says of writers' ends."""

    heads: dict[str, tuple[int, str]]


def verify_journal(
    directory: Path, logs: Logs, *, heads: Path | None = None, as_json: bool, strict: bool
) -> bool | str:
    """Audit a folder and print what was found.

    Args:
        heads: an earlier report of the same folder.

    Returns:
        Whether both verdicts hold, or why the folder (or a log) could not be read.
    """
    try:
        known = {} if heads is None else msgspec.json.decode(heads.read_bytes(), type=_Earlier).heads
        report = _audit(directory, logs, known, strict=strict)
    except NoJournal as fault:
        return str(fault)
    except ValueError as fault:
        return f"{heads} is no report of spanbill verify --json: {fault}"
    except OSError as fault:
        return f"{fault.filename or directory} cannot be read: {fault.strerror}"
    if as_json:
        sys.stdout.buffer.write(_machine(directory, report) + b"\n")
    else:
        _show(directory, report)
    return report.complete and report.intact


def _audit(directory: Path, logs: Logs, known: dict[str, tuple[int, str]], *, strict: bool) -> Report:
    """Run the audit; a bar on standard error if a person is looking."""
    console = Console(stderr=True)
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return audit_folder(directory, logs=logs, known=known, strict=strict, progress=progress)


# for machines


def _machine(directory: Path, report: Report) -> bytes:
    facts = msgspec.to_builtins(report.facts)
    facts["cost_usd_by_status"] = {
        status: pico_to_usd(pico) for status, pico in facts.pop("cost_pico_usd_by_status").items()
    }
    facts["revised_usd"] = pico_to_usd(facts.pop("revised_pico_usd"))
    facts["removed_cost_usd"] = pico_to_usd(facts.pop("removed_cost_pico_usd"))
    return msgspec.json.encode(
        {
            "journal": str(directory),
            "complete": report.complete,
            "intact": report.intact,
            "facts": facts,
            "heads": report.heads,
            "counts": report.counts,
            "findings": [
                {"verdict": finding.verdict, **msgspec.to_builtins(finding), "advice": finding.advice}
                for finding in report.findings
            ],
        }
    )


# for people


def _show(directory: Path, report: Report) -> None:
    console = Console(width=WIDTH if not sys.stdout.isatty() else None, highlight=False, markup=False)
    console.print(_table(directory, report))
    for name, holds, word in (
        ("completeness", report.complete, "complete"),
        ("integrity", report.intact, "intact"),
    ):
        breaches = report.breaches(name)  # type: ignore[arg-type]  # both are verdicts
        console.print(f"{name.upper()}: {word}" if holds else f"{name.upper()}: {breaches} breach(es)")
    for name in (*VERDICTS, "note"):
        for kind in sorted(kind for kind in report.counts if KINDS[kind].verdict == name):
            found = [finding for finding in report.findings if finding.kind == kind]
            for finding in found:
                print(_line(finding))
            if len(found) < report.counts[kind]:
                print(f"{kind}: {report.counts[kind] - len(found)} more like these")


def _line(finding: Finding) -> str:
    label = "note: " if finding.verdict == "note" else ""
    bill = f" (bill {finding.id})" if finding.id else ""
    text = f"{label}{finding.kind}: {finding.what}{bill} · {finding.where} · {finding.advice}"
    return text.translate(CONTROL)


def _table(directory: Path, report: Report) -> Table:
    facts = report.facts
    table = Table(title=f"Journal {directory}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_row("segments", str(facts.segments), f"{facts.bytes} bytes")
    table.add_row("writers", str(facts.writers), f"{facts.live_writers} running")
    table.add_row("records", str(facts.records), f"{facts.again} of them written twice, equal")
    table.add_row("intents", str(facts.intents), f"{facts.in_flight} in flight")
    table.add_row("bills", str(facts.bills), "")
    for status, count in facts.bills_by_status.items():
        cost = facts.cost_pico_usd_by_status[status]
        shown = f"{pico_to_usd(cost)} USD" if status in ("final", "estimated") or cost else "no cost"
        table.add_row(f"  {status or 'without status'}", str(count), shown)
    if facts.revisions:
        table.add_row("revisions", str(facts.revisions), f"{pico_to_usd(facts.revised_pico_usd)} USD in all")
    if facts.awaiting_recovery:
        table.add_row("awaiting recovery", str(facts.awaiting_recovery), "at the next start")
    if facts.ledger_pending:
        table.add_row("not yet in the ledger", str(facts.ledger_pending), "")
    if facts.removed_segments:
        removed = f"{facts.removed_bills} bills, {pico_to_usd(facts.removed_cost_pico_usd)} USD"
        table.add_row("removed by retention", str(facts.removed_segments), removed)
    return table
