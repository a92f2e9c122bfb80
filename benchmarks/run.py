"""`make bench`: the gateway beside a direct call and a bare, tuned reverse proxy in Go, in one run.

The gateway and the proxy each have one core; the mock provider and the load share the others, with the
process behind the gateway's journal, whose processor time is printed, too. Rounds are interleaved and medians
printed, because ratios within one run hold better than absolute figures. Every reply is checked, and after
each run the journal must hold exactly one bill per answer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.contenders import (  # noqa: E402  # after the path is set
    GATEWAY_CORE,
    OTHER_CORES,
    TOOL,
    GatewayUnderTest,
    free_port,
    load,
    paused,
    resumed,
    running,
)
from deploy.stack import wait_until  # noqa: E402

CONNECTIONS: Final = 64
RATE: Final = 200
OPEN_STREAMS: Final = 1000
console = Console(width=150)


def build() -> None:
    """Build the load tool; it is small."""
    if shutil.which("go") is None:
        raise SystemExit("make bench needs Go, for the reverse proxy to compare with and for the load")
    TOOL.parent.mkdir(exist_ok=True)
    subprocess.run(["go", "build", "-o", str(TOOL), "."], cwd=ROOT / "benchmarks" / "loadtool", check=True)


def measure(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Return one row per contender."""
    rows: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        mock_port, proxy_port = free_port(), free_port()
        stack.enter_context(running([str(TOOL), "mock", f"-listen=127.0.0.1:{mock_port}"], OTHER_CORES))
        proxy = stack.enter_context(
            running(
                [
                    str(TOOL),
                    "proxy",
                    f"-listen=127.0.0.1:{proxy_port}",
                    f"-target=http://127.0.0.1:{mock_port}",
                ],
                GATEWAY_CORE,
                stderr=subprocess.DEVNULL,
            )
        )
        group = GatewayUnderTest(stack, mock_port, "group")
        process = GatewayUnderTest(stack, mock_port, "process")
        contenders: list[tuple[str, int, tuple[int, ...], GatewayUnderTest | None]] = [
            ("direct", mock_port, (), None),
            ("Go reverse proxy", proxy_port, (proxy.pid,), None),
            ("Spanbill, journal `group`", group.port, group.pids, group),
            ("Spanbill, journal `process`", process.port, process.pids, process),
        ]
        for _, _, own, _ in contenders:
            paused(own)
        for turn in range(rounds):
            for name, port, own, gateway in contenders:
                console.print(f"round {turn + 1} of {rounds}: {name}", style="dim")
                resumed(own)
                cells = rows.setdefault(name, {})
                one_round(cells, port, seconds, gateway)
                paused(own)
        for _, _, own, gateway in contenders:
            resumed(own)
            if gateway is not None:
                gateway.check()
    return [
        {"name": name, **{column: statistics.median(values) for column, values in cells.items()}}
        for name, cells in rows.items()
    ]


def one_round(
    cells: dict[str, list[float]], port: int, seconds: float, gateway: GatewayUnderTest | None
) -> None:
    def note(column: str, value: float) -> None:
        cells.setdefault(column, []).append(value)

    before = gateway.cpu_s() if gateway else 0.0
    whole = load(port, seconds, connections=CONNECTIONS)
    if gateway:
        note("cpu_us", (gateway.cpu_s() - before) / whole["requests"] * 1e6)
    note("requests_per_s", whole["per_second"])
    streams = load(port, seconds, connections=CONNECTIONS, stream=True)
    note("chunks_per_s", streams["chunks_per_second"])
    paced = load(port, seconds, connections=CONNECTIONS, rate=RATE)
    note("p50_ms", paced["p50_ms"])
    note("p99_ms", paced["p99_ms"])
    first = load(port, seconds, connections=CONNECTIONS, rate=RATE, stream=True)
    note("first_p50_ms", first["first_p50_ms"])
    note("first_p99_ms", first["first_p99_ms"])
    if gateway:
        gateway.answered += int(sum(r["requests"] for r in (whole, streams, paced, first)))


