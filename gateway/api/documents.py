"""Documents: what the OpenAPI document says of doors that read their parameters themselves.

FastAPI would answer a wrong parameter with its own 422; these doors answer in the envelope of all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

Schema = dict[str, Any]

ENVELOPE: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
"""What a refusal looks like, in OpenAI's words and in Anthropic's."""


_AT_THE_SOCKET = {
    "400": "The request cannot be read",
    "404": "No such door: the path was another one",
    "408": "The request did not come to its end in time",
    "414": "The target is too long",
    "431": "The head is too large",
}


def schema_of(answer: type) -> Schema:
    """Return the JSON schema of a type, whole, without references."""
    (schema,), parts = msgspec.json.schema_components((answer,), ref_template="{name}")
    found: Schema = _resolved(schema, parts)
    return found


def _resolved(schema: Any, parts: Mapping[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _resolved(parts[schema["$ref"]], parts)
        return {key: _resolved(value, parts) for key, value in schema.items()}
    return [_resolved(item, parts) for item in schema] if isinstance(schema, list) else schema


def body_of(kind: type, *, required: bool = True) -> dict[str, Any]:
    """Return the description of a JSON body, for `openapi_extra` of a door that reads it by itself."""
    content = {"application/json": {"schema": schema_of(kind)}}
    return {"requestBody": {"required": required, "content": content}}


def query(name: str, description: str, schema: Schema, *, repeats: bool = False) -> dict[str, Any]:
    """Return a parameter of the query; one that `repeats` may stand there several times."""
    found: dict[str, Any] = {"name": name, "in": "query", "required": False, "description": description}
    if repeats:
        return {**found, "style": "form", "explode": True, "schema": {"type": "array", "items": schema}}
    return {**found, "schema": schema}


def answers(content: Mapping[str, Schema], description: str, statuses: Sequence[int]) -> dict[int | str, Any]:
    """Return the answers of a door: the good one by content type, and refusals in the envelope."""
    why = {
        400: "A parameter is wrong; `param` names it",
        401: "Missing or unknown key",
        403: "Not with this key",
        404: "There is no such thing, or it is not yours",
        503: "The ledger cannot be read now; `Retry-After` says when to ask again",
    }
    found: dict[int | str, Any] = {
        200: {"description": description, "content": {kind: {"schema": s} for kind, s in content.items()}}
    }
    for status in statuses:
        found[status] = {
            "description": why[status],
            "content": {"application/json": {"schema": ENVELOPE}},
        }
        if status == 503:
            found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return found


def complete(document: Schema) -> None:
    """Add to a document what holds of every door, and take out what FastAPI only supposes.

    What is no HTTP is refused at the socket with 400, 408, 414 or 431, whatever door it was meant for. No
    door answers 422: a text in a path is never wrong as such, and bodies are read by the doors themselves.
    """
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for status, why in _AT_THE_SOCKET.items():
                responses.setdefault(status, {"description": why})
