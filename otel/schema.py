"""The billing span: every attribute's name, type, unit and presence, and its one encoding as OTLP/JSON.

A bill is not cut: no attribute limit of the SDK applies here, a value of the wrong type or an unknown
name raises while the bill is built, and an absent value has no key at all. The documentation page
`docs/billing-span.md` is generated from `ATTRIBUTES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec
import orjson

SEMCONV_VERSION: Final = "1.38.0"
"""The GenAI semantic conventions that the `gen_ai.*` names follow."""

Kind = Literal["string", "int", "double", "bool", "string[]"]
Value = str | int | float | bool | tuple[str, ...]

INT64_MAX: Final = 2**63 - 1


class Attribute(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    Args:
        presence: when the key exists, in words for the documentation.
        unit: UCUM unit, "" where there is none.
    """

    name: str
    kind: Kind
    presence: str
    meaning: str
    unit: str = ""


def _a(name: str, kind: Kind, presence: str, meaning: str, unit: str = "") -> Attribute:
    return Attribute(name=name, kind=kind, presence=presence, meaning=meaning, unit=unit)


_CHOICE = "if an alias or several targets could serve"
_ALWAYS = "always"
_REPORTED = "only if the provider reported it"
_METERED = "if reported, or estimated: see `billing.usage.source`"
_PRICED = "only if priced"
_KNOWN = "if known"
_OTHERS = "if priced, and other models were used"
_ADJUSTED = "if priced, and such an adjustment applies"