def losses(seconds: float, slices: int) -> tuple[list[dict[str, Any]], float]:
    """Return what journal and ledger cost, each as shares of a run without, by many short runs in turns.

    And the processor time of a bill in the process behind the journal, its start included, in us.

    Within a slice all run seconds apart, so that a busy machine bends a slice and hardly a share; the order
    changes with each slice. A share is a median, with its quartiles; the processor time of a request or
    stream, in us, is that of all slices together, and hardly depends on what else the machine does. Where
    others want the gateway's core too, its share of that time is the better figure: a second thread, as
    the one that syncs, is given more of a core than one alone. All of them make and encode their bills: that
    is no cost of the journal.
    """
    with ExitStack() as stack:
        mock_port = free_port()
        stack.enter_context(running([str(TOOL), "mock", f"-listen=127.0.0.1:{mock_port}"], OTHER_CORES))
        gateways = {
            name: GatewayUnderTest(stack, mock_port, durability, mode)
            for name, durability, mode in (
                ("neither", "process", "neither"),
                ("group", "group", "journal"),
                ("process", "process", "journal"),
                ("ledger", "group", None),
            )
        }
        order = list(gateways)
        rates: dict[tuple[str, str], list[float]] = {}
        used: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for gateway in gateways.values():
            paused(gateway.pids)
        for turn in range(-1, slices):  # the first is to warm up
            console.print(f"slice {turn + 1} of {slices}: what durability costs", style="dim")
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                gateway = gateways[name]
                resumed(gateway.pids)
                for what, rate in (("requests", "per_second"), ("chunks", "chunks_per_second")):
                    before = gateway.cpu_s()
                    done = load(gateway.port, seconds, connections=CONNECTIONS, stream=what == "chunks")
                    gateway.answered += int(done["requests"])
                    if turn >= 0:
                        rates.setdefault((name, what), []).append(done[rate])
                        cpu_s = gateway.cpu_s() - before
                        used.setdefault((name, what), []).append((cpu_s, done["requests"]))
                paused(gateway.pids)
        for gateway in gateways.values():
            resumed(gateway.pids)
            gateway.check()
        followed = gateways["ledger"]
        followed.caught_up()
        behind_us = followed.behind_cpu_s() / followed.answered * 1e6
    rows = []
    for name, beside in (("group", "neither"), ("process", "neither"), ("ledger", "group")):
        for what in ("requests", "chunks"):
            pairs = zip(rates[name, what], rates[beside, what], strict=True)
            low, share, high = statistics.quantiles([1 - own / other for own, other in pairs], n=4)
            cpu_us, beside_us = (
                sum(cpu_s for cpu_s, _ in used[who, what]) / sum(count for _, count in used[who, what]) * 1e6
                for who in (name, beside)
            )
            row = {"of": name, "what": what, "share": share, "low": low, "high": high}
            rows.append(
                {**row, "cpu_us": cpu_us, "beside_us": beside_us, "cpu_share": 1 - beside_us / cpu_us}
            )
    return rows, behind_us


