"""`spanbill rerate` as an operator uses it: add a price, correct last month's, look, write, export."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from typer.testing import CliRunner, Result

from gateway.assembly import book_of
from gateway.cli.main import app
from gateway.core.usage import Usage
from gateway.settings import PricesSettings
from otel.journal.cursor import Cursor
from otel.journal.reader import Reader
from otel.journal.segments import locked
from otel.shipper import Endpoint, Shipper
from tests.conftest import ROOT
from tests.gateway_process import attributes, spans_in
from tests.journals import Book
from tests.recording.test_facts import exchange
from tests.rerating.rated_journals import lines, revisions
from tests.rerating.test_rerating import billed

OCTOBER, NOVEMBER = 1_792_000_000, 1_795_000_000
"""2026-10-14 and 2026-11-18."""
CORRECTED = """
format: spanbill-prices/1
providers:
  openai:
    models:
      - id: gpt-4o
        prices: [{from: 2026-10-01, until: 2026-11-01, rates: {input: 1.25, output: 5}}]
      - id: brand-new
        prices: [{rates: {input: 0.001/1k, output: 2}}]
"""
RANGE = ("--from", "2026-10-01", "--to", "2026-12-01")


async def make_journal(folder: Path) -> None:
    """Write eight bills: gpt-4o in two months, brand-new without a price, one without usage."""
    shipped = book_of(PricesSettings())
    chance = random.Random(1)
    requests = [
        (model, at, user)
        for at in (OCTOBER, NOVEMBER)
        for user in ("alice", "bob")
        for model in ("gpt-4o", "brand-new")
    ]
    with Book(folder, "b0") as journal:
        number = 0
        for count, (model, at, user) in enumerate(requests):
            plain = exchange(chance)
            call = msgspec.structs.replace(
                plain.call,
                model=model,
                record_id=f"01890000-0000-7000-8000-{count:012x}",
                trace_id=f"{count + 1:032x}",
                span_id=f"{count + 1:016x}",
                started_unix_ns=at * 10**9,
                identity=msgspec.structs.replace(plain.call.identity, user_id=user, team=None),
            )
            attempt = msgspec.structs.replace(plain.attempts[0], provider="openai", model=model)
            plain = msgspec.structs.replace(
                plain,
                call=call,
                attempts=(attempt,),
                ended_unix_ns=(at + 60) * 10**9,
                reply=msgspec.structs.replace(plain.reply, response_model=None),
            )
            usage = Usage(counts={"input": 1000 * (count + 1), "output": 100})
            journal.recorder.intent(call)
            number = journal.recorder.settle(billed(plain, usage, shipped))
        await journal.durable(number)


@pytest.fixture(autouse=True)
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a journal, and settings that name a catalogue file."""
    monkeypatch.chdir(tmp_path)
    for name in ("SPANBILL_CONFIG", "SPANBILL_JOURNAL__DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "prices.yaml").write_text("format: spanbill-prices/1\nproviders: {}\n")
    (tmp_path / "spanbill.yaml").write_text("prices: {catalog: prices.yaml}")
    asyncio.run(make_journal(tmp_path / "data" / "journal"))
    return tmp_path / "data" / "journal"


def spanbill(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def done(*arguments: str) -> str:
    result = spanbill(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def rerated(*more: str) -> dict[str, Any]:
    return dict(json.loads(done("rerate", *RANGE, "--json", *more)))


def row(table: str, name: str) -> list[str]:
    (found,) = [cells for line in table.splitlines() if (cells := line.split()) and cells[0] == name]
    return found


def shipped(journal: Path) -> list[dict[str, Any]]:
    """Ship all that is new to a Collector that takes it; return the attributes of what came."""
    came: list[dict[str, Any]] = []

    def take(request: httpx.Request) -> httpx.Response:
        came.extend(attributes(span) for span in spans_in(json.loads(request.content)))
        return httpx.Response(200)

    cursor = Cursor(journal / "cursors" / "otlp.json")
    with httpx.Client(transport=httpx.MockTransport(take)) as client:
        shipper = Shipper(
            Reader(journal, cursor),
            cursor,
            Endpoint(url="http://c/v1/traces", headers={}, timeout_s=1, gzip=False, certificate=None),
            quarantine=journal / "quarantine",
            client=client,
            jitter=lambda: 0.5,
        )
        shipper.step()
        cursor.save()
    return came


def test_the_operator_adds_a_price_corrects_last_month_looks_and_writes(journal: Path) -> None:
    bills = shipped(journal)
    assert len(bills) == 8
    assert rerated("--dry-run")["total"]["revised"] == 0

    Path("prices.yaml").write_text(CORRECTED)
    assert "models have a price today" in done("prices", "check")
    look = rerated("--dry-run")
    assert lines(journal, "R") == []
    assert look["by_model"]["openai/gpt-4o"] == {
        "bills": 4,
        "revised": 2,  # October's
        "no_cost_old": 0,
        "no_cost_new": 0,
        "old_usd": "0.044",  # 16,000 x 2.50 and 400 x 10 a million
        "new_usd": "0.038",
        "delta_usd": "-0.006",
    }
    assert look["by_model"]["openai/brand-new"] == {
        "bills": 4,
        "revised": 4,
        "no_cost_old": 4,
        "no_cost_new": 0,
        "old_usd": "0",
        "new_usd": "0.0208",
        "delta_usd": "0.0208",
    }
    assert look["total"]["delta_usd"] == "0.0148"
    assert {day: cells["revised"] for day, cells in look["by_day"].items()} == {
        "2026-10-14": 4,
        "2026-11-18": 2,
    }
    assert look["status"] == [
        {"old": "final", "new": "final", "bills": 4},
        {"old": "unpriced", "new": "final", "bills": 4},
    ]

    table = done("rerate", *RANGE)
    assert row(table, "openai/gpt-4o")[1:] == ["4", "2", "0", "0.044", "0.038", "-0.006"]
    assert row(table, "openai/brand-new")[1:] == ["4", "4", "4", "→", "0", "0", "0.0208", "+0.0208"]
    assert row(table, "total")[1:3] == ["8", "6"]
    assert "6 revisions written; catalogue " in table

    assert "COMPLETENESS: complete" in (said := done("verify"))
    assert "INTEGRITY: intact" in said
    assert row(said.replace("│", " "), "revisions")[1:] == ["6", "0.0148", "USD", "in", "all"]

    came = shipped(journal)
    assert sorted(one["billing.revision.of"] for one in came) == sorted(
        one["billing.revision.of"] for one in revisions(journal)
    )
    assert len(came) == 6
    written = lines(journal, "R")
    again = rerated()
    assert again["total"]["revised"] == 0
    assert again["total"]["old_usd"] == again["total"]["new_usd"] == look["total"]["new_usd"]
    assert lines(journal, "R") == written
    assert shipped(journal) == []


def told(text: str) -> str:
    """Return what is printed without what another catalogue changes: its hash."""
    return re.sub(r"catalogue [0-9a-f]{16}", "catalogue", text)


def test_the_walkthrough_of_the_docs_is_what_is_printed() -> None:
    page = (ROOT / "docs" / "prices.md").read_text(encoding="utf-8")
    walk = page[page.index("## Correct a price") : page.index("## Checked against")]
    assert CORRECTED.strip() in walk.replace("```yaml\n", "")
    Path("prices.yaml").write_text(CORRECTED)
    command = "$ spanbill rerate --from 2026-10-01 --to 2026-12-01"
    assert told(f"{command} --dry-run\n{done('rerate', *RANGE, '--dry-run')}```") in told(walk)
    for _ in range(2):
        assert told(f"{command} | tail -1\n{done('rerate', *RANGE).splitlines()[-1]}\n") in told(walk)
    said = done("verify").splitlines()
    assert "\n".join(line for line in said if "revisions" in line or ": " in line) in walk


def test_another_file_than_the_configured_one_may_be_tried(journal: Path) -> None:
    Path("other.yaml").write_text(CORRECTED)
    assert rerated("--dry-run", "--catalog", "other.yaml", "--user", "alice")["total"]["revised"] == 3
    assert rerated("--dry-run", "--model", "gpt-4o")["total"]["bills"] == 4
    assert lines(journal, "R") == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--from", "2026-10-01", "--to", "2026-10-01"), 2, "is not before"),
        (("--from", "yesterday", "--to", "2026-10-01"), 2, "no day such as"),
        ((*RANGE, "--catalog", "nowhere.yaml"), 78, "nowhere.yaml"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], code: int, said: str) -> None:
    result = spanbill("rerate", *arguments)
    assert result.exit_code == code
    assert said in result.stderr


def test_as_another_user_than_the_gateway_s_nothing_is_written(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prices.yaml").write_text(CORRECTED)
    with locked(journal):
        pass
    user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    result = spanbill("rerate", *RANGE)
    assert result.exit_code == 78
    assert f"the gateway's user (id {user - 1})" in result.stderr
    assert lines(journal, "R") == []
    assert rerated("--dry-run")["total"]["revised"] == 6


def test_a_damaged_revision_stops_the_next_one(journal: Path) -> None:
    Path("prices.yaml").write_text(CORRECTED)
    done("rerate", *RANGE)
    written = lines(journal, "R")
    (segment,) = journal.glob("*-*-*/r*.jsonl")
    data = segment.read_bytes()
    assert data.count(b"brand-new") > 1
    segment.write_bytes(data.replace(b"brand-new", b"brand-old", 1))
    Path("prices.yaml").write_text(CORRECTED.replace("output: 5", "output: 6"))
    result = spanbill("rerate", *RANGE)
    assert result.exit_code == 78
    assert segment.name in result.stderr
    assert len(lines(journal, "R")) == len(written)


def test_without_a_journal_nothing_is_made(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANBILL_JOURNAL__DIRECTORY", "elsewhere")
    result = spanbill("rerate", *RANGE)
    assert result.exit_code == 78
    assert "no journal" in result.stderr
    assert not Path("elsewhere").exists()