ATTRIBUTES: Final[tuple[Attribute, ...]] = (
    _a("gen_ai.operation.name", "string", _ALWAYS, "`chat`, `embeddings`, `count_tokens`"),
    _a("gen_ai.provider.name", "string", "if a provider was called", "the provider that served"),
    _a("gen_ai.request.model", "string", _ALWAYS, "the model that the caller named"),
    _a("gen_ai.response.model", "string", _REPORTED, "the model that served, which is the one priced"),
    _a("gen_ai.response.id", "string", _REPORTED, "the provider's id of the reply"),
    _a("gen_ai.response.finish_reasons", "string[]", _REPORTED, "why generation ended"),
    _a("gen_ai.request.stream", "bool", _ALWAYS, "the caller asked for a stream"),
    _a("gen_ai.request.max_tokens", "int", "if requested", "the caller's bound on output", "{token}"),
    _a(
        "gen_ai.response.time_to_first_chunk",
        "double",
        "streams that began",
        "from admission to the first byte of the stream's body",
        "s",
    ),
    _a("gen_ai.usage.input_tokens", "int", _METERED, "all input, cached included", "{token}"),
    _a("gen_ai.usage.output_tokens", "int", _METERED, "all output, reasoning included", "{token}"),
    _a("gen_ai.usage.cache_read.input_tokens", "int", _REPORTED, "input read from the cache", "{token}"),
    _a("gen_ai.usage.cache_write.input_tokens", "int", _REPORTED, "input written to the cache", "{token}"),
    _a(
        "gen_ai.usage.cache_creation.input_tokens",
        "int",
        "instead of `cache_write` if `telemetry.cache_write_name` is `cache_creation`",
        "input written to the cache, by the older name",
        "{token}",
    ),
    _a("gen_ai.usage.reasoning.output_tokens", "int", _REPORTED, "reasoning part of the output", "{token}"),
    _a("gen_ai.usage.cost", "double", _PRICED, "`billing.cost.usd` as a double, for tools that sum", "USD"),
    _a("user.id", "string", "if the request claims one", "the end user that the caller names; not trusted"),
    _a("session.id", "string", "if the request's `x-session-id` names one", "the caller's conversation"),
    _a("error.type", "string", "on failure", "stable code of what went wrong"),
    _a("server.address", "string", "if a provider was called", "host that served"),
    _a("server.port", "int", "if a provider was called", "port that served"),
    _a("client.address", "string", _KNOWN, "address of the caller"),
    _a("billing.record.id", "string", _ALWAYS, "the correlation id: one per bill"),
    _a("billing.status", "string", _ALWAYS, "`final`, `estimated`, `unpriced`, `unmetered`"),
    _a("billing.outcome", "string", _ALWAYS, "`ok`, `client_disconnected`, `upstream_error`, …"),
    _a("billing.user.id", "string", _ALWAYS, "the owner of the virtual key: who pays"),
    _a("billing.user.name", "string", _KNOWN, "display name of the owner"),
    _a("billing.user.source", "string", _ALWAYS, "how the owner was found: `key`, `env_key`"),
    _a("billing.key.id", "string", _ALWAYS, "public id of the virtual key"),
    _a("billing.team", "string", _KNOWN, "team of the key"),
    _a("billing.project", "string", _KNOWN, "project of the key"),
    _a("billing.tags", "string[]", _KNOWN, "tags of the key"),
    _a("billing.cost.usd", "string", _PRICED, "exact decimal: the bill", "USD"),
    _a("billing.cost.currency", "string", _PRICED, "`USD`"),
    _a("billing.cost.input_usd", "string", _PRICED, "line: input at the plain rate", "USD"),
    _a("billing.cost.cache_read_usd", "string", _PRICED, "line: cache reads", "USD"),
    _a("billing.cost.cache_write_usd", "string", _PRICED, "line: cache writes", "USD"),
    _a("billing.cost.cache_write_5m_usd", "string", _PRICED, "line: cache writes kept 5 minutes", "USD"),
    _a("billing.cost.cache_write_1h_usd", "string", _PRICED, "line: cache writes kept 1 hour", "USD"),
    _a("billing.cost.input_audio_usd", "string", _PRICED, "line: audio input", "USD"),
    _a("billing.cost.input_image_usd", "string", _PRICED, "line: image input", "USD"),
    _a("billing.cost.output_usd", "string", _PRICED, "line: output at the plain rate", "USD"),
    _a("billing.cost.reasoning_usd", "string", _PRICED, "line: reasoning at a rate of its own", "USD"),
    _a("billing.cost.output_audio_usd", "string", _PRICED, "line: audio output", "USD"),
    _a("billing.cost.output_image_usd", "string", _PRICED, "line: image output", "USD"),
    _a("billing.cost.request_usd", "string", _PRICED, "line: fee per request", "USD"),
    _a("billing.cost.input_video_usd", "string", _PRICED, "line: video input", "USD"),
    _a("billing.cost.input_tool_usd", "string", _PRICED, "line: input that tools brought", "USD"),
    _a("billing.cost.cache_read_audio_usd", "string", _PRICED, "line: cached audio input", "USD"),
    _a("billing.cost.cache_read_image_usd", "string", _PRICED, "line: cached image input", "USD"),
    _a("billing.cost.output_video_usd", "string", _PRICED, "line: video output", "USD"),
    _a("billing.cost.citation_usd", "string", _PRICED, "line: citation tokens", "USD"),
    _a("billing.cost.web_search_usd", "string", _PRICED, "line: web searches", "USD"),
    _a("billing.cost.web_fetch_usd", "string", _PRICED, "line: web fetches", "USD"),
    _a("billing.cost.file_search_usd", "string", _PRICED, "line: file searches", "USD"),
    _a("billing.cost.social_search_usd", "string", _PRICED, "line: searches of social media", "USD"),
    _a("billing.cost.map_search_usd", "string", _PRICED, "line: replies grounded in maps", "USD"),
    _a("billing.cost.search_source_usd", "string", _PRICED, "line: sources read by a search", "USD"),
    _a("billing.cost.code_interpreter_usd", "string", _PRICED, "line: code interpreter calls", "USD"),
    _a("billing.cost.image_generation_usd", "string", _PRICED, "line: image generation calls", "USD"),
    _a("billing.cost.rerank_search_usd", "string", _PRICED, "line: rerank searches", "USD"),
    _a("billing.cost.page_usd", "string", _PRICED, "line: pages of documents", "USD"),
    _a("billing.cost.image_usd", "string", _PRICED, "line: images made", "USD"),
    _a("billing.cost.audio_second_usd", "string", _PRICED, "line: audio by the second", "USD"),
    _a("billing.cost.character_usd", "string", _PRICED, "line: input by the character", "USD"),
    _a("billing.cost.other_models_usd", "string", _OTHERS, "lines of other models' tokens", "USD"),
    _a("billing.cost.discount_usd", "string", _ADJUSTED, "discounts, below zero", "USD"),
    _a("billing.cost.markup_usd", "string", _ADJUSTED, "mark-ups", "USD"),
    _a("billing.cost.fee_usd", "string", _ADJUSTED, "fees per request", "USD"),
    _a(
        "billing.cost.lines",
        "string[]",
        _PRICED,
        "each line as JSON: dimension, units, rate, multiplier, cost; for another model its name and price",
    ),
    _a("billing.cost.adjustments", "string[]", _ADJUSTED, "each adjustment as JSON: id, kind, percent, cost"),
    _a(
        "billing.cost.source",
        "string",
        _PRICED,
        "`local`: computed from the rate card; `fallback`: from `prices.fallback`",
    ),
    _a("billing.cost.reported_usd", "string", _REPORTED, "the provider's own figure, beside ours", "USD"),
    _a(
        "billing.cost.reported_difference_usd",
        "string",
        "if priced and reported",
        "the provider's own figure less ours before mark-ups and fees",
        "USD",
    ),
    _a("billing.price.id", "string", _PRICED, "entry of the catalogue that was applied"),
    _a(
        "billing.price.requested_id",
        "string",
        "if the model that served has another price than the requested one",
        "entry of the requested model, which was not applied; `none` if it has none",
    ),
    _a("billing.price.section", "string", "if a provider was chosen", "section of the catalogue"),
    _a("billing.price.missing", "string", "if unpriced", "what has no rate: `model`, `service_tier=flex`, …"),
    _a(
        "billing.price.exchange",
        "string",
        "if rates are in another currency",
        "`sat=0.00065`: USD for one unit of it",
    ),
    _a("billing.target.model", "string", "if a provider was called", "the model as the provider was asked"),
    _a("billing.price.catalog", "string", _PRICED, "content hash of the catalogue"),
    _a("billing.price.tier", "string", "if the rate has tiers", "the context tier that applied"),
    _a("billing.service_tier", "string", _REPORTED, "tier that the reply states"),
    _a(
        "billing.usage.qualifiers",
        "string[]",
        _REPORTED,
        "what else decides the rates, as `name=value`: `speed=fast`, `inference_geo=us`",
    ),
    _a(
        "billing.usage.other_models",
        "string[]",
        _REPORTED,
        "other models' tokens inside the reply, each as JSON: model, reason, counts",
    ),
    _a("billing.usage.source", "string", "if metered", "`provider`, `drained`, `estimated`"),
    _a("billing.usage.estimate.method", "string", "if estimated", "how missing counts were made"),
    _a("billing.usage.estimate.input_tokens_min", "int", "if input is estimated", "at least", "{token}"),
    _a("billing.usage.estimate.input_tokens_max", "int", "if input is estimated", "at most", "{token}"),
    _a("billing.usage.estimate.output_tokens_min", "int", "if output is estimated", "at least", "{token}"),
    _a("billing.usage.estimate.output_tokens_max", "int", "if output is estimated", "at most", "{token}"),
    _a("billing.usage.anomalies", "string[]", "if any", "what the payload got wrong, and so what was chosen"),
    _a("billing.usage.cache_write_5m_tokens", "int", _REPORTED, "written for 5 minutes", "{token}"),
    _a("billing.usage.cache_write_1h_tokens", "int", _REPORTED, "written for 1 hour", "{token}"),
    _a("billing.usage.input_audio_tokens", "int", _REPORTED, "audio part of the input", "{token}"),
    _a("billing.usage.input_image_tokens", "int", _REPORTED, "image part of the input", "{token}"),
    _a("billing.usage.output_audio_tokens", "int", _REPORTED, "audio part of the output", "{token}"),
    _a("billing.usage.output_image_tokens", "int", _REPORTED, "image part of the output", "{token}"),
    _a("billing.usage.input_video_tokens", "int", _REPORTED, "video part of the input", "{token}"),
    _a("billing.usage.input_tool_tokens", "int", _REPORTED, "input that tools brought", "{token}"),
    _a("billing.usage.cache_read_audio_tokens", "int", _REPORTED, "cached audio", "{token}"),
    _a("billing.usage.cache_read_image_tokens", "int", _REPORTED, "cached images", "{token}"),
    _a("billing.usage.output_video_tokens", "int", _REPORTED, "video part of the output", "{token}"),
    _a("billing.usage.citation_tokens", "int", _REPORTED, "cited pages, beside input", "{token}"),
    _a("billing.usage.web_searches", "int", _REPORTED, "web searches", "{call}"),
    _a("billing.usage.web_fetches", "int", _REPORTED, "web fetches", "{call}"),
    _a("billing.usage.file_searches", "int", _REPORTED, "file searches", "{call}"),
    _a("billing.usage.social_searches", "int", _REPORTED, "searches of social media", "{call}"),
    _a("billing.usage.map_searches", "int", _REPORTED, "1 if the reply is grounded in maps", "{call}"),
    _a("billing.usage.search_sources", "int", _REPORTED, "sources that a search read", "{call}"),
    _a("billing.usage.code_interpreter_calls", "int", _REPORTED, "code run", "{call}"),
    _a("billing.usage.image_generation_calls", "int", _REPORTED, "image tool calls", "{call}"),
    _a("billing.usage.rerank_searches", "int", _REPORTED, "search units of a rerank", "{call}"),
    _a("billing.usage.pages", "int", _REPORTED, "pages of documents", "{page}"),
    _a("billing.usage.images", "int", _REPORTED, "images made", "{image}"),
    _a("billing.usage.audio_seconds", "int", _REPORTED, "seconds of audio, begun ones whole", "s"),
    _a("billing.usage.characters", "int", _REPORTED, "characters of input", "{character}"),
    _a("billing.usage.requests", "int", "if reported", "requests counted by the provider", "{request}"),
    _a("billing.cache_hit", "bool", _REPORTED, "cache reads are more than 0, or a hit was reported"),
    _a("billing.cache_write", "bool", _REPORTED, "cache writes are more than 0, or one was reported"),
    _a("billing.attempts", "int", _ALWAYS, "how many times a provider was called", "{attempt}"),
    _a("billing.providers_tried", "string[]", "if a provider was called", "providers in the order tried"),
    _a(
        "billing.attempts.unsettled",
        "int",
        "if there were any",
        "earlier attempts that a provider may charge for, and that are not in this bill",
        "{attempt}",
    ),
    _a("billing.alias", "string", "if an alias was named", "the alias that chose the model"),
    _a("billing.route.selector", "string", _CHOICE, "the selector of the configuration"),
    _a(
        "billing.route.by",
        "string",
        _CHOICE,
        "what decided: the selector, `random`, `explore`, `cooldown`, or `only` where there was no choice",
    ),
    _a("billing.route.targets", "int", _CHOICE, "targets that could have served", "{target}"),
    _a("billing.route.cooling", "int", _CHOICE, "of these, left alone because they had failed", "{target}"),
    _a("billing.client.request_id", "string", "if the caller sent one", "the caller's own `x-request-id`"),
    _a("billing.debug.capture", "string", "if captured", "file of its capture, below `logging.debug.path`"),
    _a("billing.provider.request_id", "string", _REPORTED, "the provider's own request id"),
    _a(
        "billing.protocol",
        "string",
        _ALWAYS,
        "the door: `chat_completions`, `messages`, `responses`, `embeddings`, …",
    ),
    _a("billing.http.status_code", "int", "if a provider answered", "the provider's status"),
    _a("billing.latency_ms", "double", _ALWAYS, "from admission to the settled bill", "ms"),
    _a("billing.input.summary.messages", "int", _KNOWN, "messages in the request", "{message}"),
    _a("billing.input.summary.tools", "int", _KNOWN, "tools offered", "{tool}"),
    _a("billing.input.summary.images", "int", _KNOWN, "images in the request", "{image}"),
    _a("billing.input.summary.bytes", "int", _KNOWN, "size of the request's body", "By"),
    _a("billing.input.summary.attachment_bytes", "int", "if any", "base64 data in the request's body", "By"),
    _a("billing.input.summary.references", "int", "if any", "stored input that the request refers to"),
    _a("billing.output.summary.choices", "int", _KNOWN, "choices or content blocks in the reply"),
    _a("billing.output.summary.tool_calls", "int", _KNOWN, "tool calls in the reply", "{call}"),
    _a("billing.output.summary.events", "int", "streams", "events in the stream", "{event}"),
    _a("billing.output.summary.bytes", "int", _KNOWN, "size of the reply's body", "By"),
)

