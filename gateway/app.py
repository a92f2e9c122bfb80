"""The composition root: the only module that knows which implementation stands behind each stage.

`create_app` builds the whole gateway, or one worker of it, as an ASGI application; its lifespan takes the
journal's lock, opens the writer, starts the shipper, and closes all of it in the opposite order.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry

from gateway import __version__
from gateway.admission.gate import Gate
from gateway.admission.virtual_keys import KeyEntry
from gateway.apart import Apart, Worker, whose
from gateway.api.access import Access
from gateway.api.budgets import budgets_router
from gateway.api.correlation import Ids
from gateway.api.cost_exports import exports_router
from gateway.api.costs import Ledger, costs_router
from gateway.api.doors import Readiness, fastapi_app
from gateway.api.inference import Doors
from gateway.api.keys import keys_router
from gateway.api.observe import Observer
from gateway.api.own_key import own_key_router
from gateway.api.own_limits import own_limits_router
from gateway.api.providers import providers_router
from gateway.api.selfcheck import selfcheck_router
from gateway.api.target_metrics import TargetCollector
from gateway.api.terms import InForce
from gateway.assembly import CountOnDemand, plane_of, prices_of
from gateway.assembly_routing import chooser_of, timeouts_of
from gateway.behind import Behind
from gateway.beside import Beside
from gateway.budgeting import Budgeting
from gateway.control.plane import Plane
from gateway.inforce import Reign, checked
from gateway.limiting import Limiting
from gateway.logs import LineWriter, lines_health
from gateway.metering import tokenizer
from gateway.protocols import PROTOCOLS
from gateway.providers.httpx_transport import transport_for
from gateway.providers.simulated import SimulatedTransport
from gateway.providers.upstream import Transport
from gateway.recorder import JournalRecorder, starting
from gateway.release.relay import DrainBounds, Drains
from gateway.reloading import Reloading, Source
from gateway.settings import Settings
from gateway.siblings import Siblings
from gateway.stages import Stages
from otel.journal import Bounds, JournalWriter
from otel.journal.files import Files
from otel.journal.segments import locked
from otel.metrics import Metrics, Reading, counter, gauge
from otel.shared_metrics import PUBLISH_S, SharedMetrics
from otel.totals import WithTotals
from otel.traces import Traces, traces_from_env

log = logging.getLogger("spanbill.app")

GC_THRESHOLD: Final = 50_000
"""Allocations between young collections: p99 falls from 36 to 9 ms against the default of 700."""
SWITCH_S: Final = 0.0002
"""How long another thread may go on while a request waits for the interpreter. With Python's own 5 ms the
loop's p99 beside a thread that computes was 5 ms; with this it is 2 ms, at the same throughput."""
TEND_S: Final = 0.25
"""How often the journal is looked after beside requests: free space, a disk that failed, old segments."""
SETTLE_S: Final = 1.0
SETTLE_CHECK_S: Final = 0.01
"""How long requests that were told to stop may take to settle, and how often that is looked at."""


