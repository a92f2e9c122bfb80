"""Schema: a value that satisfies a tool's JSON schema in its plain parts: types, required, enum, references.

Schemas come from callers and may refer to themselves, so both depth and the number of values are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DEPTH_MAX: Final = 8
VALUES_MAX: Final = 1000
ITEMS_MAX: Final = 8
CHARS_MAX: Final = 1000


def sample(schema: object) -> object:
    """Return the same value for the same schema; None for what can't be told or lies beyond the bounds."""
    return _Sampler(schema).value(schema, 0)


class _Sampler:
    def __init__(self, root: object) -> None:
        self._root = root
        self._left = VALUES_MAX

    def value(self, schema: object, depth: int) -> object:
        self._left -= 1
        if not isinstance(schema, Mapping) or depth > DEPTH_MAX or self._left < 0:
            return None
        for fixed in ("const", "default"):
            if fixed in schema:
                return schema[fixed]
        choices = schema.get("enum")
        if isinstance(choices, list) and choices:
            return choices[0]
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return self.value(_referred(reference, self._root), depth + 1)
        for union in ("anyOf", "oneOf", "allOf"):
            options = schema.get(union)
            if isinstance(options, list) and options:
                return self.value(options[0], depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[0] if kind else None
        if kind == "object" or "properties" in schema:
            return self._object(schema, depth)
        if kind == "array":
            least = schema.get("minItems")
            count = min(least, ITEMS_MAX) if isinstance(least, int) else 0
            return [self.value(schema.get("items"), depth + 1) for _ in range(count)]
        return _plain(kind, schema)

    def _object(self, schema: Mapping[str, object], depth: int) -> dict[str, object]:
        properties = schema.get("properties")
        required = schema.get("required")
        known: Mapping[str, object] = properties if isinstance(properties, Mapping) else {}
        names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        return {
            name: self.value(known.get(name, {"type": "string"}), depth + 1) for name in names[:VALUES_MAX]
        }


def _plain(kind: object, schema: Mapping[str, object]) -> object:
    match kind:
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            least, most = schema.get("minLength"), schema.get("maxLength")
            text = "text".ljust(min(least, CHARS_MAX), ".") if isinstance(least, int) else "text"
            return text[:most] if isinstance(most, int) and most >= 0 else text


def _number(schema: Mapping[str, object]) -> object:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    if isinstance(least, int | float):
        return least
    if isinstance(above, int | float):
        return above + 1
    most = schema.get("maximum")
    return most if isinstance(most, int | float) and most < 1 else 1


def _referred(reference: str, root: object) -> object:
    at = root
    for step in reference.removeprefix("#").strip("/").split("/")[:DEPTH_MAX]:
        if step:
            at = at.get(step) if isinstance(at, Mapping) else None
    return at
