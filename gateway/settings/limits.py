"""Settings of the limits: rules, and where counters are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, model_validator

from gateway.limits.store import COUNT_MAX
from gateway.settings.section import Section

RULES_MAX = 200


class LimitSettings(Section):
    """What a minute, or a moment, has room for."""

    requests_per_minute: int | None = Field(
        None, ge=1, le=COUNT_MAX, description="Most requests in any 60 seconds."
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, le=COUNT_MAX, description="Most tokens in any 60 seconds, input and output."
    )
    concurrent: int | None = Field(None, ge=1, le=COUNT_MAX, description="Most requests at a time.")


class LimitRuleSettings(LimitSettings):
    """One rule; it holds for requests that have all that it names."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="Its name in refusals and metrics; used once."
    )
    key: str | None = Field(None, min_length=1, description="A key's id; `*` for each key by itself.")
    user: str | None = Field(None, min_length=1, description="A key's owner; `*` for each by itself.")
    team: str | None = Field(None, min_length=1, description="A team; `*` for each by itself.")
    project: str | None = Field(None, min_length=1, description="A project; `*` for each by itself.")
    model: str | None = Field(
        None,
        min_length=1,
        description="A model, as the caller or the provider calls it, or `provider/model`; `*` for each.",
    )

    @model_validator(mode="after")
    def _limits_something(self) -> LimitRuleSettings:
        if self.requests_per_minute is self.tokens_per_minute is self.concurrent is None:
            raise ValueError("give `requests_per_minute`, `tokens_per_minute` or `concurrent`")
        return self


class LimitsSettings(Section):
    """How much is let in."""

    rules: tuple[LimitRuleSettings, ...] = Field(
        (), max_length=RULES_MAX, description="Rules; of all that hold for a request each must have room."
    )
    backend: SecretStr = Field(
        SecretStr(""),
        description="Where counters are: `memory`, `sqlite` (`limits.db` beside the journal's folder, for "
        "all workers of it), or `redis://user:password@host:6379/0` (also `rediss://`, `valkey://`, "
        "`unix://`), for several machines. Without it `memory`, and `sqlite` with several workers.",
    )
    when_unavailable: Literal["open", "closed"] = Field(
        "open",
        description="While a shared store does not answer: `open` lets requests in uncounted, `closed` "
        "refuses them with 503.",
    )
    wait_s: float = Field(
        0.05, gt=0, le=10, description="How long a request waits for a shared store, in seconds."
    )
    lease_s: float = Field(
        15.0,
        ge=1,
        le=3600,
        description="How long after its death the places of a worker are free again, in seconds.",
    )
    assumed_output_tokens: int = Field(
        1000,
        ge=0,
        le=COUNT_MAX,
        description="Output that a request is taken to ask for if it names no maximum, in tokens.",
    )
