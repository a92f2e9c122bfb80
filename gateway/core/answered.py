"""Answered: the HTTP status under which a bill is counted, which follows from what the bill says alone."""

from __future__ import annotations

from typing import Final

OF_ERROR: Final = {
    "upstream_timeout": 504,
    "interrupted": 503,
    "journal_unavailable": 503,
    "internal_error": 500,
    "invalid_header": 400,
    "invalid_target": 400,
}
"""By the type of the error, where no provider answered; of any other one it is 502."""


def status_of(provider_status: int | None, error_type: str | None) -> str:
    """Return the provider's status, or where it did not answer, the one that says so."""
    if provider_status is not None:
        return str(provider_status)
    return str(OF_ERROR.get(error_type or "", 502))
