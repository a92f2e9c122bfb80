"""The commands say what the doors say, from the same ledger."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gateway.ledger.opening import store_at
from tests.api.cost_doors import Doors, filled
from tests.gateway_process import ROOT, Gateway


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("commands")
    journal = found / "data" / "journal"
    filled(journal, store_at("", journal), range(200))
    return found


def run(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=folder,
        env={**Gateway.clean_environment(), "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


async def doors_say(folder: Path, **params: Any) -> dict[str, Any]:
    doors = Doors(folder / "data" / "journal")
    answer = await doors.json("/v1/costs", **params)
    doors.asker.close()
    return answer


async def test_costs_as_json_are_the_doors_answer(folder: Path) -> None:
    said = json.loads(run(folder, "costs", "--json", "--tz", "Asia/Kolkata", "--user", "bob").stdout)
    answer = await doors_say(folder, tz="Asia/Kolkata", user="bob")
    for found in (said, answer):
        del found["as_of"]["time"]
    assert said == answer
    assert said["as_of"]["complete"]


async def test_costs_as_tables_name_every_group_and_every_status(folder: Path) -> None:
    printed = run(folder, "costs", "--by", "user", "--by", "day").stdout
    answer = await doors_say(folder)
    for group in answer["by_user"] + answer["by_day"]:
        assert group["name"] in printed
        assert (group["cost_usd"] or "unknown") in printed
    for status in ("final", "estimated", "unpriced", "unmetered"):
        assert status in printed
    assert "all bills of this journal are in" in printed


def test_a_wrong_option_is_said_in_one_line(folder: Path) -> None:
    done = run(folder, "costs", "--by", "colour", code=2)
    assert done.stderr.startswith("spanbill: group_by is one of")
    assert "Traceback" not in done.stderr


async def test_focus_files_are_what_costs_say(folder: Path, tmp_path: Path) -> None:
    total = Decimal((await doors_say(folder))["total"]["cost_usd"])
    run(folder, "export", "focus", "--out", str(tmp_path / "f.csv"))
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(Decimal(row["BilledCost"]) for row in rows) == total
    done = run(folder, "export", "focus", "--out", str(tmp_path / "f.parquet"))
    assert "no known cost" in done.stderr
    table = pq.read_table(tmp_path / "f.parquet")
    assert sum(table.column("BilledCost").to_pylist()) == total
    assert sorted(os.listdir(tmp_path)) == ["f.csv", "f.parquet"]


def test_events_go_on_where_the_cursor_file_says(folder: Path, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    first = run(folder, "export", "events", "--cursor-file", str(cursor)).stdout.splitlines()
    assert len({json.loads(line)["id"] for line in first}) == 200
    assert run(folder, "export", "events", "--cursor-file", str(cursor)).stdout == ""
    lago = run(folder, "export", "events", "--format", "lago").stdout.splitlines()
    assert [json.loads(line)["transaction_id"] for line in lago] == [json.loads(line)["id"] for line in first]
    cursor.write_text("nonsense")
    assert "cursor" in run(folder, "export", "events", "--cursor-file", str(cursor), code=2).stderr
