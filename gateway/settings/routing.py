"""Settings of routing: aliases, selectors, retries and cooldown."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.settings.section import Section


class AliasTargetSettings(Section):
    """One target of an alias."""

    model: str = Field(
        min_length=1, max_length=256, description="A model's name, or `provider/model`; never an alias."
    )
    weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Its share where chance decides; 0 is the last resort."
    )


class AliasSettings(Section):
    """A name of the operator's for one or several targets."""

    targets: tuple[AliasTargetSettings, ...] = Field(
        min_length=1, max_length=32, description="In the order in which `in_order` tries them."
    )
    selector: Literal["random", "in_order", "cost", "latency", "throughput", "performance"] = Field(
        "in_order", description="Which target is tried first."
    )
    fallback_on: tuple[
        Literal["timeout", "server_error", "rate_limited", "connection", "unauthorized"], ...
    ] = Field(
        ("timeout", "server_error", "rate_limited", "connection", "unauthorized"),
        description="Failures after which another attempt is made.",
    )
    attempts_max: int | None = Field(None, ge=1, le=32, description="Instead of `retries.attempts_max`.")
    connect_timeout_s: float | None = Field(None, gt=0, description="Instead of `upstream.…`, in seconds.")
    first_byte_timeout_s: float | None = Field(None, gt=0, description="Instead of `upstream.…`, in seconds.")
    idle_timeout_s: float | None = Field(None, gt=0, description="Instead of `upstream.…`, in seconds.")
    total_timeout_s: float | None = Field(None, gt=0, description="Instead of `upstream.…`, in seconds.")


class RetriesSettings(Section):
    """When another attempt follows a failed one; never after the first byte of an answer."""

    attempts_max: int = Field(
        3, ge=1, le=32, description="Calls of providers for one request, the first one included."
    )
    pause_s: float = Field(
        0.5, gt=0, description="Before a provider is asked again; doubles each time, at random by half."
    )
    pause_max_s: float = Field(8.0, gt=0, description="Its bound, in seconds.")
    waited_max_s: float = Field(10.0, ge=0, description="All pauses of one request together, in seconds.")


class CooldownSettings(Section):
    """When a target that fails is left alone; the only target of a request never is."""

    failures: float = Field(0.5, gt=0, le=1, description="Share of recent attempts that failed.")
    attempts_min: int = Field(5, ge=1, description="Fewer recent attempts than this say nothing.")
    recent_s: float = Field(30.0, gt=0, description="What is recent, in seconds.")
    pause_s: float = Field(
        5.0, gt=0, description="The first pause, in seconds; doubles with each probe that fails."
    )
    pause_max_s: float = Field(300.0, gt=0, description="Its bound, also of what a provider asks for.")


class RoutingSettings(Section):
    """How a model finds its provider."""

    default_provider: str | None = Field(
        None, description="Serves model names that no provider's card knows."
    )
    selector: Literal["random", "in_order", "cost", "latency", "throughput", "performance"] = Field(
        "cost", description="For a model that several providers serve: which one is tried first."
    )
    window_s: float = Field(
        300.0, ge=1, le=86_400, description="How far back targets are measured, in seconds."
    )
    retries: RetriesSettings = RetriesSettings()  # type: ignore[call-arg]
    cooldown: CooldownSettings = CooldownSettings()  # type: ignore[call-arg]
    aliases: dict[str, AliasSettings] = Field(
        {}, description="Names of your own for models, each with its targets."
    )
