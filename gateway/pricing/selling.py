"""Selling: from what a reply consumed, and who consumed it where and when, to the whole charge or none.

Other models' tokens inside a reply are charged at those models' rates. One part without a rate leaves the
whole bill unpriced: a total that silently lacks something would be worse than none. The result depends on
nothing but the arguments, so an old bill can be rated again from what stands on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.core.charge import Adjusted, Charge, Line, NoRate
from gateway.core.usage import Usage
from gateway.pricing.adjusting import Adjustment, adjusted
from gateway.pricing.bounding import most_pico
from gateway.pricing.catalogue import Catalogue
from gateway.pricing.entries import Context, context_of
from gateway.pricing.rates import RateCard
from gateway.pricing.rating import rated, tier_of


class Sale(msgspec.Struct, frozen=True, kw_only=True):
    """Whose request went where, and when.

    Args:
        section: the provider's section of the catalogue.
        model: as it was named to the provider.
        served: as the reply names the model, None if it names none; this is the one that is priced.
    """

    provider: str
    section: str
    model: str
    at_unix_s: int
    served: str | None = None
    key_id: str = ""
    team: str | None = None


class Book:
    """The catalogue in force and the operator's adjustments; both are replaced together or not at all."""

    def __init__(self, catalogue: Catalogue, adjustments: Sequence[Adjustment] = ()) -> None:
        self.catalogue = catalogue
        self.adjustments = tuple(adjustments)

    def swap(self, other: Book) -> None:
        """Take over what another book holds: it was made, and so wholly checked, before this is called."""
        self.catalogue, self.adjustments = other.catalogue, other.adjustments

    def card(self, sale: Sale) -> RateCard | None:
        """Return the list rates of the model that served, or the fallback's, or None."""
        return self._card(sale, sale.served or sale.model, ())

    def charge(self, sale: Sale, usage: Usage) -> Charge | NoRate:
        """Return the whole charge, or the first thing that has no rate."""
        context = context_of(usage)
        card = self._card(sale, sale.served or sale.model, context)
        if card is None:
            return NoRate("model")
        lines = rated(usage.counts, card)
        if isinstance(lines, NoRate):
            return lines
        estimated = card.estimated
        for other in usage.others:
            other_card = self._card(sale, other.model, context)
            if other_card is None:
                return NoRate(f"model {other.model}")
            more = rated(other.counts, other_card, model=other.model)
            if isinstance(more, NoRate):
                return NoRate(f"model {other.model}: {more.reason}")
            estimated = estimated or other_card.estimated
            lines += more
        return Charge(
            lines=lines,
            price_id=card.price_id,
            catalog=self.catalogue.hash,
            tier=tier_of(card, usage.counts.get("input", 0)),
            adjustments=self._adjustments(sale, lines),
            estimated=estimated,
            exchange=card.exchange,
            requested_price_id=self._requested(sale, card, context),
        )

    def most_pico(self, sale: Sale, input_tokens: int, output_tokens: int) -> int | None:
        """Return the most that a request can cost, adjustments included; None where there is no rate."""
        card = self.card(sale)
        most = None if card is None else most_pico(card, input_tokens, output_tokens)
        if most is None or not self.adjustments:
            return most
        line = Line(dimension="request", units=1, rate_atto_per_million=0, cost_pico_usd=most)
        return most + sum([rule.cost_pico_usd for rule in self._adjustments(sale, (line,))])

    def _card(self, sale: Sale, model: str, context: Context) -> RateCard | None:
        catalogue = self.catalogue
        card = catalogue.card(sale.provider, sale.section, model, sale.at_unix_s, context)
        return catalogue.fallback if card is None or not card.rates else card

    def _adjustments(self, sale: Sale, lines: tuple[Line, ...]) -> tuple[Adjusted, ...]:
        if not self.adjustments:
            return ()
        return adjusted(
            self.adjustments,
            sum([line.cost_pico_usd for line in lines]),
            provider=sale.provider,
            key_id=sale.key_id,
            team=sale.team,
            at_unix_s=sale.at_unix_s,
        )

    def _requested(self, sale: Sale, card: RateCard, context: Context) -> str | None:
        """Return the entry of the requested model, where the model that served has another one."""
        if sale.served is None or sale.served == sale.model:
            return None
        asked = self._card(sale, sale.model, context)
        asked_id = "none" if asked is None else asked.price_id
        return None if asked_id == card.price_id else asked_id
