"""Observe: what is told of each settled exchange and each refusal: metrics, one log line, sampled spans.

All of it follows from the exchange alone and may be lost with the process; the bill may not, and is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.api.correlation import Correlation
from gateway.api.inference import Refusal
from gateway.core.answered import status_of
from gateway.core.exchange import Exchange
from gateway.core.money import pico_to_usd
from gateway.logs import Lines, timestamp
from otel.metrics import Metrics
from otel.observation import Observation
from otel.server_span import record_attempt_span, record_server_span
from otel.traces import Traces


class Observer:
    """Tells metrics, log and traces.

    Args:
        lines: where the request log goes; None if it is switched off.
        usage: where a line per bill goes besides.
        errors: where a line per request that failed goes.
    """

    def __init__(
        self,
        metrics: Metrics,
        traces: Traces,
        lines: Lines | None,
        *,
        usage: Lines | None = None,
        errors: Lines | None = None,
    ) -> None:
        self._metrics = metrics
        self._traces = traces
        self._bills = [sink for sink in (lines, usage) if sink is not None]
        self._lines = lines
        self._errors = errors

    def exchange(self, exchange: Exchange, status: int) -> None:
        """Tell of a settled exchange; `status` is what the caller is answered."""
        call, reply = exchange.call, exchange.reply
        last = exchange.attempts[-1] if exchange.attempts else None
        provider = last.provider if last is not None else "none"
        cost = None if exchange.charge is None else exchange.charge.cost_pico_usd
        counts = {} if reply.usage is None else reply.usage.counts
        self._metrics.observe(
            Observation(
                api_key_id=call.identity.key_id,
                provider=provider,
                model=(reply.response_model or (last.model if last is not None else call.model)).replace(
                    "\0", "\ufffd"
                ),
                status=status_of(None if last is None else last.status, exchange.error_type),
                bill_status=exchange.status,
                latency_ns=exchange.latency_ns,
                error_type=exchange.error_type,
                cost_pico_usd=cost,
                tokens=counts,
                time_to_first_chunk_ns=exchange.time_to_first_chunk_ns,
                tried=tuple([attempt.provider for attempt in exchange.attempts])
                if len(exchange.attempts) > 1
                else (),
            )
        )
        if self._bills or (self._errors is not None and exchange.error_type is not None):
            line = _line(exchange, status, provider, cost)
            for sink in self._bills:
                sink.write(line)
            if self._errors is not None and exchange.error_type is not None:
                self._errors.write(line)
        if call.sampled and self._traces.enabled:
            self._attempts(exchange)

    def refusal(self, refusal: Refusal) -> None:
        """Tell of a request that no provider saw."""
        self._metrics.refuse(refusal.code)
        if self._lines is None and self._errors is None:
            return
        line = orjson.dumps(_refused(refusal))
        if self._lines is not None:
            self._lines.write(line)
        if self._errors is not None:
            self._errors.write(line)

    def served(
        self, scope: Mapping[str, Any], correlation: Correlation, status: int, started_ns: int, ended_ns: int
    ) -> None:
        """Record the SERVER span of one inference request; times in Unix nanoseconds."""
        record_server_span(
            self._traces,
            scope,
            trace_id=correlation.trace_id,
            span_id=correlation.server_span_id,
            parent_span_id=None if correlation.parent is None else correlation.parent.span_id,
            status=status,
            started_unix_ns=started_ns,
            ended_unix_ns=ended_ns,
        )

    def _attempts(self, exchange: Exchange) -> None:
        for number, attempt in enumerate(exchange.attempts, start=1):
            record_attempt_span(
                self._traces,
                trace_id=exchange.call.trace_id,
                span_id=attempt.span_id,
                parent_span_id=exchange.call.span_id,
                started_unix_ns=attempt.started_unix_ns,
                ended_unix_ns=attempt.ended_unix_ns,
                host=attempt.host,
                port=attempt.port,
                path=attempt.path,
                number=number,
                provider=attempt.provider,
                status=attempt.status,
                error_type=attempt.error_type,
            )


def _refused(refusal: Refusal) -> dict[str, object]:
    line: dict[str, object] = {
        "time": timestamp(refusal.started_unix_ns),
        "level": "error" if refusal.status >= 500 else "info",
        "message": "request refused",
        "request_id": refusal.correlation.record_id,
        "trace_id": refusal.correlation.trace_id,
        "path": refusal.path,
        "status": refusal.status,
        "error_type": refusal.code,
        "latency_ms": refusal.latency_ns / 1e6,
    }
    if refusal.identity is not None:
        line["user"] = refusal.identity.user_id
        line["key"] = refusal.identity.key_id
    return line


def _line(exchange: Exchange, status: int, provider: str, cost_pico_usd: int | None) -> bytes:
    call, reply = exchange.call, exchange.reply
    line: dict[str, object] = {
        "time": timestamp(exchange.ended_unix_ns),
        "level": "info" if exchange.error_type is None else "warning",
        "message": "request billed",
        "request_id": call.record_id,
        "trace_id": call.trace_id,
        "protocol": call.protocol,
        "status": status,
        "user": call.identity.user_id,
        "key": call.identity.key_id,
        "provider": provider,
        "model": call.model,
        "stream": call.stream,
        "outcome": exchange.outcome,
        "bill": exchange.status,
        "latency_ms": round(exchange.latency_ns / 1e6, 3),
    }
    if call.alias is not None:
        line["alias"] = call.alias
    if len(exchange.attempts) > 1:
        line["tried"] = [
            {"provider": one.provider, "model": one.model, "error_type": one.error_type}
            for one in exchange.attempts
        ]
    if cost_pico_usd is not None:
        line["cost_usd"] = pico_to_usd(cost_pico_usd)
    if reply.usage is not None:
        line["tokens"] = reply.usage.counts
    if exchange.error_type is not None:
        line["error_type"] = exchange.error_type
    return orjson.dumps(line)
