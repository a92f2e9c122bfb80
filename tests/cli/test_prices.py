"""`spanbill prices` as an operator uses it: add a model, correct last month, compare, import, check."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli.main import app
from gateway.pricing.own import FORMAT
from tests.gateway_process import ROOT, Gateway

OWN = """
format: spanbill-prices/1
providers:
  openai:
    models:
      - id: gpt-4o
        prices: [{from: 2026-10-01, until: 2026-11-01, rates: {input: "1.25", output: "5"}}]
      - id: brand-new
        prices: [{rates: {input: 3 sat/1k, output: 2}}]
"""


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a settings file that names a catalogue file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPANBILL_CONFIG", raising=False)
    (tmp_path / "prices.yaml").write_text(OWN)
    (tmp_path / "spanbill.yaml").write_text("prices: {catalog: prices.yaml, exchange: {sat: '0.00065'}}")
    return tmp_path


def prices(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["prices", *arguments])


def done(*arguments: str) -> str:
    result = prices(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def row(table: str, *cells: str) -> list[str]:
    """Return the only line whose first cells are these."""
    lines = [line.split() for line in table.splitlines()]
    (found,) = [line for line in lines if tuple(line[: len(cells)]) == cells]
    return found


def test_a_list_says_what_holds_at_a_time_one_line_a_model() -> None:
    october, now = done("list", "--at", "2026-10-05"), done("list", "--at", "2026-11-05")
    assert row(october, "openai", "gpt-4o")[2:] == ["1.25", "5", "openai/gpt-4o@2026-10-01"]
    assert row(now, "openai", "gpt-4o")[2:6] == ["2.5", "1.25", "10", "2"]
    assert row(now, "openai", "brand-new")[2:] == ["1.95", "2", "openai/brand-new"]
    assert "models have a price; catalogue " in now
    only = done("list", "--provider", "anthropic", "--catalog", "packaged")
    assert "claude-opus-5" in only
    assert "gpt-4o" not in only


def test_the_documents_for_machines_say_the_same() -> None:
    listed = json.loads(done("list", "--json", "--at", "2026-10-05"))
    found = {(model["section"], model["model"]): model for model in listed["models"]}
    assert [found["openai", "gpt-4o"]] == [
        {
            "section": "openai",
            "model": "gpt-4o",
            "price_id": "openai/gpt-4o@2026-10-01",
            "rates": {"input": "1.25/1M", "output": "5/1M"},
        }
    ]
    shown = json.loads(done("show", "openai/gpt-4o", "--json", "--at", "2026-10-05"))
    assert [entry["section"] for entry in shown["entries"]] == ["openai", "openai", "openrouter"]
    assert shown["entries"][0]["periods"][0]["valid"] == "from 2026-10-01 until 2026-11-01"
    assert shown["entries"][0]["periods"][0]["in_force"] is True


def test_one_model_is_shown_with_its_tiers_and_variants() -> None:
    text = done("show", "openai/gpt-5.4", "--at", "2026-11-21")
    assert "2.5/1M, above 272000 tokens 5" in text
    assert "+service_tier=flex" in text
    assert "from 2026-10-12" in text
    assert "times 1.1" in done("show", "anthropic/claude-opus-5")


def test_an_unknown_model_is_said_to_have_no_price() -> None:
    result = prices("show", "nobody")
    assert result.exit_code == 1
    assert "no price is known" in result.stderr


def test_a_difference_is_told_rate_by_rate() -> None:
    result = prices("diff", "packaged", "current", "--at", "2026-10-05")
    assert result.exit_code == 1
    assert row(result.stdout, "changed", "openai", "gpt-4o", "input")[4:] == ["2.5/1M", "1.25/1M"]
    assert row(result.stdout, "removed", "openai", "gpt-4o", "cache_read")[4:] == ["1.25/1M", "–"]
    assert row(result.stdout, "added", "openai", "brand-new", "input")[4:] == ["–", "1.95/1M"]
    assert prices("diff", "packaged", "packaged").exit_code == 0
    document = json.loads(prices("diff", "packaged", "current", "--json", "--at", "2026-10-05").stdout)
    assert {found["kind"] for found in document["differences"]} == {"added", "removed", "changed"}


def test_an_import_writes_a_file_that_can_be_used(tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    assert "models of" in done("import", "genai-prices", "--out", str(out))
    assert json.loads(out.read_bytes())["format"] == FORMAT
    assert prices("diff", "packaged", str(out)).exit_code == 0
    source = tmp_path / "map.json"
    facts = '{"litellm_provider": "openai", "input_cost_per_token": 1e-7, "output_cost_per_image": 1}'
    source.write_text(f'{{"m": {facts}}}')
    result = prices("import", str(source), "--out", str(out))
    assert result.exit_code == 0
    assert "left out: m: output_cost_per_image" in result.stderr
    assert "1 models of 1 providers; 1 entries left out" in result.stdout
    assert row(done("list", "--catalog", str(out)), "openai", "m")[2] == "0.1"


def test_a_bad_import_replaces_nothing(tmp_path: Path) -> None:
    out, source = tmp_path / "prices.yaml", tmp_path / "map.json"
    source.write_text('{"m": {"litellm_provider": "openai", "input_cost_per_token": -1.0}}')
    result = prices("import", str(source), "--out", str(out))
    assert result.exit_code == 78
    assert out.read_text() == OWN
    source.write_text("[1]")
    assert prices("import", str(source), "--out", str(out)).exit_code == 78
    assert prices("import", str(tmp_path / "none.json"), "--out", str(out)).exit_code == 78


def test_a_check_names_every_mistake_and_serve_refuses_the_same_file(tmp_path: Path) -> None:
    assert "prices.yaml catalogue file" in done("check")
    bad = tmp_path / "bad.yaml"
    bad.write_text(OWN.replace("1.25", "x").replace("output: 2", "outputs: 2"))
    result = prices("check", str(bad))
    assert result.exit_code == 78
    assert len(result.stderr.splitlines()) == 2
    (tmp_path / "spanbill.yaml").write_text("prices: {catalog: bad.yaml, exchange: {sat: '0.00065'}}")
    started = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--port", "0"],
        env={**Gateway.clean_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode == 78
    assert "bad.yaml" in started.stderr
    (tmp_path / "spanbill.yaml").write_text("prices: {catalog: prices.yaml}")
    assert "no exchange rate for sat" in prices("check").stderr


@pytest.mark.parametrize(
    "adjustment",
    [
        {"id": "a", "kind": "discount", "percent": "101"},
        {"id": "a", "kind": "discount"},
        {"id": "a", "kind": "fee", "percent": "1"},
        {"id": "a", "kind": "fee", "amount": "1/1k"},
        {"id": "a", "kind": "markup", "percent": "1", "amount": "1"},
    ],
)
def test_an_adjustment_that_cannot_be_meant_is_refused(tmp_path: Path, adjustment: dict[str, str]) -> None:
    (tmp_path / "spanbill.yaml").write_text(json.dumps({"prices": {"adjustments": [adjustment]}}))
    result = prices("check")
    assert result.exit_code == 78
    assert "prices.adjustments: a: " in result.stderr


def test_a_time_that_is_none_is_wrong_usage() -> None:
    assert prices("list", "--at", "soon").exit_code == 2
