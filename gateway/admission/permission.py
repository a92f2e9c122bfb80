"""Permission: what a key opens beside its owner's account: models, endpoints, and until when.

A model is allowed by the name that the caller writes, not by the place that it is routed to. So nothing that
a caller can write, and nothing that routing decides, leads past it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

from gateway.core.errors import CallerError
from gateway.core.exchange import Identity
from gateway.core.names import glob

SHARED_MAX: Final = 4096
"""Different permissions that are made once for all keys that have the same."""
SHOWN_MAX: Final = 5
"""Of what is allowed, so much is told to a caller who asked for something else."""


class Permission:
    """Models and endpoints; None allows all of them.

    Args:
        models: exact names, or patterns with `*`.
        endpoints: names of protocols.
    """

    __slots__ = ("_exact", "_patterns", "endpoints", "models")

    def __init__(
        self, models: tuple[str, ...] | None = None, endpoints: tuple[str, ...] | None = None
    ) -> None:
        self.models = models
        self.endpoints = endpoints
        self._exact = frozenset(model for model in models or () if "*" not in model)
        self._patterns = tuple([glob(model) for model in models or () if "*" in model])

    def __repr__(self) -> str:
        return f"Permission(models={self.models}, endpoints={self.endpoints})"

    def allows(self, model: str) -> bool:
        """Say whether a model may be named."""
        if self.models is None or model in self._exact:
            return True
        return any(pattern.fullmatch(model) for pattern in self._patterns)

    def ask_endpoint(self, name: str) -> None:
        """Let a request pass to an endpoint.

        Raises:
            CallerError: 403, it is not allowed.
        """
        if self.endpoints is not None and name not in self.endpoints:
            raise CallerError(
                "endpoint_not_allowed",
                f"this key is not allowed to use {name}, but {_some(self.endpoints)}; GET /v1/key tells all",
                status=403,
            )

    def ask_model(self, name: str) -> None:
        """Let a request pass to a model.

        Raises:
            CallerError: 403, it is not allowed.
        """
        if self.models is not None and not self.allows(name):
            raise CallerError(
                "model_not_allowed",
                f"this key is not allowed to use this model, but {_some(self.models)}; GET /v1/key tells all",
                status=403,
                param="model",
            )


def _some(allowed: tuple[str, ...]) -> str:
    more = f" and {len(allowed) - SHOWN_MAX} more" if len(allowed) > SHOWN_MAX else ""
    return ", ".join(allowed[:SHOWN_MAX]) + more


permission_of = lru_cache(SHARED_MAX)(Permission)
"""Make a permission, or return the one that is made already."""
EVERYTHING: Final = Permission()


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a key, and what it opens.

    Args:
        name: what its maker calls the key.
        until_unix_ns: when it ends, None for never.
        stored: it is a key of the database, not of the configuration.
        may_create_keys: it may make keys that open no more than it does.
    """

    identity: Identity
    permission: Permission = EVERYTHING
    name: str | None = None
    until_unix_ns: int | None = None
    disabled: bool = False
    stored: bool = False
    may_create_keys: bool = False
