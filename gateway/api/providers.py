"""Providers: which there are, and how their targets did lately, as the process that answers saw it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from fastapi import APIRouter, Request

from gateway.api.access import Access
from gateway.providers.places import Provider
from gateway.routing.cooldown import State
from gateway.routing.rolling import Standing
from gateway.routing.targets import Target

Standings = Mapping[Hashable, tuple[Standing, State, float, int]]


def providers_router(
    access: Access, providers: Callable[[], Mapping[str, Provider]], standings: Callable[[], Standings]
) -> APIRouter:
    """Return the door.

    Args:
        providers: those in force, by name.
        standings: of each target; see `Chooser.standings`.
    """
    router = APIRouter()

    @router.get(
        "/v1/providers",
        tags=["operations"],
        summary="Providers, and how their models did over the last minutes",
        responses={401: {"description": "Missing or unknown key"}},
    )
    async def list_providers(request: Request) -> dict[str, object]:
        access.who(request)
        targets: dict[str, list[dict[str, object]]] = {}
        for target, found in busiest(standings()):
            targets.setdefault(target.provider, []).append(_target(target, *found))
        return {
            "object": "list",
            "data": [
                {
                    "object": "provider",
                    "id": provider.name,
                    "title": provider.card.title,
                    "ready": provider.ready,
                    "doors": list(provider.card.doors),
                    "targets": targets.get(provider.name, []),
                }
                for provider in providers().values()
            ],
        }

    return router


def busiest(standings: Standings) -> list[tuple[Target, tuple[Standing, State, float, int]]]:
    """Return targets with what is known of them, those with most requests first."""
    found = [(target, one) for target, one in standings.items() if isinstance(target, Target)]
    found.sort(key=lambda pair: (-pair[1][0].requests, pair[0].provider, pair[0].model))
    return found


def _target(
    target: Target, standing: Standing, state: State, left_s: float, inside: int
) -> dict[str, object]:
    return {
        "model": target.model,
        "state": state,
        "cooldown_s": round(left_s, 3),
        "waiting": inside,
        "requests": standing.requests,
        "failures": standing.failures,
        "success": standing.success,
        "latency_p50_s": standing.latency_p50_s,
        "latency_p95_s": standing.latency_p95_s,
        "first_chunk_p50_s": standing.first_chunk_p50_s,
        "output_tokens_per_s": standing.tokens_per_s,
        "usd_per_million_tokens": standing.usd_per_million,
    }
