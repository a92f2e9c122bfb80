"""Settings of those who use the gateway: its operator, virtual keys, and where the others are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field, SecretStr

from gateway.settings.limits import LimitSettings
from gateway.settings.section import Section


class ControlSettings(Section):
    """Where virtual keys and budgets are kept."""

    url: SecretStr = Field(
        SecretStr(""),
        description="As `ledger.url`; without it, the ledger's PostgreSQL, or `control.db` beside the "
        "journal's folder. It is in no journal: back it up.",
    )


class AdminSettings(Section):
    """Who operates the gateway."""

    key: SecretStr | None = Field(
        None,
        description="The operator's key, for all costs, keys and budgets; at least 20 characters, and "
        "random: `openssl rand -hex 32`. Without it those doors are shut.",
    )


class KeySettings(Section):
    """One virtual key and its owner."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="Public id of the key (`billing.key.id`)."
    )
    key: SecretStr | None = Field(None, description="The key itself; or name a variable in `key_env`.")
    key_env: str | None = Field(None, description="Environment variable that holds the key.")
    name: str | None = Field(None, max_length=256, description="What the key is called.")
    user: str = Field(min_length=1, max_length=256, description="Owner (`billing.user.id`).")
    user_name: str | None = Field(None, max_length=256, description="Display name (`billing.user.name`).")
    team: str | None = Field(None, max_length=256, description="Team (`billing.team`).")
    project: str | None = Field(None, max_length=256, description="Project (`billing.project`).")
    tags: tuple[str, ...] = Field((), description="Tags (`billing.tags`).")
    models: tuple[str, ...] | None = Field(
        None, description="Models that it may name, or patterns with `*`; without it, all."
    )
    endpoints: tuple[str, ...] | None = Field(
        None, description="Endpoints that it may use, as in `providers.<name>.protocols`; without it, all."
    )
    expires_at: AwareDatetime | None = Field(None, description="When it ends, with a zone; else never.")
    on_disconnect: Literal["drain", "cancel"] = Field(
        "drain",
        description="When a caller leaves a stream: `drain` reads it to its end, for the provider's own "
        "figure; `cancel` stops there, and the bill is estimated.",
    )
    unpriced: Literal["serve", "refuse"] | None = Field(
        None, description="For this key, instead of `prices.unpriced`."
    )
    limits: LimitSettings = LimitSettings()  # type: ignore[call-arg]