REVISION_ATTRIBUTES: Final[tuple[Attribute, ...]] = (
    _a("billing.revision.of", "string", _ALWAYS, "`billing.record.id` of the bill that it revises"),
    _a("billing.revision.number", "int", _ALWAYS, "1 for the first revision of a bill, then 2, …"),
    _a("billing.revision.cost_usd", "string", _PRICED, "exact decimal: what the bill comes to now", "USD"),
    _a(
        "billing.revision.old_cost_usd",
        "string",
        "if it was priced before",
        "what the bill, or the revision before this one, came to",
        "USD",
    ),
    _a(
        "billing.revision.delta_usd",
        "string",
        _ALWAYS,
        "exact decimal: new cost less old, where no cost adds nothing; may be below zero",
        "USD",
    ),
    _a("billing.revision.old_status", "string", _ALWAYS, "status before"),
    _a("billing.revision.old_price_id", "string", "if it was priced before", "entry applied before"),
    _a("billing.revision.old_catalog", "string", "if it was priced before", "catalogue applied before"),
)
"""What a revision has of its own; `gateway.recording.revision` names what it has in common with bills."""

_PREFIX: Final[dict[str, tuple[Kind, str]]] = {
    a.name: (a.kind, '{"key":' + orjson.dumps(a.name).decode() + ',"value":')
    for a in (*ATTRIBUTES, *REVISION_ATTRIBUTES)
}

