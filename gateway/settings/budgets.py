"""Settings of budgets: those that the configuration defines, and what holds for all of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from gateway.settings.section import Section


class BudgetSettings(Section):
    """One budget."""

    id: str = Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="Its name, which refusals tell.")
    scope: Literal["key", "user", "team", "project"] = Field(description="Whose spending it bounds.")
    payer: str = Field(
        "*",
        min_length=1,
        max_length=256,
        description="Id of the key or user, name of the team or project; `*`: each one apart.",
    )
    limit_usd: str | int = Field(description="What may be spent in a period, as a quoted decimal.")
    period: Literal["day", "week", "month", "total"] = Field(
        description="From midnight, Monday or the first on; `total` never begins anew."
    )
    time_zone: str = Field("UTC", description="Where periods begin, such as `Europe/Berlin`.")
    mode: Literal["refuse", "warn"] = Field("refuse", description="`warn` only tells, and refuses nobody.")


class BudgetsSettings(Section):
    """What keys, users, teams and projects may spend."""

    definitions: tuple[BudgetSettings, ...] = Field(
        (), description="Budgets; others are made by `spanbill budgets` or over `/v1/budgets`."
    )
    when_unavailable: Literal["refuse", "admit"] = Field(
        "refuse",
        description="While what was spent cannot be known: requests of keys with a budget are refused with "
        "503, or let in. Others are never affected.",
    )
    unpriced: Literal["refuse", "admit"] = Field(
        "refuse", description="Under a budget, a model without a rate is refused with 402, or let in."
    )
    assumed_output_tokens: int = Field(
        16_384,
        ge=1,
        le=10_000_000,
        description="Reserved for an answer whose request names no `max_tokens`; less where the model's "
        "context is smaller.",
    )
    forget_after_h: int | None = Field(
        None,
        ge=1,
        description="Hours after which a gateway of another folder that shares the database and does not "
        "answer loses what it has reserved; without it, it never does.",
    )
    webhook_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="Is told of 50, 80 and 100 %; docs/budgets.md has how.",
    )
    webhook_secret: SecretStr | None = Field(
        None, min_length=16, description="Signs what the webhook is told; needed with `webhook_url`."
    )
