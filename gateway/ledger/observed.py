"""Observed: a bill in the words of the metrics, read back from its span: what its process counted."""

from __future__ import annotations

from typing import Final

from gateway.core.answered import status_of
from gateway.ledger.stated import Counted, Facts
from otel.observation import Observation, Tally, TallyLabels, labels_of

NOBODY: Final = "none"
"""The provider of a bill that called none."""


def observed(a: Facts, counted: Counted, cost_pico: int | None) -> Observation:
    """Return what the metrics count of a bill.

    Raises:
        LookupError, TypeError: it is no bill.
    """
    get = a.get
    error_type = get("error.type")
    first_s = get("gen_ai.response.time_to_first_chunk")
    return Observation(
        api_key_id=a["billing.key.id"],
        provider=get("gen_ai.provider.name", NOBODY),
        model=get("gen_ai.response.model") or get("billing.target.model") or a["gen_ai.request.model"],
        status=status_of(get("billing.http.status_code"), error_type),
        bill_status=a["billing.status"],
        # Doubles of whole nanoseconds: up to 26 days they come back exactly.
        latency_ns=round(a["billing.latency_ms"] * 1e6),
        error_type=error_type,
        cost_pico_usd=cost_pico,
        tokens={dimension: a[name] for name, dimension in counted},
        time_to_first_chunk_ns=None if first_s is None else round(first_s * 1e9),
        tried=tuple(get("billing.providers_tried", ())),
    )


def tally(into: dict[TallyLabels, Tally], bill: Observation) -> None:
    """Add a bill to tallies."""
    labels = labels_of(bill)
    found = into.get(labels)
    if found is None:
        found = into[labels] = Tally()
    found.observe(bill)