TRACE_FLAGS_SAMPLED: Final = 1
INTERNAL: Final = 1
CLIENT: Final = 3


class BillingSpan(msgspec.Struct, frozen=True, kw_only=True):
    """The span as a value: ids in lower-case hex, times in Unix nanoseconds, attributes by name.

    Args:
        kind: CLIENT for a bill, INTERNAL for a revision.
        links: (trace id, span id) of other spans.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    started_unix_ns: int
    ended_unix_ns: int
    attributes: Mapping[str, Value]
    failed: bool = False
    kind: int = CLIENT
    links: tuple[tuple[str, str], ...] = ()


def encode_attribute(name: str, value: Value) -> str:
    """Return one OTLP/JSON key-value.

    Raises:
        KeyError: the name is not in `ATTRIBUTES`.
        TypeError, ValueError: the value does not fit the row; a bill with a bent value must not be written.
    """
    kind, prefix = _PREFIX[name]
    if kind == "string":
        if type(value) is not str:
            raise TypeError(f"{name} takes a string, got {type(value).__name__}")
        return prefix + '{"stringValue":' + _text(value) + "}}"
    if kind == "int":
        if type(value) is not int:
            raise TypeError(f"{name} takes an int, got {type(value).__name__}")
        if not -INT64_MAX <= value <= INT64_MAX:
            raise ValueError(f"{name} = {value} is outside 64 bits")
        return f'{prefix}{{"intValue":"{value}"}}}}'
    if kind == "bool":
        if type(value) is not bool:
            raise TypeError(f"{name} takes a bool, got {type(value).__name__}")
        return prefix + ('{"boolValue":true}}' if value else '{"boolValue":false}}')
    if kind == "double":
        if type(value) is not float:
            raise TypeError(f"{name} takes a float, got {type(value).__name__}")
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{name} is not finite")
        return f'{prefix}{{"doubleValue":{value!r}}}}}'
    if type(value) is not tuple:
        raise TypeError(f"{name} takes a tuple of strings, got {type(value).__name__}")
    inner = ",".join(['{"stringValue":' + _text(item) + "}" for item in value])
    return prefix + '{"arrayValue":{"values":[' + inner + "]}}}"


def _encoded(attributes: Mapping[str, Value]) -> list[str]:
    """Return each as `encode_attribute` does; texts, most of a bill's forty, without two calls for each."""
    encoded: list[str] = []
    for name, value in attributes.items():
        kind, prefix = _PREFIX[name]
        if kind == "string" and type(value) is str and value.isascii():
            encoded.append(f'{prefix}{{"stringValue":{orjson.dumps(value).decode()}}}}}')
        else:
            encoded.append(encode_attribute(name, value))
    return encoded


