"""Traces: the SERVER and attempt spans, sampled and exported the stock way; never a bill.

Spans are built once, at their end, as finished values and handed to the SDK's processor: starting and
filling a live span costs ten times as much. Everything that decides (sampler, exporter, resource, batch
sizes) is the SDK's own, read from the standard `OTEL_*` variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

TRACEPARENT_BYTES: Final = 55
_HEX: Final = frozenset(b"0123456789abcdef")


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """A valid `traceparent` of the caller: ids in lower-case hex."""

    trace_id: str
    span_id: str
    sampled: bool


def parse_traceparent(value: bytes) -> Parent | None:
    """Return the caller's trace context, or None where the header is not a valid one.

    Source: W3C Trace Context, version 00; a later version is read by the same prefix.
    """
    if len(value) < TRACEPARENT_BYTES or (
        len(value) > TRACEPARENT_BYTES and value[TRACEPARENT_BYTES] != 0x2D
    ):
        return None
    version, trace_id, span_id, flags = value[0:2], value[3:35], value[36:52], value[53:55]
    if value[2] != 0x2D or value[35] != 0x2D or value[52] != 0x2D:
        return None
    if version == b"ff" or (version == b"00" and len(value) > TRACEPARENT_BYTES):
        return None
    if not _HEX.issuperset(version + trace_id + span_id + flags):
        return None
    if trace_id == b"0" * 32 or span_id == b"0" * 16:
        return None
    return Parent(trace_id=trace_id.decode(), span_id=span_id.decode(), sampled=bool(int(flags, 16) & 1))


class Traces:
    """Where finished spans go.

    Args:
        provider: the SDK's provider; its sampler decides.
        processor: None where no exporter is configured: then nothing is built at all.
    """

    def __init__(self, provider: TracerProvider, processor: SpanProcessor | None) -> None:
        self.provider = provider
        self.enabled = processor is not None
        self._processor = processor
        self._sampler: Sampler = provider.sampler
        self._stock_sampler = _is_parent_based_always_on(provider.sampler)

    def sampled(self, trace_id: str, parent: Parent | None, name: str) -> bool:
        """Decide once per request, before the provider is called; the provider receives the same flag."""
        if not self.enabled:
            return parent.sampled if parent is not None else False
        if self._stock_sampler:
            return parent is None or parent.sampled
        context = None
        if parent is not None:
            context = set_span_in_context(
                NonRecordingSpan(_context(parent.trace_id, parent.span_id, parent.sampled))
            )
        result = self._sampler.should_sample(context, int(trace_id, 16), name, SpanKind.SERVER)
        return result.decision is Decision.RECORD_AND_SAMPLE

    def record(
        self,
        *,
        scope: InstrumentationScope,
        name: str,
        kind: SpanKind,
        trace_id: str,
        span_id: str,
        parent_span_id: str | None,
        started_unix_ns: int,
        ended_unix_ns: int,
        attributes: Mapping[str, AttributeValue],
        error: bool,
        parent_is_remote: bool = False,
    ) -> None:
        """Hand one finished, sampled span to the processor."""
        if self._processor is None:
            return
        self._processor.on_end(
            ReadableSpan(
                name=name,
                context=_context(trace_id, span_id, True, is_remote=False),
                parent=None
                if parent_span_id is None
                else _context(trace_id, parent_span_id, True, is_remote=parent_is_remote),
                resource=self.provider.resource,
                attributes=attributes,
                kind=kind,
                instrumentation_scope=scope,
                status=Status(StatusCode.ERROR) if error else Status(StatusCode.UNSET),
                start_time=started_unix_ns,
                end_time=ended_unix_ns,
            )
        )

    def close(self) -> None:
        """Flush what the processor holds; bounded by the SDK's own export timeout."""
        self.provider.shutdown()


def _context(trace_id: str, span_id: str, sampled: bool, *, is_remote: bool = True) -> SpanContext:
    return SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=is_remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT),
    )


def _is_parent_based_always_on(sampler: Sampler) -> bool:
    """Say whether this is the SDK's default sampler, whose answer needs no asking."""
    return repr(sampler.get_description()) == repr(ParentBased(ALWAYS_ON).get_description())  # type: ignore[no-untyped-call]  # the SDK's own gap


def traces_from_env(resource: Resource, *, environ: Mapping[str, str] = os.environ) -> Traces:
    """Return the trace pipeline that the standard variables describe.

    Without an OTLP endpoint, with `OTEL_TRACES_EXPORTER=none` or `OTEL_SDK_DISABLED=true` there is none;
    bills do not depend on any of the three.
    """
    provider = TracerProvider(resource=resource)
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or disabled or environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return Traces(provider, None)
    processor = BatchSpanProcessor(OTLPSpanExporter())
    provider.add_span_processor(processor)
    return Traces(provider, processor)
