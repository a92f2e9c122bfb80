"""Record: an exchange becomes the billing span, and nothing else does.

A key is set only if its fact is known: absent counts stay absent, `billing.cache_hit` and
`billing.cache_write` exist only where the provider reported cache counts, and cost only where the bill is
priced. Lists of names live in `otel.schema`; an attribute that is not there cannot be written.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.charge import Charge, Line
from gateway.core.dimensions import DIMENSIONS
from gateway.core.exchange import Attempt, Call, Exchange, Reply
from gateway.core.money import PICO_PER_USD, difference_usd, factor_to_text, pico_to_usd, rate_to_usd
from gateway.core.usage import Usage
from otel.schema import BillingSpan, Value

CACHE_WRITE_OLDER_NAME: Final = "gen_ai.usage.cache_creation.input_tokens"
_COUNT_ATTRIBUTE: Final = {name: d.attribute for name, d in DIMENSIONS.items()}
_RATE_UNITS: Final = {name: 1_000_000 if d.unit == "token" else 1 for name, d in DIMENSIONS.items()}
_RATE_PER: Final = {name: "/1M" if d.unit == "token" else "/1" for name, d in DIMENSIONS.items()}
_LINE_ATTRIBUTE: Final = {name: f"billing.cost.{name}_usd" for name in DIMENSIONS}


def billing_span(exchange: Exchange, *, cache_write_name: str = "cache_write") -> BillingSpan:
    """Return the bill of `exchange`.

    Args:
        cache_write_name: `cache_write`, or `cache_creation` for readers of the older conventions.
    """
    call = exchange.call
    a: dict[str, Value] = {
        "gen_ai.operation.name": call.operation,
        "gen_ai.request.model": call.model,
        "gen_ai.request.stream": call.stream,
        "billing.record.id": call.record_id,
        "billing.status": exchange.status,
        "billing.outcome": exchange.outcome,
        "billing.protocol": call.protocol,
        "billing.attempts": len(exchange.attempts),
        "billing.latency_ms": exchange.latency_ns / 1e6,
    }
    _caller(a, call)
    if exchange.attempts:
        _attempts(a, exchange.attempts)
    _reply(a, exchange.reply)
    if exchange.time_to_first_chunk_ns is not None:
        a["gen_ai.response.time_to_first_chunk"] = exchange.time_to_first_chunk_ns / 1e9
    if exchange.error_type is not None:
        a["error.type"] = exchange.error_type
    if exchange.reply.usage is not None:
        _usage(a, exchange.reply.usage, cache_write_name)
    if exchange.charge is not None:
        _charge(a, exchange.charge, exchange.reply.usage)
    if exchange.missing_rate is not None:
        a["billing.price.missing"] = exchange.missing_rate
    if exchange.price_section is not None:
        a["billing.price.section"] = exchange.price_section
    return BillingSpan(
        trace_id=call.trace_id,
        span_id=call.span_id,
        parent_span_id=call.server_span_id,
        name=f"{call.operation} {call.model}",
        started_unix_ns=call.started_unix_ns,
        ended_unix_ns=exchange.ended_unix_ns,
        attributes=a,
        failed=exchange.error_type is not None,
    )


def _caller(a: dict[str, Value], call: Call) -> None:
    identity = call.identity
    a["billing.user.id"] = identity.user_id
    a["billing.user.source"] = identity.source
    a["billing.key.id"] = identity.key_id
    if identity.user_name is not None:
        a["billing.user.name"] = identity.user_name
    if identity.team is not None:
        a["billing.team"] = identity.team
    if identity.project is not None:
        a["billing.project"] = identity.project
    if identity.tags:
        a["billing.tags"] = identity.tags
    if call.max_tokens is not None:
        a["gen_ai.request.max_tokens"] = call.max_tokens
    if call.client_user is not None:
        a["user.id"] = call.client_user
    if call.session_id is not None:
        a["session.id"] = call.session_id
    if call.client_address is not None:
        a["client.address"] = call.client_address
    if call.client_request_id is not None:
        a["billing.client.request_id"] = call.client_request_id
    if call.capture is not msgspec.UNSET:
        a["billing.debug.capture"] = call.capture
    if call.alias is not None:
        a["billing.alias"] = call.alias
    if call.route is not None:
        a["billing.route.selector"] = call.route.selector
        a["billing.route.by"] = call.route.by
        a["billing.route.targets"] = call.route.targets
        a["billing.route.cooling"] = call.route.cooling
    for name, count in call.input_summary.items():
        a["billing.input.summary." + name] = count


def _attempts(a: dict[str, Value], attempts: tuple[Attempt, ...]) -> None:
    last = attempts[-1]
    a["gen_ai.provider.name"] = last.provider
    a["billing.target.model"] = last.model
    a["server.address"] = last.host
    a["server.port"] = last.port
    a["billing.providers_tried"] = tuple([attempt.provider for attempt in attempts])
    unsettled = sum(attempt.unsettled for attempt in attempts[:-1])
    if unsettled:
        a["billing.attempts.unsettled"] = unsettled
    if last.status is not None:
        a["billing.http.status_code"] = last.status
    if last.provider_request_id is not None:
        a["billing.provider.request_id"] = last.provider_request_id


def _reply(a: dict[str, Value], reply: Reply) -> None:
    if reply.response_model is not None:
        a["gen_ai.response.model"] = reply.response_model
    if reply.response_id is not None:
        a["gen_ai.response.id"] = reply.response_id
    if reply.finish_reasons:
        a["gen_ai.response.finish_reasons"] = reply.finish_reasons
    for name, count in reply.output_summary.items():
        a["billing.output.summary." + name] = count


def _usage(a: dict[str, Value], usage: Usage, cache_write_name: str) -> None:
    counts = usage.counts
    for name, units in counts.items():
        if name == "cache_write" and cache_write_name == "cache_creation":
            a[CACHE_WRITE_OLDER_NAME] = units
        else:
            a[_COUNT_ATTRIBUTE[name]] = units
    if "cache_read" in counts:
        a["billing.cache_hit"] = counts["cache_read"] > 0
    elif "cache_hit" in usage.qualifiers:  # said with yes or no, without a count
        a["billing.cache_hit"] = usage.qualifiers["cache_hit"] == "true"
    if "cache_write" in counts:
        a["billing.cache_write"] = counts["cache_write"] > 0
    elif "cache_write" in usage.qualifiers:
        a["billing.cache_write"] = usage.qualifiers["cache_write"] == "true"
    a["billing.usage.source"] = usage.source
    if usage.estimate is not None:
        a["billing.usage.estimate.method"] = usage.estimate.method
        for name, (least, most) in usage.estimate.bounds.items():
            a[f"billing.usage.estimate.{name}_tokens_min"] = least
            a[f"billing.usage.estimate.{name}_tokens_max"] = most
    if usage.anomalies:
        a["billing.usage.anomalies"] = usage.anomalies
    if usage.service_tier is not None:
        a["billing.service_tier"] = usage.service_tier
    if usage.qualifiers:
        a["billing.usage.qualifiers"] = tuple(
            [f"{name}={value}" for name, value in sorted(usage.qualifiers.items())]
        )
    if usage.others:
        a["billing.usage.other_models"] = tuple(
            [msgspec.json.encode(other).decode() for other in usage.others]
        )
    if usage.reported_cost_usd is not None:
        a["billing.cost.reported_usd"] = usage.reported_cost_usd


def _charge(a: dict[str, Value], charge: Charge, usage: Usage | None) -> None:
    pico = charge.cost_pico_usd
    a["billing.cost.usd"] = pico_to_usd(pico)
    a["gen_ai.usage.cost"] = pico / PICO_PER_USD
    sums: dict[str, int] = {}
    for line in charge.lines:
        name = _LINE_ATTRIBUTE[line.dimension] if line.model is None else "billing.cost.other_models_usd"
        sums[name] = sums.get(name, 0) + line.cost_pico_usd
    for adjusted in charge.adjustments:
        name = f"billing.cost.{adjusted.kind}_usd"
        sums[name] = sums.get(name, 0) + adjusted.cost_pico_usd
    for name, amount in sums.items():
        a[name] = pico_to_usd(amount)
    price_attributes(a, charge)
    if usage is not None and usage.reported_cost_usd is not None:
        a["billing.cost.reported_difference_usd"] = difference_usd(
            usage.reported_cost_usd, charge.provider_cost_pico_usd
        )


def price_attributes(a: dict[str, Value], charge: Charge) -> None:
    """Add what a bill and a revision of it have in common: lines, and whose rates they are; no amounts."""
    a["billing.cost.currency"] = "USD"
    a["billing.cost.source"] = "fallback" if charge.estimated else "local"
    a["billing.price.id"] = charge.price_id
    a["billing.price.catalog"] = charge.catalog
    if charge.tier is not None:
        a["billing.price.tier"] = charge.tier
    if charge.exchange is not None:
        a["billing.price.exchange"] = charge.exchange
    if charge.requested_price_id is not None:
        a["billing.price.requested_id"] = charge.requested_price_id
    if charge.lines:
        a["billing.cost.lines"] = tuple([_line(line) for line in charge.lines])
    if charge.adjustments:
        a["billing.cost.adjustments"] = tuple(
            [
                msgspec.json.encode(
                    {
                        "id": adjusted.id,
                        "kind": adjusted.kind,
                        **({} if adjusted.percent is None else {"percent": adjusted.percent}),
                        "usd": pico_to_usd(adjusted.cost_pico_usd),
                    }
                ).decode()
                for adjusted in charge.adjustments
            ]
        )


def _line(line: Line) -> str:
    """Return a line as JSON text; its rate is written as in a catalogue."""
    rate = rate_to_usd(line.rate_atto_per_million, _RATE_UNITS[line.dimension])
    text = f'{{"dimension":"{line.dimension}","units":{line.units},"rate":"{rate}{_RATE_PER[line.dimension]}"'
    if line.multiplier != (1, 1):
        text += f',"times":"{factor_to_text(line.multiplier)}"'
    if line.model is not None:
        text += f',"model":{msgspec.json.encode(line.model).decode()}'
        text += f',"price":{msgspec.json.encode(line.price_id).decode()}'
    return f'{text},"usd":"{pico_to_usd(line.cost_pico_usd)}"}}'
