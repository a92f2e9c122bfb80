"""Assembly of routing: aliases, retries, cooldown and the comparison of prices, made from settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Final

import msgspec

from gateway.core.charge import NoRate
from gateway.core.exchange import Call
from gateway.core.usage import Usage
from gateway.pricing.selling import Book, Sale
from gateway.providers.places import Provider
from gateway.providers.upstream import Timeouts
from gateway.routes import Alias, AliasTarget, Routes
from gateway.routing.choosing import Chooser
from gateway.routing.cooldown import Rules
from gateway.routing.retry import Policy
from gateway.routing.targets import NAME_CHARS_MAX, Router, Target
from gateway.settings import Settings, SettingsError, UpstreamSettings
from gateway.stages import Lane

log = logging.getLogger("spanbill.routing")

BYTES_A_TOKEN: Final = 4
COMPARED_OUTPUT: Final = 500
"""Tokens of an answer, where prices are compared and the request allows that many."""


def routes_of(settings: Settings, router: Router, providers: Mapping[str, Provider]) -> Routes:
    """Return the routes of the configuration, wholly checked.

    Raises:
        SettingsError: an alias that cannot be used, or names another one.
    """
    routing, retries = settings.routing, settings.routing.retries
    policy = Policy(
        attempts_max=retries.attempts_max,
        pause_s=retries.pause_s,
        pause_max_s=retries.pause_max_s,
        waited_max_s=retries.waited_max_s,
    )
    aliases: dict[str, Alias] = {}
    for name, own in routing.aliases.items():
        if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
            raise SettingsError(f"routing.aliases: {name!r}: 1 to {NAME_CHARS_MAX} printable characters")
        for target in own.targets:
            if target.model in routing.aliases and "/" not in target.model and target.model != name:
                raise SettingsError(
                    f"routing.aliases.{name}: {target.model} is an alias itself; name its targets"
                )
            try:
                router.known(target.model)
            except ValueError as fault:
                raise SettingsError(f"routing.aliases.{name}: {fault}") from fault
        aliases[name] = Alias(
            targets=tuple([AliasTarget(model=one.model, weight=one.weight) for one in own.targets]),
            selector=own.selector,
            policy=msgspec.structs.replace(
                policy,
                attempts_max=own.attempts_max or policy.attempts_max,
                on=frozenset(own.fallback_on),
            ),
            timeouts=Timeouts(
                connect_s=own.connect_timeout_s or settings.upstream.connect_timeout_s,
                first_byte_s=own.first_byte_timeout_s or settings.upstream.first_byte_timeout_s,
                idle_s=own.idle_timeout_s or settings.upstream.idle_timeout_s,
                total_s=own.total_timeout_s or settings.upstream.total_timeout_s,
            ),
        )
    return Routes(router, providers, aliases, routing.selector, policy)


def cooldown_of(settings: Settings) -> Rules:
    """Return when targets are left alone."""
    rules = settings.routing.cooldown
    return Rules(
        failures=rules.failures,
        attempts_min=rules.attempts_min,
        recent_s=rules.recent_s,
        pause_s=rules.pause_s,
        pause_max_s=rules.pause_max_s,
    )


def timeouts_of(upstream: UpstreamSettings) -> Timeouts:
    """Return the bounds of an attempt at a target that has none of its own."""
    return Timeouts(
        connect_s=upstream.connect_timeout_s,
        first_byte_s=upstream.first_byte_timeout_s,
        idle_s=upstream.idle_timeout_s,
        total_s=upstream.total_timeout_s,
    )


def chooser_of(settings: Settings, toss: Callable[[], float]) -> Chooser:
    """Return what remembers how targets do; what the operator should know of them is logged."""

    def named(target: Hashable) -> dict[str, object]:
        return {"provider": target.provider, "model": target.model} if isinstance(target, Target) else {}

    def changed(target: Hashable, state: str, left_s: float) -> None:
        if state == "cooling":
            log.warning(
                "a target fails and is left alone", extra={**named(target), "for_s": round(left_s, 3)}
            )
        else:
            log.warning("a target answers again", extra=named(target))

    def refused(target: Hashable, status: int) -> None:
        log.error("a provider refuses the gateway's key; renew it", extra={**named(target), "status": status})

    return Chooser(cooldown_of(settings), settings.routing.window_s, toss, changed, refused)


def cost_of(book: Book) -> Callable[[Lane, Call], int | None]:
    """Return what compares targets by price: a request's shape at their rates, base fees included."""

    def cost(lane: Lane, call: Call) -> int | None:
        sale = Sale(
            provider=lane.provider,
            section=lane.prices,
            model=lane.model,
            key_id=call.identity.key_id,
            team=call.identity.team,
            at_unix_s=call.started_unix_ns // 1_000_000_000,
        )
        charge = book.charge(sale, shape_of(call))
        return None if isinstance(charge, NoRate) else charge.cost_pico_usd

    return cost


def shape_of(call: Call) -> Usage:
    """Return the usage by which prices are compared before it is known: the same for each target."""
    size = call.input_summary.get("bytes", 0) - call.input_summary.get("attachment_bytes", 0)
    output = min(call.max_tokens or COMPARED_OUTPUT, COMPARED_OUTPUT) * call.choices
    counts = {"input": size // BYTES_A_TOKEN + 1}
    if "output" in call.sides:
        counts["output"] = output
    return Usage(counts=counts, source="estimated")