def create_app(
    settings: Settings,
    *,
    keys: Sequence[KeyEntry] = (),
    environ: Mapping[str, str] = os.environ,
    lines: LineWriter | None = None,
    transport: Transport | None = None,
    files: Files | None = None,
    worker: Worker | None = None,
    source: Source | None = None,
) -> Doors:
    """Build the gateway.

    Args:
        keys: virtual keys that hold while the configuration has none (the demo key).
        lines: where the request log goes.
        transport, files: instead of the configured network and the disk, for tests.
        worker: None where this process is the whole gateway, with what comes behind the journal in threads.
        source: where `settings` stand, to be followed; None where they never change.

    Raises:
        SettingsError: the configuration cannot be used.
    """
    ids = Ids()
    gate = Gate()
    alone = worker is None or worker.behind is not None
    resource = Resource.create({"service.name": environ.get("OTEL_SERVICE_NAME", "spanbill")})
    traces = traces_from_env(resource, environ=environ)
    inforce = InForce()
    plane = plane_of(settings)
    found = checked(settings, environ, stored=plane.stored, keys=keys)
    access = Access(found.admin, inforce.holder)
    files = files or Files()
    writer = JournalWriter(
        settings.journal.directory,
        boot=secrets.token_hex(8),
        worker=0 if worker is None else worker.number,
        now_ns=time.time_ns,
        segment_id=lambda: secrets.token_hex(16),
        durability=settings.journal.durability,
        bounds=Bounds(
            segment_bytes_max=settings.journal.segment_bytes_max,
            free_bytes_min=settings.journal.min_free_bytes,
        ),
        files=files,
    )
    recorder = JournalRecorder(
        writer,
        {str(k): str(v) for k, v in resource.attributes.items()},
        settings.telemetry.cache_write_name,
    )
    chooser = chooser_of(settings, random.random)
    beside = Beside(settings, files, operator=access.operator_in)
    behind = Behind(settings, files, environ)
    ledger = Ledger(beside.asker, settings.journal.directory, files)
    metrics = Metrics(
        lambda: [
            *_own_health(writer, lines),
            *behind.health(),
            *beside.health(),
            *plane.health(),
            *limiting.health(),
            *budgeting.health(),
            *(reloading.health() if reloading is not None else ()),
        ]
    )
    limiting = Limiting(settings, metrics.limit)
    budgeting = Budgeting(settings, files, writer)
    shared = None
    if worker is not None:
        shared = SharedMetrics(
            metrics, worker.board, worker.number, time.monotonic, writer.name, behind.totals
        )
    registry = CollectorRegistry()
    counters = shared or WithTotals(metrics, writer.name, behind.totals)
    registry.register(counters)
    registry.register(budgeting.collector)
    registry.register(TargetCollector(lambda: chooser.standings(time.monotonic_ns())))
    observer = Observer(
        metrics,
        traces,
        lines if settings.logging.requests else None,
        usage=beside.usage,
        errors=beside.errors,
    )
    network = transport or transport_for(settings.upstream.transport)
    simulated = None if transport is not None else SimulatedTransport()
    stages = Stages(
        transport=network,
        recorder=recorder,
        prices=prices_of(found.book),
        observe=observer.exchange,
        span_id=ids.span_id,
        now_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
        timeouts=timeouts_of(settings.upstream),
        drains=Drains(
            DrainBounds(
                duration_ns=round(settings.upstream.drain_s * 1e9),
                bytes_max=settings.upstream.drain_bytes_max,
                count_max=settings.upstream.drains_max,
            )
        ),
        reply_bytes_max=settings.upstream.max_reply_bytes,
        tokenizer=settings.estimates.tokenizer,
        count=CountOnDemand(tokenizer.load) if settings.estimates.tokenizer != "none" else lambda _: None,
        chooser=chooser,
        toss=random.random,
        pause=asyncio.sleep,
    )
    reign = Reign(inforce, stages, chooser, limiting, budgeting, network, simulated)
    reign.begin(found)

    async def take(changed: Settings) -> None:
        await reign.take(await asyncio.to_thread(checked, changed, environ, stored=plane.stored, keys=keys))

    reloading = None if source is None else Reloading(source, take, metrics.reload, looks=alone)
    doors = fastapi_app(
        version=__version__,
        ids=ids,
        tracer_provider=traces.provider,
        registry=registry,
        holder=inforce.holder,
        models=lambda: inforce.terms.models(),
        ready=lambda: _readiness(writer, gate),
        protocols=PROTOCOLS,
        routers=[
            own_key_router(access),
            own_limits_router(access, lambda: inforce.terms.limits),
            keys_router(access, plane.keys),
            selfcheck_router(access, beside.check(behind.cursor, counters.whole).check),
            costs_router(access, ledger),
            exports_router(access, ledger),
            budgets_router(access, budgeting.desk),
            providers_router(
                access,
                lambda: inforce.terms.providers,
                lambda: chooser.standings(time.monotonic_ns()),
            ),
        ],
        lifespan=_lifespan(
            settings.journal.directory,
            writer,
            Siblings(settings.journal.directory, files, writer, recorder, inforce.prices, observer.exchange),
            gate,
            beside,
            whose(behind, worker),
            plane,
            limiting,
            budgeting,
            [network] if simulated is None else [network, simulated],
            traces,
            shared,
            reloading,
            alone=alone,
        ),
    )
    app = Doors(
        behind=doors,
        protocols=PROTOCOLS,
        inforce=inforce,
        ids=ids,
        traces=traces,
        body_bytes_max=settings.server.max_body_bytes,
        gate=gate,
        refused=observer.refusal,
        served=observer.served,
        captures=beside.captures,
    )
    app.reload = None if reloading is None else reloading.ask
    return app


