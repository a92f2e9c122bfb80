"""Providers for operators: which there are and what they still want, and whether one of them really serves.

No key is ever shown, only the name of the variable or setting that holds it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated, Final

import msgspec
import typer

from gateway.assembly import book_of, configured_providers
from gateway.cli.printing import display, table_of
from gateway.cli.stopping import settings_or_stop, stop
from gateway.cli.trial import Trial, address_of, door_of, try_provider
from gateway.core.errors import SpanbillError
from gateway.core.money import pico_to_usd
from gateway.pricing.catalogue import CatalogueError
from gateway.providers.places import Provider
from gateway.routing.retry import REFUSED
from gateway.settings import Settings, SettingsError

app = typer.Typer(no_args_is_help=True, help="Providers: list them, and try one with the operator's key.")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
USAGE: Final = 2
"""Exit code of a question that cannot be asked."""
ADVICE: Final = {
    400: "it refuses the request; another model may take it: --model",
    402: "its account has no credit",
    404: "it has no such model, or not at this address; name another with --model, or see base_url",
    429: "its limit is reached, or its account has no credit; try again later",
}
"""What to do next, by the status of the provider's error."""


@app.command("list")
def list_(json: Json = False) -> None:
    """List all providers: what they speak, where they are, and what they still want."""
    found = _providers(settings_or_stop())
    if json:
        _print([_row(provider) for provider in found.values()])
        return
    table = table_of("provider", "doors", "base URL", "key", "ready")
    for provider in found.values():
        row = _row(provider)
        table.add_row(
            provider.name,
            ", ".join(provider.doors),
            str(row["base_url"]),
            str(row["key"]),
            "yes" if provider.ready else f"no: {_wanting(provider)}",
        )
    display(table)


@app.command("test")
def try_(
    name: Annotated[str, typer.Argument(help="Of the provider, as `spanbill providers list` has it.")],
    model: Annotated[str | None, typer.Option(help="As the provider calls it.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Ask for a stream.")] = False,
    json: Json = False,
) -> None:
    """Make one smallest real call; exit 1 unless it is answered and its usage reported."""
    settings = settings_or_stop()
    found = _providers(settings)
    provider = found.get(name)
    if provider is None:
        stop(f"there is no provider {name}; there are {', '.join(found)}", USAGE)
    if not provider.ready:
        stop(f"{name} cannot be called: {_wanting(provider)}", USAGE)
    door = door_of(provider)
    if door is None:
        stop(f"{name} has no door that can be tried: it has {', '.join(provider.doors)}", USAGE)
    asked = model or next(iter(provider.card.suggest), None)
    if asked is None:
        stop(f"{name} has no model that everybody has; name one of yours with --model", USAGE)
    try:
        book = book_of(settings.prices)
        trial = asyncio.run(try_provider(settings, provider, book, door, asked, stream=stream))
    except (CatalogueError, SettingsError) as fault:
        stop(str(fault))
    except SpanbillError as fault:
        stop(fault.message, USAGE)
    facts = {"provider": name, "door": door, **facts_of(trial, provider, asked, stream=stream)}
    advice = advice_of(trial, provider)
    if json:
        _print({**facts, "served": trial.served, "next": advice})
    else:
        table = table_of("what", "found")
        for what, said in facts.items():
            table.add_row(what, said)
        display(table)
        print(f"{name} serves" if trial.served else f"{name} does not serve as it should", end="")
        print("" if advice is None else f": {advice}", flush=True)
    raise SystemExit(0 if trial.served else 1)


