"""The audit of a world: what provider, callers and Collector know against what the journal says."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

from gateway.pipeline import PROGRESS_BYTES
from otel.journal.lines import Damage, chain, kind_of, lines_in, number_of, parse, previous_of
from otel.journal.segments import MARKS, SEGMENTS, name_of
from tests.gateway_process import attributes
from tests.simulator.world import ROOT, World
from tests.verified import verified

SLACK_TOKENS = PROGRESS_BYTES // 4
"""What may have gone out since the last progress record, at the provider's four bytes a token."""


def breaches(world: World) -> list[str]:
    """Return what is wrong, in words; empty if nothing is."""
    ledger = world.ledger
    world.disk.begin_life(None)
    bills, intents, found = _read(world)
    found += ledger.broken
    found += [f"{writer}: its mark said more than was durable" for writer in world.disk.overrun]
    if ledger.stalls:
        found.append(f"{ledger.stalls} lives hung")
    for request_id, lines in bills.items():
        if len(set(lines)) > 1:
            found.append(f"{request_id}: {len(set(lines))} different bills")
        if request_id not in intents and not _may_be_lost(world, request_id):
            found.append(f"{request_id}: a bill without its intent")
    for request_id in set(intents) - set(bills):
        found.append(f"{request_id}: an intent without its bill")
    for request_id, calls in ledger.called.items():
        if calls != 1:
            found.append(f"{request_id}: the provider was called {calls} times")
        if request_id not in bills:
            # A power loss may take an intent that was not durable yet: then nothing was released.
            if ledger.released[request_id] or not _may_be_lost(world, request_id):
                found.append(f"{request_id}: called, and no bill")
            continue
        found += _against_caller(world, request_id, _bill(bills[request_id][0]))
    found += _against_collector(world, bills)
    left = [str(path) for path in world.disk.files if path.parent.name == MARKS]
    if len(left) > 1:
        found.append(f"writers that nobody retired: {left}")
    return found + _verified(world)


def _may_be_lost(world: World, request_id: str) -> bool:
    """Say whether a power loss could take its intent, or took it from a request that called nobody."""
    return request_id in world.ledger.lost_power_after or b'"%b"' % request_id.encode() in world.disk.dropped


def _verified(world: World) -> list[str]:
    """Return what `spanbill verify` would say of the folder."""
    disk = world.disk
    paths = disk.find(ROOT, SEGMENTS)
    segments = {str(path.relative_to(ROOT)): bytes(disk.files[path].data) for path in paths}
    return verified(segments, [path.name for path in disk.files if path.parent.name == MARKS])


def _read(world: World) -> tuple[dict[str, list[bytes]], Counter[str], list[str]]:
    bills: dict[str, list[bytes]] = defaultdict(list)
    intents: Counter[str] = Counter()
    found: list[str] = []
    records: dict[str, dict[int, bytes]] = defaultdict(dict)
    for path in world.disk.find(ROOT, SEGMENTS):
        for item in lines_in(bytes(world.disk.files[path].data)):
            if isinstance(item, Damage):
                continue  # a torn line: what was in it was written again, or was never promised
            line = item[1]
            if kind_of(line) == "H":
                continue
            writer, number = name_of(path).writer, number_of(line)
            if records[writer].setdefault(number, line) != line:
                found.append(f"{path.name}: record {number} exists in two versions")
            record = parse(line)
            if record.k == "S":
                bills[record.id].append(line)
            elif record.k == "I":
                intents[record.id] += 1
    for writer, lines in records.items():
        if writer in world.disk.cut:
            continue
        numbers = sorted(lines)
        for before, after in pairwise(numbers):
            if after != before + 1:
                found.append(f"{writer}: no record between {before} and {after}")
            elif previous_of(lines[after]) != chain(lines[before] + b"\n"):
                found.append(f"{writer}: record {after} does not follow {before}")
    return bills, intents, found


def _bill(line: bytes) -> dict[str, Any]:
    (resource,) = json.loads(line)["resourceSpans"]
    ((span,),) = [scope["spans"] for scope in resource["scopeSpans"]]
    return attributes(span)


def _against_caller(world: World, request_id: str, bill: dict[str, Any]) -> list[str]:
    ledger = world.ledger
    found = []
    if bill["billing.record.id"] != request_id:
        found.append(f"{request_id}: its bill names {bill['billing.record.id']}")
    if request_id in ledger.ended:
        got = (bill["billing.status"], bill["billing.outcome"], bill.get("gen_ai.usage.output_tokens"))
        if got != ("final", "ok", ledger.reported[request_id]):
            found.append(f"{request_id}: its caller saw the end, and the bill says {got}")
    if bill["billing.status"] == "final" and "gen_ai.usage.output_tokens" in bill:
        if bill["gen_ai.usage.output_tokens"] != ledger.reported[request_id]:
            found.append(f"{request_id}: final, with another count than the provider's")
        return found
    released = ledger.released[request_id]
    most = bill.get("billing.usage.estimate.output_tokens_max", 0)
    if released > most + SLACK_TOKENS and not _progress_lost(world, request_id):
        found.append(f"{request_id}: {released} tokens released, at most {most} billed")
    if bill["billing.status"] == "unmetered" and "billing.cost.usd" in bill:
        found.append(f"{request_id}: unmetered, with a cost")
    return found


def _progress_lost(world: World, request_id: str) -> bool:
    """Progress is not waited for: a power loss may take it, or a failed sync before a crash."""
    progress = b'"k":"P","id":"%b"' % request_id.encode()
    return request_id in world.ledger.lost_power_after or progress in world.disk.dropped


def _against_collector(world: World, bills: dict[str, list[bytes]]) -> list[str]:
    found = []
    accepted: dict[str, set[bytes]] = defaultdict(set)
    for span in world.ledger.accepted:
        accepted[attributes(json.loads(span))["billing.record.id"]].add(span)
    for request_id in set(bills) ^ set(accepted):
        where = "journal" if request_id in bills else "Collector"
        found.append(f"{request_id}: only the {where} has its bill")
    for request_id, spans in accepted.items():
        if len(spans) > 1:
            found.append(f"{request_id}: the Collector has {len(spans)} different bills")
        elif request_id in bills and attributes(json.loads(next(iter(spans)))) != _bill(bills[request_id][0]):
            found.append(f"{request_id}: the Collector's bill differs from the journal's")
    return found