def _text(value: str) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # lone surrogates, which JSON escapes can smuggle into a str
        return orjson.dumps(value.encode("utf-8", "replace").decode()).decode()


def encode_span(span: BillingSpan) -> str:
    """Return the span as one OTLP/JSON `Span` object: times and ints as strings, ids in hex."""
    parent = f'"parentSpanId":"{span.parent_span_id}",' if span.parent_span_id else ""
    attributes = ",".join(_encoded(span.attributes))
    status = '{"code":2}' if span.failed else "{}"
    links = ""
    if span.links:
        to = [f'{{"traceId":"{trace}","spanId":"{span_id}"}}' for trace, span_id in span.links]
        links = f'"links":[{",".join(to)}],'
    return (
        f'{{"traceId":"{span.trace_id}","spanId":"{span.span_id}",{parent}"flags":{TRACE_FLAGS_SAMPLED},'
        f'"name":{_text(span.name)},"kind":{span.kind},"startTimeUnixNano":"{span.started_unix_ns}",'
        f'"endTimeUnixNano":"{span.ended_unix_ns}","attributes":[{attributes}],{links}"status":{status}}}'
    )


def resource_spans_frame(resource: Mapping[str, str], scope: str, version: str) -> tuple[str, str]:
    """Return what stands before and after one span to make it a whole `ResourceSpans` object."""
    attributes = ",".join(
        f'{{"key":{_text(key)},"value":{{"stringValue":{_text(value)}}}}}' for key, value in resource.items()
    )
    head = (
        f'{{"resource":{{"attributes":[{attributes}]}},"scopeSpans":[{{"scope":{{"name":{_text(scope)},'
        f'"version":{_text(version)}}},"spans":['
    )
    return head, "]}]}"
