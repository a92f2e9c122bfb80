"""The doors that FastAPI serves: models, health, readiness, metrics, and the documentation of all doors.

Whatever is not an inference request comes here: it may take its time, and it gets the stock
instrumentation. Refusals use the envelope of whoever asks: Anthropic's for a caller that sends
`anthropic-version`, OpenAI's otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from gateway.admission.permission import Holder
from gateway.api.correlation import CorrelationMiddleware, Ids
from gateway.api.documents import complete
from gateway.core.errors import CallerError, GatewayFault, SpanbillError
from gateway.protocols.base import Protocol
from otel.server_span import path_without_secrets, query_without_secrets

log = logging.getLogger("spanbill.doors")

Header = tuple[bytes, bytes]
MODELS_CREATED_AT = "2024-01-01T00:00:00Z"
MODELS_CREATED_UNIX_S = 1_704_067_200
"""Both SDKs want a creation time; no provider tells the gateway one, so it is the same for all."""


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One model that a caller may name."""

    id: str
    provider: str
    title: str


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests can be served, and why not."""

    ready: bool
    checks: dict[str, str]


def fastapi_app(
    *,
    version: str,
    ids: Ids,
    tracer_provider: TracerProvider,
    registry: CollectorRegistry,
    holder: Callable[[Sequence[Header]], Holder],
    models: Callable[[], Sequence[ModelEntry]],
    ready: Callable[[], Readiness],
    protocols: Mapping[str, Protocol],
    routers: Iterable[APIRouter],
    lifespan: Callable[[FastAPI], Any],
) -> FastAPI:
    """Return the FastAPI application, instrumented, with the inference doors documented.

    Args:
        routers: further doors.
    """
    app = FastAPI(
        title="Spanbill",
        version=version,
        description="An LLM gateway whose traces are the bill.",
        lifespan=lifespan,
        # FastAPI's own spans, metrics and logs would double ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    _add_operations(app, registry, ready)
    _add_models(app, holder, models)
    _add_stored_responses(app, holder)
    for router in routers:
        app.include_router(router)
    _add_envelopes(app)
    app.add_middleware(CorrelationMiddleware, ids=ids)
    FastAPIInstrumentor.instrument_app(
        app,
        tracer_provider=tracer_provider,
        exclude_spans=["send", "receive"],
        server_request_hook=_hide_credentials,
    )
    _document_inference(app, protocols)
    return app


def _hide_credentials(span: Span, scope: dict[str, Any]) -> None:
    if not span.is_recording():
        return
    path = path_without_secrets(scope["path"])
    query = query_without_secrets(scope.get("query_string", b""))
    # The older conventions, which an operator may choose, have both inside two other attributes.
    for name, value in (getattr(span, "attributes", None) or {}).items():
        if name == "url.query":
            span.set_attribute(name, query)
        elif name == "url.path":
            span.set_attribute(name, path)
        elif name in ("http.url", "http.target") and isinstance(value, str):
            before, mark, _ = value.partition("?")
            span.set_attribute(name, f"{path_without_secrets(before)}{mark}{query if mark else ''}")


def _add_operations(app: FastAPI, registry: CollectorRegistry, ready: Callable[[], Readiness]) -> None:
    @app.get("/health", tags=["operations"], summary="The process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": app.version}

    @app.get(
        "/ready",
        tags=["operations"],
        summary="Requests can be served: the journal can be written",
        responses={503: {"description": "Not now; the checks say why"}},
    )
    async def readiness() -> JSONResponse:
        state = ready()
        return JSONResponse({"ready": state.ready, "checks": state.checks}, 200 if state.ready else 503)

    @app.get("/metrics", tags=["operations"], summary="Prometheus exposition", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_models(
    app: FastAPI,
    holder: Callable[[Sequence[Header]], Holder],
    models: Callable[[], Sequence[ModelEntry]],
) -> None:
    refusals: dict[int | str, dict[str, Any]] = {401: {"description": "Missing or unknown key"}}

    @app.get("/v1/models", tags=["inference"], summary="Models that the key may name", responses=refusals)
    async def list_models(request: Request) -> JSONResponse:
        permission = holder(request.scope["headers"]).permission
        entries = [entry for entry in models() if permission.allows(entry.id)]
        if _speaks_anthropic(request):
            data = [_anthropic_model(entry) for entry in entries]
            return JSONResponse(
                {
                    "data": data,
                    "has_more": False,
                    "first_id": data[0]["id"] if data else None,
                    "last_id": data[-1]["id"] if data else None,
                }
            )
        return JSONResponse({"object": "list", "data": [_openai_model(entry) for entry in entries]})

    @app.get(
        "/v1/models/{model:path}",
        tags=["inference"],
        summary="One model",
        responses={**refusals, 404: {"description": "Unknown model"}},
    )
    async def get_model(model: str, request: Request) -> JSONResponse:
        permission = holder(request.scope["headers"]).permission
        for entry in models():
            if entry.id == model and permission.allows(model):
                return JSONResponse(
                    _anthropic_model(entry) if _speaks_anthropic(request) else _openai_model(entry)
                )
        raise CallerError(
            "model_not_found", "no such model; GET /v1/models lists those that can be named", status=404
        )


def _add_stored_responses(app: FastAPI, holder: Callable[[Sequence[Header]], Holder]) -> None:
    """Refuse what concerns a stored response: its id names no provider, and no caller as its owner."""

    @app.api_route("/v1/responses/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def stored_response(request: Request) -> None:
        holder(request.scope["headers"])
        raise CallerError(
            "not_supported",
            "stored responses can not be fetched, cancelled or deleted through the gateway, whose callers "
            "share the provider's account; POST /v1/responses continues one: `previous_response_id`",
            status=404,
        )


def _speaks_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _openai_model(entry: ModelEntry) -> dict[str, object]:
    return {"id": entry.id, "object": "model", "created": MODELS_CREATED_UNIX_S, "owned_by": entry.provider}


def _anthropic_model(entry: ModelEntry) -> dict[str, object]:
    return {"type": "model", "id": entry.id, "display_name": entry.title, "created_at": MODELS_CREATED_AT}


def _add_envelopes(app: FastAPI) -> None:
    async def refuse(request: Request, fault: Exception) -> JSONResponse:
        if isinstance(fault, SpanbillError):
            return _envelope(request, fault)
        if isinstance(fault, HTTPException):
            codes = {404: "not_found", 405: "method_not_allowed"}
            error = CallerError(
                codes.get(fault.status_code, "invalid_request"),
                f"{request.method} {request.url.path[:200]}: {fault.detail}; GET /docs lists the doors",
                status=fault.status_code,
            )
            response = _envelope(request, error)
            for name, value in (fault.headers or {}).items():
                response.headers[name] = value
            return response
        record_id = request.scope.get("state", {}).get("record_id")
        log.error("unforeseen fault", exc_info=fault, extra={"request_id": record_id})
        return _envelope(
            request,
            GatewayFault("internal_error", f"the gateway failed ({type(fault).__name__})", status=500),
        )

    app.add_exception_handler(SpanbillError, refuse)
    app.add_exception_handler(HTTPException, refuse)
    app.add_exception_handler(Exception, refuse)


def _envelope(request: Request, error: SpanbillError) -> JSONResponse:
    if _speaks_anthropic(request) or request.url.path.startswith("/v1/messages"):
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        kind = kinds.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        body: dict[str, object] = {"type": "error", "error": {"type": kind, "message": error.message}}
    else:
        kinds = {401: "authentication_error", 403: "permission_error"}
        kind = kinds.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
        body = {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    headers = {name.decode(): value.decode() for name, value in error.headers}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return JSONResponse(body, error.status, headers)


def _document_inference(app: FastAPI, protocols: Mapping[str, Protocol]) -> None:
    """Add the doors that stand in front of FastAPI to its OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            paths = schema["paths"]
            for path, protocol in protocols.items():
                paths[path] = {"post": _inference_operation(protocol)}
            complete(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the documented way to extend the document


def _inference_operation(protocol: Protocol) -> dict[str, Any]:
    envelope = {"description": "In the protocol's own error envelope"}
    return {
        "tags": ["inference"],
        "summary": f"{protocol.name.replace('_', ' ').capitalize()}, passed through byte for byte",
        "operationId": protocol.name,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["model"],
                        "properties": {"model": {"type": "string"}},
                        "additionalProperties": True,
                    }
                }
            },
        },
        "responses": {
            "200": {
                "description": "The provider's reply; its correlation id finds the bill",
                "headers": {"x-request-id": {"schema": {"type": "string", "format": "uuid"}}},
                "content": {"application/json": {}, "text/event-stream": {}},
            },
            **{str(status): envelope for status in (400, 401, 404, 413, 429, 500, 502, 503)},
        },
    }