def _readiness(writer: JournalWriter, gate: Gate) -> Readiness:
    fault = writer.fault
    return Readiness(
        ready=fault is None and not gate.closed,
        checks={"journal": fault or "ok", "admission": "stopping" if gate.closed else "ok"},
    )


def _own_health(writer: JournalWriter, lines: LineWriter | None) -> Iterable[Reading]:
    yield counter("llm_gateway_journal_records", "Records written, intents included.", writer.number)
    yield counter("llm_gateway_journal_bytes", "Bytes written to the journal.", writer.bytes_written)
    yield counter("llm_gateway_journal_syncs", "Syncs of the journal.", writer.syncs)
    writable = int(writer.fault is None)
    yield gauge("llm_gateway_journal_writable", "1 while bills can be written.", writable, least=True)
    yield gauge("llm_gateway_workers", "Workers that serve.", 1)
    if lines is not None:
        yield from lines_health(lines)


def _lifespan(
    directory: Path,
    writer: JournalWriter,
    siblings: Siblings,
    gate: Gate,
    beside: Beside,
    behind: Behind | Apart | None,
    plane: Plane,
    limiting: Limiting,
    budgeting: Budgeting,
    transports: Sequence[Transport],
    traces: Traces,
    shared: SharedMetrics | None,
    reloading: Reloading | None,
    *,
    alone: bool,
) -> Callable[[FastAPI], Any]:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(plane.start)
        with contextlib.ExitStack() as held:
            with starting(directory):
                if alone:
                    held.enter_context(locked(directory))
                await siblings.start()
            await limiting.start()
            tasks = [asyncio.create_task(_tend(writer))]
            if shared is not None and not alone:
                tasks += [asyncio.create_task(siblings.watch()), asyncio.create_task(_publish(shared))]
            beside.start()
            if behind is not None:
                behind.start()
            await budgeting.start()
            if reloading is not None:
                tasks.append(asyncio.create_task(reloading.run()))
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD, 20, 20)
            sys.setswitchinterval(SWITCH_S)
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await _emptied(gate)
                limiting.stop()
                writer.close()
                if writer.fault is not None:
                    log.error(
                        "bills could not be written; the next start writes them, as interrupted",
                        extra={"journal": str(directory), "why": writer.fault},
                    )
                if behind is not None:
                    behind.stop()
                beside.stop()
                await asyncio.to_thread(plane.stop)
                await budgeting.stop()
                if shared is not None:
                    shared.publish()
                for transport in transports:
                    await transport.aclose()
                traces.close()

    return lifespan


async def _emptied(gate: Gate) -> None:
    """Wait for requests that were told to stop: each one settles its bill before the journal closes."""
    for _ in range(round(SETTLE_S / SETTLE_CHECK_S)):
        if gate.inside == 0:
            return
        await asyncio.sleep(SETTLE_CHECK_S)


async def _tend(writer: JournalWriter) -> None:
    refused = False
    while True:  # ends with the gateway
        await asyncio.sleep(TEND_S)
        writer.tend()
        if writer.fault is not None and not refused:
            log.error("bills cannot be written; new requests are refused", extra={"why": writer.fault})
        elif writer.fault is None and refused:
            log.warning("bills can be written again; requests are served")
        refused = writer.fault is not None


async def _publish(shared: SharedMetrics) -> None:
    while True:  # ends with the gateway
        shared.tend()
        await asyncio.sleep(PUBLISH_S)
