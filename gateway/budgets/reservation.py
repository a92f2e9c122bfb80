"""Reservation: the most that a request can come to, before anything is known but what it asks for.

No tokenizer makes more than one token of a byte, so a body has at most as many tokens as bytes, and an
image at most IMAGE_TOKENS_MAX; a model takes no more than its context. Each answer has at most the output
that the request allows, or else the model's context or `assumed` tokens, whichever is less.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.admission.guards import Aim
from gateway.core.exchange import Call
from gateway.metering.estimate import IMAGE_TOKENS_MAX
from gateway.pricing.selling import Book, Sale


def most_of(book: Book, call: Call, aims: Sequence[Aim], assumed: int) -> int | None:
    """Return the most that a request can cost at the dearest target, in pico-USD; None where one has no rate.

    Args:
        assumed: output tokens of an answer for which the request names no bound.
    """
    most = 0
    for aim in aims:
        cost = _at(book, call, aim, assumed)
        if cost is None:
            return None
        most = max(most, cost)
    return most


def _at(book: Book, call: Call, aim: Aim, assumed: int) -> int | None:
    identity = call.identity
    sale = Sale(
        provider=aim.provider,
        section=aim.prices,
        model=aim.model,
        key_id=identity.key_id,
        team=identity.team,
        at_unix_s=call.started_unix_ns // 1_000_000_000,
    )
    card = book.card(sale)
    if card is None:
        return None
    window = card.context_window
    output = 0
    if "output" in call.sides:
        one = assumed if call.max_tokens is None else call.max_tokens
        output = (one if window is None else min(one, window)) * call.choices
    return book.most_pico(sale, _input(call, window, assumed), output)


def _input(call: Call, window: int | None, assumed: int) -> int:
    summary = call.input_summary
    tokens = max(1, summary.get("bytes", 0)) + summary.get("images", 0) * IMAGE_TOKENS_MAX
    if summary.get("references"):  # how much is stored there, nobody here knows
        tokens = max(tokens, assumed if window is None else window)
    return tokens if window is None else min(tokens, window)
