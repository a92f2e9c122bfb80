"""`spanbill verify` tells people and machines the same, and its exit code says it in one digit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from gateway.cli.main import app
from otel.journal.audit import KINDS
from otel.journal.lines import chain, previous_of
from tests.gateway_process import KEYS, Gateway, attributes, spans_in
from tests.journals import (
    DEAD,
    LAST,
    append,
    append_bill,
    copy_of,
    header_of,
    make_journal,
    names,
    record_id,
    reheader,
    remove,
    replace,
    resealed,
    rows,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_journal(tmp_path_factory.mktemp("sound") / "journal")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return copy_of(sound, tmp_path / "journal")


def verify(folder: Path, *options: str | Path) -> Result:
    return CliRunner().invoke(app, ["verify", "--journal", str(folder), *map(str, options)])


def machine(folder: Path, *options: str | Path) -> tuple[int, dict[str, Any]]:
    result = verify(folder, "--json", *options)
    return result.exit_code, json.loads(result.stdout)


def kinds(report: dict[str, Any]) -> dict[str, int]:
    return {kind: count for kind, count in report["counts"].items() if KINDS[kind].verdict != "note"}


def bills(folder: Path) -> list[dict[str, Any]]:
    """Return the attributes of every bill once, read independently of the audit."""
    unique = dict.fromkeys(row.raw for row in rows(folder) if row.kind == "S")
    return [attributes(span) for raw in unique for span in spans_in(json.loads(raw))]


def write_log(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


# the command


def test_a_sound_journal_is_said_to_be_complete_and_intact(folder: Path) -> None:
    result = verify(folder)
    assert result.exit_code == 0
    assert "COMPLETENESS: complete" in result.stdout
    assert "INTEGRITY: intact" in result.stdout


def test_the_sums_are_exact_and_by_status(folder: Path) -> None:
    code, report = machine(folder)
    assert code == 0
    assert report["complete"] is True
    assert report["intact"] is True
    expected: dict[str, Decimal] = {}
    counted: dict[str, int] = {}
    for bill in bills(folder):
        status = bill["billing.status"]
        counted[status] = counted.get(status, 0) + 1
        expected[status] = expected.get(status, Decimal()) + Decimal(bill.get("billing.cost.usd", "0"))
    facts = report["facts"]
    assert {k: n for k, n in facts["bills_by_status"].items() if n} == counted
    assert expected["final"] > 0
    for status, cost in expected.items():
        assert Decimal(facts["cost_usd_by_status"][status]) == cost
    shown = verify(folder).stdout
    assert f"{expected['final']} USD" in shown


def test_damage_is_one_line_with_place_and_advice_and_exit_code_1(folder: Path) -> None:
    row = next(row for row in rows(folder, DEAD) if row.n == 6)
    replace(folder, row, row.raw[:300] + b"\x1b" + row.raw[301:])
    result = verify(folder)
    assert result.exit_code == 1
    assert "COMPLETENESS: 2 breach(es)" in result.stdout
    assert "INTEGRITY: 1 breach(es)" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("damage")]
    assert f"{row.segment}:{row.offset}+{len(row.raw)}" in line
    assert line.endswith(KINDS["damage"].advice)
    assert line.count(" · ") == 2


def test_each_verdict_stands_alone(folder: Path) -> None:
    row = next(row for row in rows(folder, DEAD) if row.n == 6)
    replace(folder, row, resealed(row.raw, b'"service.name"', b'"service.nome"'))
    code, report = machine(folder)
    assert (code, report["complete"], report["intact"]) == (1, True, False)
    (folder / names(folder, LAST)[1]).unlink()
    replace(folder, row._replace(raw=resealed(row.raw, b'"service.name"', b'"service.nome"')), row.raw)
    code, report = machine(folder)
    assert (code, report["complete"], report["intact"]) == (1, False, True)


def test_what_a_line_holds_cannot_steer_the_terminal(folder: Path) -> None:
    append(folder, "P", "\\u001b[2Jid", "{}")
    result = verify(folder)
    assert result.exit_code == 1
    assert "progress_without_intent" in result.stdout
    assert "\x1b" not in result.stdout


def test_of_many_findings_the_first_hundred_are_printed_and_the_rest_counted(folder: Path) -> None:
    with (folder / names(folder, LAST)[-1]).open("ab") as file:
        file.write(b"x\n" * 150)
    lines = verify(folder).stdout.splitlines()
    assert len([line for line in lines if line.startswith("damage: its")]) == 100
    assert "damage: 50 more like these" in lines


def test_strict_makes_an_unrecovered_intent_a_breach(folder: Path) -> None:
    append(folder, "I", 500, "{}")
    assert verify(folder).exit_code == 0
    assert "note: awaiting_recovery" in verify(folder).stdout
    code, report = machine(folder, "--strict")
    assert code == 1
    assert kinds(report) == {"open_intent": 1}


@pytest.mark.parametrize("what", ["absent", "empty", "file"])
def test_a_folder_that_is_no_journal_is_not_called_sound(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "j"
    if what == "empty":
        folder.mkdir()
    elif what == "file":
        folder.write_text("")
    result = verify(folder)
    assert result.exit_code == 78
    assert str(folder) in result.stderr
    assert "complete" not in result.stdout


def test_a_log_that_is_not_there_is_said_and_nothing_is_verified(folder: Path, tmp_path: Path) -> None:
    for option in ("--collector-log", "--upstream-log", "--client-log"):
        result = verify(folder, option, tmp_path / "nothing.jsonl")
        assert result.exit_code == 78
        assert "nothing.jsonl" in result.stderr


def test_the_configured_folder_is_the_default(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gateway", "verify", "--json"],
        env={**os.environ, "SPANBILL_JOURNAL__DIRECTORY": str(folder)},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["journal"] == str(folder)
    assert run.stderr == b""


# the Collector's log


def collector_log(folder: Path, path: Path, alter: Callable[[list[str]], list[str]] = lambda x: x) -> Path:
    unique = dict.fromkeys(row.raw for row in rows(folder) if row.kind == "S")
    lines = []
    for raw in unique:
        line = json.loads(raw)
        lines.append(json.dumps({"resourceSpans": line["resourceSpans"]}) + "\n")
    path.write_text("".join(alter(lines)))
    return path


def test_a_collector_log_with_the_same_bills_agrees(folder: Path, tmp_path: Path) -> None:
    log = collector_log(folder, tmp_path / "bills.jsonl")
    assert machine(folder, "--collector-log", log)[0] == 0


def test_bills_in_one_line_and_spans_that_are_no_bills_are_understood(folder: Path, tmp_path: Path) -> None:
    def merged(lines: list[str]) -> list[str]:
        groups = [json.loads(line)["resourceSpans"][0] for line in lines]
        other = json.loads(lines[0])["resourceSpans"][0]
        other["scopeSpans"][0]["spans"][0] = {"traceId": "e" * 32, "spanId": "e" * 16, "attributes": []}
        return [json.dumps({"resourceSpans": [*groups, other]}) + "\n"]

    log = collector_log(folder, tmp_path / "bills.jsonl", merged)
    assert kinds(machine(folder, "--collector-log", log)[1]) == {}


def test_a_bill_that_the_collector_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    log = collector_log(folder, tmp_path / "bills.jsonl", lambda lines: lines[:3] + lines[4:])
    code, report = machine(folder, "--collector-log", log)
    assert code == 1
    assert kinds(report) == {"collector_missing": 1}
    bill = [row for row in rows(folder, DEAD) if row.kind == "S"][3]
    (finding,) = report["findings"]
    assert (finding["segment"], finding["offset"], finding["id"]) == (bill.segment, bill.offset, bill.id)


def test_a_bill_that_only_the_collector_has_is_named(folder: Path, tmp_path: Path) -> None:
    log = collector_log(
        folder, tmp_path / "b.jsonl", lambda x: [*x, x[0].replace('"traceId": "0', '"traceId": "f')]
    )
    code, report = machine(folder, "--collector-log", log)
    assert code == 1
    assert kinds(report) == {"collector_extra": 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{"intValue": "100"}', '{"intValue": "101"}'),
        (record_id(0), record_id(1)),
        ('"final"', '"estimated"'),
        ('{"key": "billing.cost.usd"', '{"key": "billing.coat.usd"'),
    ],
)
def test_a_bill_that_differs_at_the_collector_is_named(
    old: str, new: str, folder: Path, tmp_path: Path
) -> None:
    def alter(lines: list[str]) -> list[str]:
        assert old in lines[0]
        return [lines[0].replace(old, new), *lines[1:]]

    code, report = machine(folder, "--collector-log", collector_log(folder, tmp_path / "b.jsonl", alter))
    assert code == 1
    assert kinds(report) == {"collector_differs": 1}


def test_an_equal_bill_twice_at_the_collector_is_counted_and_a_different_one_a_breach(
    folder: Path, tmp_path: Path
) -> None:
    log = collector_log(folder, tmp_path / "a.jsonl", lambda lines: [*lines, lines[0], lines[0], lines[1]])
    code, report = machine(folder, "--collector-log", log)
    assert (code, report["counts"]) == (0, {"collector_again": 3})
    other = '{"intValue": "100"}', '{"intValue": "101"}'
    log = collector_log(folder, tmp_path / "b.jsonl", lambda lines: [*lines, lines[0].replace(*other)])
    code, report = machine(folder, "--collector-log", log)
    assert (code, report["counts"]) == (1, {"collector_differs": 1})


def test_bills_of_segments_that_retention_removed_may_stand_at_the_collector(
    folder: Path, tmp_path: Path
) -> None:
    log = collector_log(folder, tmp_path / "bills.jsonl")
    remove(folder, *names(folder, DEAD)[:2])
    code, report = machine(folder, "--collector-log", log)
    assert code == 0
    assert report["counts"]["collector_older"] == report["facts"]["removed_bills"] > 0
    extra = log.read_text().splitlines(keepends=True)[0].replace('"traceId": "0', '"traceId": "f')
    log.write_text(log.read_text() + extra)
    assert "collector_extra" in kinds(machine(folder, "--collector-log", log)[1])


BAD_TEXT = b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"\xff"}]}]}]}'


def test_a_log_line_that_cannot_be_read_is_named_and_a_torn_last_one_is_not_a_breach(
    folder: Path, tmp_path: Path
) -> None:
    log = collector_log(folder, tmp_path / "a.jsonl", lambda lines: [*lines, "not json\n"])
    code, report = machine(folder, "--collector-log", log)
    assert (code, report["counts"]) == (1, {"log_unreadable": 1})
    log.write_bytes(log.read_bytes().replace(b"not json", BAD_TEXT))
    code, report = machine(folder, "--collector-log", log)
    assert (code, report["counts"]) == (1, {"log_unreadable": 1})
    log = collector_log(folder, tmp_path / "b.jsonl", lambda lines: [*lines, lines[0][:500]])
    code, report = machine(folder, "--collector-log", log)
    assert (code, report["counts"]) == (0, {"log_torn": 1})


def test_a_collector_killed_within_a_write_leaves_a_line_in_a_line_and_both_are_told_apart(
    folder: Path, tmp_path: Path
) -> None:
    torn = collector_log(folder, tmp_path / "a.jsonl", lambda lines: [lines[0][:500], *lines])
    code, report = machine(folder, "--collector-log", torn)
    assert (code, report["counts"]) == (0, {"log_torn": 1})
    assert [(row["offset"], row["length"]) for row in report["findings"]] == [(0, 500)]
    lost = collector_log(folder, tmp_path / "b.jsonl", lambda lines: [lines[0][:500], *lines[1:]])
    code, report = machine(folder, "--collector-log", lost)
    assert (code, report["counts"]) == (1, {"log_torn": 1, "collector_missing": 1})
    joined = collector_log(folder, tmp_path / "c.jsonl", lambda lines: [lines[0][:-1], *lines[1:]])
    assert machine(folder, "--collector-log", joined)[0] == 0
    both = collector_log(folder, tmp_path / "d.jsonl", lambda lines: [lines[0][:500], lines[1][:-5] + "\n"])
    assert machine(folder, "--collector-log", both)[1]["counts"]["log_unreadable"] == 1


# the provider's log


def upstream(number: int) -> dict[str, str]:
    return {"trace_id": f"{number + 1:032x}", "parent_span_id": "d" * 16}


def test_every_call_at_the_provider_has_an_intent(folder: Path, tmp_path: Path) -> None:
    calls = [upstream(number) for number in (*range(24), *range(30, 48), 5)]
    log = write_log(tmp_path / "up.jsonl", calls)
    assert machine(folder, "--upstream-log", log)[0] == 0
    log = write_log(tmp_path / "up.jsonl", [*calls, upstream(77), upstream(77)])
    code, report = machine(folder, "--upstream-log", log)
    assert (code, report["counts"]) == (1, {"upstream_without_intent": 1})
    assert f"{78:032x}" in report["findings"][0]["what"]
    assert report["findings"][0]["segment"] == "up.jsonl"


def test_a_call_whose_intent_is_lost_is_found(folder: Path, tmp_path: Path) -> None:
    (folder / names(folder, LAST)[-1]).unlink()
    (folder / names(folder, LAST)[-1]).unlink()
    log = write_log(tmp_path / "up.jsonl", [upstream(number) for number in range(30, 48)])
    _, report = machine(folder, "--upstream-log", log)
    assert kinds(report)["upstream_without_intent"] >= 1


# the client's log


def client(number: int, ended: bool, output: int | None = None, given: int | None = None) -> dict[str, Any]:
    return {"id": record_id(number), "ended": ended, "output_tokens": output, "input_tokens": given}


CLIENT_CASES: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("ended and final", client(0, True, 0, 100), {}),
    ("ended, told nothing", client(0, True), {}),
    ("ended, told other output", client(1, True, 2, 101), {"client_differs": 1}),
    ("ended, told other input", client(1, True, 1, 100), {"client_differs": 1}),
    ("ended, told both other", client(1, True, 2, 100), {"client_differs": 2}),
    ("ended and unpriced", client(3, True), {"client_differs": 1}),
    ("ended and interrupted", client(8, True), {"client_differs": 1}),
    ("ended and unknown", client(700, True), {"client_without_bill": 1}),
    ("left, received what is billed", client(6, False, 6), {}),
    ("left, received less", client(6, False, 2), {}),
    ("left, received more", client(6, False, 7), {"client_short": 1}),
    ("left, received something unmetered", client(8, False, 1), {"client_short": 1}),
    ("left, received nothing", client(8, False), {}),
    ("left, unknown, received something", client(700, False, 1), {"client_without_bill": 1}),
    ("refused", client(700, False), {}),
]


@pytest.mark.parametrize(("name", "call", "expected"), CLIENT_CASES, ids=[case[0] for case in CLIENT_CASES])
def test_a_bill_is_held_to_what_its_client_saw(
    name: str, call: dict[str, Any], expected: dict[str, int], folder: Path, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "client.jsonl", [call])
    code, report = machine(folder, "--client-log", log)
    assert report["counts"] == expected
    assert code == (1 if expected else 0)


def test_an_estimated_bill_covers_what_was_released_up_to_its_bound(folder: Path, tmp_path: Path) -> None:
    bound = '{"key":"billing.usage.estimate.output_tokens_max","value":{"intValue":"50"}},'
    append_bill(
        folder,
        1,
        lambda text: text.replace('"final"', '"estimated"').replace(
            '"attributes":[{"key":"gen_ai', f'"attributes":[{bound}{{"key":"gen_ai'
        ),
    )
    assert machine(folder)[0] == 0
    for received, expected in ((50, {}), (51, {"client_short": 1})):
        log = write_log(tmp_path / "client.jsonl", [client(1001, False, received)])
        assert machine(folder, "--client-log", log)[1]["counts"] == expected


def test_an_answer_that_ended_for_its_client_is_no_failure_on_the_bill(folder: Path, tmp_path: Path) -> None:
    append_bill(
        folder, 1, lambda text: text.replace('{"stringValue":"ok"}', '{"stringValue":"upstream_error"}')
    )
    append_bill(
        folder, 2, lambda x: x.replace('{"stringValue":"ok"}', '{"stringValue":"client_disconnected"}')
    )
    log = write_log(tmp_path / "client.jsonl", [client(1001, True), client(1002, True)])
    code, report = machine(folder, "--client-log", log)
    assert (code, report["counts"]) == (1, {"client_differs": 1})
    assert report["findings"][0]["id"] == record_id(1001)


def test_what_a_client_received_may_wait_for_recovery_but_not_what_it_saw_end(
    folder: Path, tmp_path: Path
) -> None:
    append(folder, "I", 500, "{}")
    for ended, code in ((False, 0), (True, 1)):
        log = write_log(tmp_path / "client.jsonl", [client(500, ended, 5)])
        assert machine(folder, "--client-log", log)[0] == code


def test_a_line_of_a_log_that_says_nothing_is_named(folder: Path, tmp_path: Path) -> None:
    for option in ("--client-log", "--upstream-log"):
        log = write_log(tmp_path / "log.jsonl", [{"ended": True}])
        assert machine(folder, option, log)[1]["counts"] == {"log_unreadable": 1}


# an earlier report


def forge(folder: Path, writer: str, number: int, old: bytes, new: bytes) -> None:
    """Alter a record, and chain all that its writer wrote later again: only who kept a hash can tell."""
    chained = {row.n: row.raw for row in rows(folder, writer)}
    last = max(chained)
    chained[number] = resealed(chained[number], old, new)
    for after in range(number + 1, last + 1):
        was = b'"p":"%b"' % previous_of(chained[after]).encode()
        chained[after] = resealed(chained[after], was, b'"p":"%b"' % chain(chained[after - 1]).encode())
    for row in rows(folder, writer):
        replace(folder, row, chained[row.n])
    for name in names(folder, writer):
        header = header_of(folder, name)
        if header.n > number:
            reheader(folder, header, p=chain(chained[header.n - 1]))


def amounts(folder: Path, writer: str) -> int:
    """Return the number of the writer's first bill with a user to be swapped."""
    return next(row.n for row in rows(folder, writer) if row.kind == "S" and b'"alice"' in row.raw)