def facts_of(trial: Trial, provider: Provider, model: str, *, stream: bool) -> dict[str, str]:
    """Return what was found, row by row."""
    exchange = trial.exchange
    reply, usage = exchange.reply, exchange.reply.usage
    counts = {} if usage is None or usage.source != "provider" else usage.counts
    said = ", ".join([f"{name} {units}" for name, units in counts.items()]) or "not reported"
    facts = {
        "address": trial.url,
        "reached": _reached(trial),
        "key": _key(trial, provider),
        "model": f"{model}, served by {reply.response_model}" if reply.response_model else model,
        "answer": _answer(trial),
        "usage": "of the stream, below" if stream else said,
        "usage of a stream": said if stream else "not asked for; see --stream",
        "cost by rates": _cost(trial),
    }
    if usage is not None and usage.reported_cost_usd is not None:
        facts["cost as reported"] = f"{usage.reported_cost_usd} USD"
    if trial.words is not None:
        facts["the provider says"] = trial.words
    return facts


def advice_of(trial: Trial, provider: Provider) -> str | None:
    """Return what to do next; None where nothing is to be done."""
    exchange, status, fault = trial.exchange, trial.status, trial.fault
    base_url = f"providers.{provider.name}.base_url"
    if fault is not None:
        where = "to its API, and not to a page or a proxy" if fault.sent else "there, and is it running"
        return f"{fault.message}; does {base_url} lead {where}?"
    if status in REFUSED:
        if provider.key_from is None:
            return f"it wants a key; set {' or '.join(provider.card.key_env) or 'providers.….api_key'}"
        return f"it refuses the key in {provider.key_from}; renew it, or see what it may do"
    if status is not None and status >= 400:
        return ADVICE.get(status, "it fails; try again later" if status >= 500 else "see what it says")
    if exchange.outcome != "ok":
        return f"what it sent is no whole answer of this protocol; see {base_url}"
    if not trial.served:
        return "it reports no usage, so that its bills would be estimated"
    if exchange.charge is None:
        return f"its bills have no cost without a rate for {exchange.missing_rate}; see prices.overrides"
    return None


def _reached(trial: Trial) -> str:
    if trial.fault is not None and trial.status is None:
        return "yes, and then not a word of HTTP" if trial.fault.sent else "no"
    return f"yes, in {trial.exchange.latency_ns // 1_000_000} ms"


def _key(trial: Trial, provider: Provider) -> str:
    """Say whether the key was taken; an error other than a refusal may come before it is looked at."""
    sent = "none was sent" if provider.key_from is None else f"that of {provider.key_from}"
    if trial.status in REFUSED:
        return f"{sent}: refused ({trial.status})"
    return f"{sent}: accepted" if trial.exchange.outcome == "ok" else sent


def _answer(trial: Trial) -> str:
    if trial.fault is not None:
        return "none" if trial.status is None else f"{trial.status}, and then {trial.fault.code}"
    return f"{trial.status}, {'whole' if trial.exchange.outcome == 'ok' else trial.exchange.error_type}"


def _cost(trial: Trial) -> str:
    exchange, charge = trial.exchange, trial.exchange.charge
    if exchange.outcome != "ok":
        return "none, without an answer"
    if charge is None:
        return f"no rate for {exchange.missing_rate}"
    how = "" if trial.served else ", estimated"
    return f"{pico_to_usd(charge.cost_pico_usd)} USD, by {charge.price_id}{how}"


def _row(provider: Provider) -> dict[str, object]:
    free = provider.card.auth == "none" or provider.card.key_optional
    key = provider.key_from or ("needs none" if free else " or ".join(provider.card.key_env) or "missing")
    return {
        "provider": provider.name,
        "doors": list(provider.doors),
        "base_url": f"{address_of(provider.origin)}{provider.origin.base_path}",
        "key": key if provider.key_from is None else f"{key} (set)",
        "ready": provider.ready,
        "wants": list(provider.wants),
    }


def _wanting(provider: Provider) -> str:
    if provider.wants:
        return f"set {' and '.join(provider.wants)}"
    return f"configure providers.{provider.name}.api_key"


def _providers(settings: Settings) -> dict[str, Provider]:
    try:
        return configured_providers(settings, os.environ)
    except SettingsError as fault:
        stop(str(fault))


def _print(document: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