def holds(seconds: float) -> list[dict[str, Any]]:
    """Return how long an answer's terminal event is held for its bill, in ms: paced, and at full load."""
    rows = []
    for durability in ("group", "process"):
        for name, options in ((f"{RATE} streams/s", {"rate": RATE}), ("full load", {})):
            with ExitStack() as stack:
                mock_port = free_port()
                stack.enter_context(
                    running([str(TOOL), "mock", f"-listen=127.0.0.1:{mock_port}"], OTHER_CORES)
                )
                gateway = GatewayUnderTest(stack, mock_port, durability, "timed")
                done = load(gateway.port, seconds, connections=CONNECTIONS, stream=True, **options)
                waits = gateway.stop()
            if len(waits) != done["requests"]:
                raise SystemExit(f"{len(waits)} waits were timed for {done['requests']} streams")
            p50, p99 = (waits[len(waits) * share // 100] / 1e6 for share in (50, 99))
            rows.append({"durability": durability, "load": name, "p50_ms": p50, "p99_ms": p99})
    return rows


def memory() -> dict[str, float]:
    """Return the gateway's memory before and with OPEN_STREAMS paced streams open."""
    with ExitStack() as stack:
        mock_port = free_port()
        mock = [str(TOOL), "mock", f"-listen=127.0.0.1:{mock_port}", "-pace=50ms"]
        stack.enter_context(running(mock, OTHER_CORES))
        gateway = GatewayUnderTest(stack, mock_port, "group")
        idle = gateway.rss_mib()
        own_mib, behind_mib = gateway.own_mib()
        holder = subprocess.Popen(
            [
                str(TOOL),
                "load",
                f"-to=127.0.0.1:{gateway.port}",
                "-stream=true",
                "-once=true",
                f"-connections={OPEN_STREAMS}",
            ],
            stdout=subprocess.PIPE,
        )
        peak = idle
        while holder.poll() is None:  # ends with the streams: 64 chunks of 50 ms
            peak = max(peak, gateway.rss_mib())
            wait_until(lambda: holder.poll() is not None, 0.1, 0.05)
        assert holder.stdout is not None
        result = json.loads(holder.stdout.read())
        if result["requests"] != OPEN_STREAMS:
            raise SystemExit(f"only {result['requests']} of {OPEN_STREAMS} streams ended well: {result}")
        gateway.answered = OPEN_STREAMS
        gateway.check()
    return {
        "idle_mib": idle,
        "own_mib": own_mib,
        "behind_mib": behind_mib,
        "open_mib": peak,
        "kib_per_stream": (peak - idle) * 1024 / OPEN_STREAMS,
    }


def rate_cards() -> dict[str, dict[str, float]]:
    """Return what pricing a request costs, ours and the genai-prices library's own runtime: us and MiB."""
    return {
        who: json.loads(
            subprocess.run(
                [sys.executable, str(ROOT / "benchmarks" / "rate_card.py"), who],
                preexec_fn=lambda: os.sched_setaffinity(0, GATEWAY_CORE),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for who in ("ours", "library")
    }


def show(
    rows: list[dict[str, Any]],
    costs: list[dict[str, Any]],
    behind_us: float,
    waits: list[dict[str, Any]],
    held: dict[str, float],
    cards: dict[str, dict[str, float]],
) -> None:
    direct, proxy = rows[0], rows[1]
    table = Table(title=f"one core each, {CONNECTIONS} connections; latency added at {RATE}/s; medians")
    for column in (
        "",
        "requests/s",
        "of proxy",
        "chunks/s",
        "of proxy",
        "added p50 / p99 ms",
        "first byte p50 / p99 ms",
        "CPU µs/request",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['requests_per_s']:,.0f}",
            f"{row['requests_per_s'] / proxy['requests_per_s']:.2f}",
            f"{row['chunks_per_s']:,.0f}",
            f"{row['chunks_per_s'] / proxy['chunks_per_s']:.2f}",
            f"{row['p50_ms'] - direct['p50_ms']:.2f} / {row['p99_ms'] - direct['p99_ms']:.2f}",
            f"{row['first_p50_ms']:.2f} / {row['first_p99_ms']:.2f}",
            f"{row['cpu_us']:.0f}" if "cpu_us" in row else "–",
        )
    console.print(table)
    for cost in costs:
        of = "following the ledger" if cost["of"] == "ledger" else f"journal `{cost['of']}`"
        console.print(
            f"{of} costs {cost['share']:.1%} of {cost['what']}/s "
            f"(half of the slices: {cost['low']:.1%} to {cost['high']:.1%}); "
            f"CPU {cost['cpu_us']:.0f} µs instead of {cost['beside_us']:.0f} µs each, "
            f"of which it is {cost['cpu_share']:.1%}"
        )
    console.print(f"the process behind the journal, on the other cores: CPU {behind_us:.0f} µs a bill")
    for wait in waits:
        console.print(
            f"hold of the terminal event, journal `{wait['durability']}`, {wait['load']}: "
            f"p50 {wait['p50_ms']:.3f} ms, p99 {wait['p99_ms']:.3f} ms"
        )
    console.print(
        f"memory: {held['idle_mib']:.0f} MiB idle, {held['own_mib']:.0f} of them not in common with the "
        f"process behind the journal, which has {held['behind_mib']:.0f} of its own; "
        f"{held['open_mib']:.0f} MiB with {OPEN_STREAMS} open streams "
        f"({held['kib_per_stream']:.0f} KiB each); every answer had its bill in the journal"
    )
    card, library = cards["ours"], cards["library"]
    console.print(
        f"rate card: {card['us']:.1f} µs a request and {card['mib']:.1f} MiB a worker "
        f"(genai-prices' own runtime: {library['us']:.0f} µs and {library['mib']:.0f} MiB)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a minute: that all of it works")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    build()
    rows = measure(*((0.7, 1) if options.quick else (3.0, 3)))
    costs, behind_us = losses(*((0.25, 4) if options.quick else (0.5, 30)))
    waits = holds(0.7 if options.quick else 3.0)
    held = memory()
    cards = rate_cards()
    show(rows, costs, behind_us, waits, held, cards)
    if options.json:
        found = {
            "rows": rows,
            "costs": costs,
            "behind_us": behind_us,
            "holds": waits,
            "memory": held,
            "rate_cards": cards,
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