def test_a_forged_history_of_a_dead_writer_is_told_by_the_next_boot(folder: Path) -> None:
    forge(folder, DEAD, amounts(folder, DEAD), b'"alice"', b'"mallo"')
    code, report = machine(folder)
    assert (code, set(kinds(report))) == (1, {"head"})


def test_a_forged_history_of_the_newest_writer_is_told_by_an_earlier_report_only(
    folder: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier.json"
    earlier.write_text(verify(folder, "--json").stdout)
    assert machine(folder, "--heads", earlier)[0] == 0
    forge(folder, LAST, amounts(folder, LAST), b'"alice"', b'"mallo"')
    assert machine(folder)[0] == 0
    code, report = machine(folder, "--heads", earlier)
    assert (code, kinds(report)) == (1, {"head": 1})
    newest = rows(folder, LAST)[-1]
    (found,) = report["findings"]
    assert (found["segment"], found["offset"], found["record"]) == (newest.segment, newest.offset, newest.n)


def test_what_grew_since_an_earlier_report_is_sound(folder: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.json"
    earlier.write_text(verify(folder, "--json").stdout)
    append(folder, "I", 500, "{}")
    assert machine(folder, "--heads", earlier)[0] == 0


def test_the_newest_lines_taken_away_with_their_mark_are_missed_by_an_earlier_report(
    folder: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier.json"
    earlier.write_text(verify(folder, "--json").stdout)
    (folder / names(folder, LAST)[-1]).unlink()
    (folder / "writers" / LAST).unlink()
    assert machine(folder)[0] == 0
    code, report = machine(folder, "--heads", earlier)
    assert (code, kinds(report)) == (1, {"tail_missing": 1})


def test_what_retention_removed_since_an_earlier_report_is_not_missed(folder: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.json"
    earlier.write_text(verify(folder, "--json").stdout)
    remove(folder, *names(folder, DEAD))
    assert machine(folder, "--heads", earlier)[0] == 0


def test_a_file_that_is_no_earlier_report_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    result = verify(folder, "--heads", tmp_path / "other.json")
    assert result.exit_code == 78


# a real gateway


def test_a_real_gateways_folder_is_sound_in_use_after_a_kill_and_after_recovery(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    headers = {"authorization": f"Bearer {KEYS['alice']}"}
    body = {"model": "sim-slow", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    url = f"{gateway.url}/v1/chat/completions"
    with gateway, httpx.Client(headers=headers, trust_env=False, timeout=30) as client:
        for _ in range(5):
            assert client.post(url, json={**body, "model": "sim-small", "stream": False}).status_code == 200
        with client.stream("POST", url, json=body) as answer:
            next(answer.iter_bytes())
            code, report = machine(gateway.journal)
            assert (code, report["counts"]) == (0, {})
            assert report["facts"]["live_writers"] == 1
            assert report["facts"]["bills"] == 5
            assert report["facts"]["in_flight"] == 1
            gateway.kill()
    code, report = machine(gateway.journal)
    assert code == 0
    assert report["counts"].pop("torn_tail", 0) <= 1
    assert report["counts"] == {"awaiting_recovery": 1}
    with gateway:
        code, report = machine(gateway.journal, "--strict")
    assert code == 0
    assert report["facts"]["bills"] == 6
    assert report["facts"]["in_flight"] == report["facts"]["awaiting_recovery"] == 0
