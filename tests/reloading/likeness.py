"""What a gateway goes by for requests, as plain values that can be compared with those of another gateway."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, SecretStr

from gateway.api.inference import Doors
from gateway.budgets.keeper import Keeper
from gateway.recorder import JournalRecorder
from gateway.release.relay import Drains
from gateway.routing.choosing import Chooser

LASTING = (JournalRecorder, Drains)
"""Writes and counts, whatever the configuration is."""

Known = dict[int, tuple[Any, Any]]


def likeness(app: Doors) -> Any:
    """Return it: all values that the terms in force reach, whatever holds them."""
    return _of(app._inforce.terms, {})


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Return where two of them differ, and how."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        names = [
            item[0] if isinstance(item, tuple) and len(item) == 2 else place for place, item in enumerate(one)
        ]
        pairs = zip(names, one, other, strict=True)
        return [found for name, old, new in pairs for found in differences(old, new, f"{path}/{name}")]
    return [] if one == other else [f"{path}: {str(one)[:200]} != {str(other)[:200]}"]


def _of(value: Any, known: Known) -> Any:
    if value is None or isinstance(value, (str, bytes, int, float, type)):
        return value
    if id(value) not in known:
        known[id(value)] = value, "itself"
        known[id(value)] = value, _parts(value, known)
    return known[id(value)][1]


def _parts(value: Any, known: Known) -> Any:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case BaseModel():
            return [(name, _of(item, known)) for name, item in value]
        case Chooser():
            return "Chooser", _of(value._rules, known)
        case Keeper():
            return "Keeper", [repr(budget) for budget in value.budgets]
        case Mapping():
            return [(_of(key, known), _of(item, known)) for key, item in value.items()]
        case Set():
            return sorted(map(repr, value))
        case Sequence():
            return [_of(item, known) for item in value]
        case types.MethodType():
            return value.__name__, _of(value.__self__, known)
        case types.FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return value.__qualname__, [_of(cell, known) for cell in cells]
        case Decimal() | Path() | datetime():
            return str(value)
        case msgspec.Raw():
            return hash(bytes(value))
    if isinstance(value, LASTING) or not type(value).__module__.startswith("gateway."):
        return type(value).__name__
    return type(value).__name__, [(name, _of(item, known)) for name, item in _members(value)]


def _members(value: Any) -> list[tuple[str, Any]]:
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__weakref__", "__dict__") and hasattr(value, slot):
                found[slot] = getattr(value, slot)
    for field in getattr(value, "__struct_fields__", ()):
        found[field] = getattr(value, field)
    return sorted(found.items())
