"""Spans made by hand are what the stock instrumentation makes; the caller's trace is continued."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, TraceIdRatioBased

from otel.server_span import record_server_span
from otel.traces import Parent, Traces, parse_traceparent, traces_from_env

TRACE, SPAN = "a" * 32, "b" * 16


def traces_with(exporter: InMemorySpanExporter, **options: Any) -> Traces:
    provider = TracerProvider(**options)
    processor = SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    return Traces(provider, processor)


def shape(span: ReadableSpan) -> tuple[Any, ...]:
    return span.name, span.kind, dict(span.attributes or {}), span.status.status_code, span.parent


@pytest.mark.parametrize("status", [200, 404, 503])
@pytest.mark.parametrize("query", ["", "?a=1"])
def test_the_server_span_is_the_one_that_the_stock_instrumentation_makes(
    monkeypatch: pytest.MonkeyPatch, status: int, query: str
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    monkeypatch.setattr(_OpenTelemetrySemanticConventionStability, "_initialized", False)
    stock, ours = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(stock))
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
    scopes: list[dict[str, Any]] = []

    @app.post("/v1/chat/completions")
    async def door() -> Response:
        return Response(status_code=status)

    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, exclude_spans=["send", "receive"])

    async def watched(scope: dict[str, Any], receive: Any, send: Any) -> None:
        scopes.append(dict(scope))
        await app(scope, receive, send)  # type: ignore[arg-type]

    async def call() -> None:
        transport = httpx.ASGITransport(watched)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway:8080") as client:
            await client.post(
                f"/v1/chat/completions{query}", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"}
            )

    asyncio.run(call())
    record_server_span(
        traces_with(ours),
        scopes[0],
        trace_id=TRACE,
        span_id="c" * 16,
        parent_span_id=SPAN,
        status=status,
        started_unix_ns=1,
        ended_unix_ns=2,
    )
    (theirs,), (mine,) = stock.get_finished_spans(), ours.get_finished_spans()
    assert shape(mine) == shape(theirs)


def test_the_default_sampler_follows_the_caller() -> None:
    traces = traces_with(InMemorySpanExporter())
    assert traces.sampled(TRACE, None, "x")
    assert traces.sampled(TRACE, Parent(trace_id=TRACE, span_id=SPAN, sampled=True), "x")
    assert not traces.sampled(TRACE, Parent(trace_id=TRACE, span_id=SPAN, sampled=False), "x")


def test_other_samplers_are_asked() -> None:
    assert not traces_with(InMemorySpanExporter(), sampler=ALWAYS_OFF).sampled(TRACE, None, "x")
    ratio = traces_with(InMemorySpanExporter(), sampler=TraceIdRatioBased(0.5))
    assert ratio.sampled("0" * 31 + "1", None, "x")
    assert not ratio.sampled("f" * 32, None, "x")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_can_be_off(environ: dict[str, str]) -> None:
    assert not traces_from_env(Resource.create(), environ=environ).enabled


@given(st.binary(max_size=80))
def test_any_header_is_read_or_refused(value: bytes) -> None:
    parsed = parse_traceparent(value)
    assert parsed is None or len(parsed.trace_id) == 32


def test_valid_headers_are_read() -> None:
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-00".encode()) == Parent(
        trace_id=TRACE, span_id=SPAN, sampled=False
    )
    assert parse_traceparent(f"01-{TRACE}-{SPAN}-01-future".encode()) is not None
    for bad in (
        f"00-{TRACE}-{SPAN}-01-x",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
    ):
        assert parse_traceparent(bad.encode()) is None
