"""Model: all keys of the settings, and how they are read.

Environment wins over the file. Every key is also `SPANBILL_…` with `__` for nesting:
`journal.durability` is `SPANBILL_JOURNAL__DURABILITY`. No stage sees this object: the composition root
hands each one the values that it needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Final, Literal

import yaml
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from gateway.settings.budgets import BudgetsSettings
from gateway.settings.keys import AdminSettings, ControlSettings, KeySettings
from gateway.settings.limits import LimitsSettings
from gateway.settings.logs import LoggingSettings
from gateway.settings.routing import RoutingSettings
from gateway.settings.section import Section

ENV_PREFIX = "SPANBILL_"
NOT_SETTINGS = frozenset(
    {"SPANBILL_CONFIG", "SPANBILL_RECORDINGS", "SPANBILL_PRICES", "SPANBILL_STACK_CACHE"}
)
"""Names with our prefix that are not keys of the settings."""
_QUOTED: Final = re.compile(r"""(['"])((?:\\.|(?!\1).)*)\1""")
_OF_YAML: Final = re.compile(r"<[a-z ]+>|\\?.")
"""What YAML's errors may quote: words of its own, and single characters. Anything else may be a key."""


class ServerSettings(Section):
    """Where the gateway listens, and the bounds of a request."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that serve, about as many as there are cores. Beside them there is one for "
        "ledger, delivery and retention, and above 1 one that starts them all and replaces those that die.",
    )
    max_body_bytes: int = Field(
        10 * 1024 * 1024, ge=1024, description="Largest request body, in bytes; above it 413."
    )
    shutdown_grace_s: int = Field(
        30, ge=0, description="How long open requests may go on after SIGTERM, in seconds."
    )
    max_connections: int = Field(
        4096,
        ge=1,
        description="Open connections of each worker; above it 503. Less where a process may open few files.",
    )
    max_header_bytes: int = Field(
        32 * 1024, ge=1024, description="Request line and headers together, in bytes; above it 431."
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="To a complete head; then 408 if it was begun, in seconds."
    )
    keep_alive_s: float = Field(75.0, gt=0, description="Between two requests of a connection, in seconds.")
    body_idle_timeout_s: float = Field(
        30.0, gt=0, description="Without a byte of a body; then 408, in seconds."
    )
    body_timeout_s: float = Field(300.0, gt=0, description="For a whole body; then 408, in seconds.")
    write_idle_timeout_s: float = Field(
        60.0, gt=0, description="Without the client reading; then it is cut off, in seconds."
    )


class JournalSettings(Section):
    """Where bills are kept, and how durable they are."""

    directory: Path = Field(Path("data/journal"), description="Folder of the journal.")
    durability: Literal["group", "process", "strict"] = Field(
        "group",
        description="`group`: one fdatasync for many bills, awaited; `process`: survives kill -9 but not "
        "power loss; `strict`: one fdatasync per record.",
    )
    min_free_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="With less free disk space, in bytes, new requests are refused with 503.",
    )
    segment_bytes_max: int = Field(
        64 * 1024 * 1024, ge=4096, description="A segment is sealed at this size, in bytes."
    )
    retention_days: int | None = Field(
        None,
        ge=1,
        description="Segments older than so many days are removed, if every bill in them was delivered; "
        "without it they are kept.",
    )
    retention_bytes: int | None = Field(
        None,
        ge=4096,
        description="While segments take more than this, in bytes, the oldest delivered ones are removed.",
    )
    archive: Path | None = Field(None, description="Folder for compressed copies of removed segments.")
    archive_retention_days: int | None = Field(None, ge=1, description="Older copies go; else none does.")


class LedgerSettings(Section):
    """Where bills stand as rows."""

    url: SecretStr = Field(
        SecretStr(""),
        description="`postgresql://user:password@host/database`, which several gateways may share, or "
        "`sqlite:///path`; without it, `ledger.db` beside the journal's folder.",
    )
    retention_days: int | None = Field(
        None,
        ge=1,
        description="Rows of bills older than so many days go, and their sums stay; else all stay.",
    )


class ProviderSettings(Section):
    """One provider: what to change on a built-in card, or one of your own."""

    enabled: bool = Field(True, description="False takes the provider out of routing.")
    title: str | None = Field(None, description="Display name.")
    base_url: str | None = Field(
        None,
        description="Where the provider is; needed for a provider of your own, and for a built-in one if "
        "only you know that.",
    )
    api_key: SecretStr | None = Field(
        None, description="The provider's key; the card's variables are read otherwise."
    )
    api_key_env: str | None = Field(None, description="Environment variable that holds the provider's key.")
    protocols: tuple[str, ...] = Field(
        ("chat_completions",),
        description="For a provider of your own: which doors it serves, of `chat_completions`, `messages`, "
        "`count_tokens`, `responses`, `responses_compact`, `responses_input_tokens`, `embeddings`. For a "
        "built-in one: doors that it has beside those of its card.",
    )
    models: tuple[str, ...] = Field(
        (), description="For a provider of your own: model names or `prefix*` patterns."
    )
    prices: str | None = Field(None, description="Which section of the price catalogue applies to it.")
    stream_usage: Literal["on_request", "always"] = Field(
        "on_request", description="For a provider of your own: whether stream usage must be asked for."
    )
    reasoning_in_output: bool = Field(
        True, description="For a provider of your own: whether its output count includes reasoning."
    )
    hidden_output: bool = Field(
        False, description="For a provider of your own: whether what only its total holds is hidden thinking."
    )
    output_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens",
        description="For a provider of your own: the member that bounds the output of a chat, where a "
        "request of another protocol is translated for it.",
    )
    reasoning_content: bool = Field(
        False,
        description="For a provider of your own: whether a translated chat gives the model its earlier "
        "thoughts back.",
    )


class UpstreamSettings(Section):
    """Bounds on what a provider may take and send."""

    connect_timeout_s: float = Field(30.0, gt=0, description="To a connected socket, in seconds.")
    first_byte_timeout_s: float = Field(
        30.0, gt=0, description="From sent to the reply's status line, in seconds."
    )
    idle_timeout_s: float = Field(120.0, gt=0, description="Between two reads of a reply, in seconds.")
    total_timeout_s: float = Field(3600.0, gt=0, description="For a whole attempt, in seconds.")
    max_reply_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="Largest whole (not streamed) reply, in bytes."
    )
    transport: Literal["auto", "fast", "httpx"] = Field(
        "auto", description="`auto`: our transport, and httpx where a proxy is configured for the host."
    )
    drain_s: float = Field(
        60.0, ge=0, description="How long a stream is read on after its client left, in seconds."
    )
    drains_max: int = Field(
        1000, ge=0, description="How many streams each worker reads on at a time after their clients left."
    )
    drain_bytes_max: int = Field(
        64 * 1024 * 1024, ge=0, description="How much is read after a client left, in bytes."
    )


class AdjustmentSettings(Section):
    """A discount, a mark-up or a fee: a line of its own on the bill."""

    id: str = Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="Its name on the bill; used once.")
    kind: Literal["discount", "markup", "fee"] = Field(
        description="`discount`: off the rated lines; `markup`: on what discounts leave; `fee`: per request."
    )
    percent: str | int | None = Field(None, description="Of a discount or mark-up, as a quoted decimal.")
    amount: str | int | None = Field(None, description="Of a fee: `0.001`, or `2 sat`.")
    provider: str | None = Field(None, description="Only for requests that this provider served.")
    key: str | None = Field(None, description="Only for this key's requests.")
    team: str | None = Field(None, description="Only for this team's requests.")
    since: date | datetime | None = Field(None, description="From this day or time on; UTC without a zone.")
    until: date | datetime | None = Field(None, description="Until before this day or time.")


class PricesSettings(Section):
    """Rates, and what is added to them or taken off."""

    catalog: Path | None = Field(
        None, description="The operator's own catalogue file, which goes before the rates that ship."
    )
    overrides: dict[str, dict[str, str | int]] = Field(
        {},
        description="`provider/model` to rates in USD per million tokens, as quoted decimals: "
        '`{"openai/gpt-4o": {"input": "2.50", "output": "10"}}`.',
    )
    exchange: dict[str, str | int] = Field(
        {}, description="USD for one unit of another currency that rates are given in: `{sat: '0.00065'}`."
    )
    adjustments: tuple[AdjustmentSettings, ...] = Field((), description="Discounts, mark-ups and fees.")
    unpriced: Literal["serve", "refuse"] = Field(
        "serve",
        description="A model without a rate: `serve` it, and the bill is `unpriced`; `refuse` it with 402.",
    )
    fallback: dict[str, str | int] = Field(
        {},
        description="Rates for models without any; their bills are `estimated` then. Empty: no cost.",
    )


class TelemetrySettings(Section):
    """How bills are shipped."""

    cache_write_name: Literal["cache_write", "cache_creation"] = Field(
        "cache_write", description="Which name of the conventions carries cache writes."
    )
    ship_batch_lines: int = Field(200, ge=1, le=2000, description="Bills in one POST to the Collector.")
    ship_interval_s: float = Field(
        0.2, gt=0, description="How long the shipper waits for more bills, in seconds."
    )


class EstimatesSettings(Section):
    """How a missing usage is estimated."""

    tokenizer: Literal["o200k_base", "none"] = Field(
        "o200k_base",
        description="Counts the output where its text is at hand; loaded when first needed: 75 MiB a worker. "
        "`none`: four bytes are a token.",
    )


class Settings(BaseSettings):
    """The whole configuration of one gateway."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Comma-separated keys that share one anonymous user; `name=key` names the user.",
    )
    keys: tuple[KeySettings, ...] = Field((), description="Virtual keys with their owners.")
    demo: bool = Field(True, description="Make and print a demo key if no key is configured at all.")
    admin: AdminSettings = AdminSettings()  # type: ignore[call-arg]  # the plugin-free mypy does not see defaults
    server: ServerSettings = ServerSettings()  # type: ignore[call-arg]
    journal: JournalSettings = JournalSettings()  # type: ignore[call-arg]
    ledger: LedgerSettings = LedgerSettings()  # type: ignore[call-arg]
    control: ControlSettings = ControlSettings()  # type: ignore[call-arg]
    providers: dict[str, ProviderSettings] = Field(
        {}, description="Providers by name; built-in ones need only a key."
    )
    routing: RoutingSettings = RoutingSettings()  # type: ignore[call-arg]
    upstream: UpstreamSettings = UpstreamSettings()  # type: ignore[call-arg]
    budgets: BudgetsSettings = BudgetsSettings()  # type: ignore[call-arg]
    prices: PricesSettings = PricesSettings()  # type: ignore[call-arg]
    limits: LimitsSettings = LimitsSettings()  # type: ignore[call-arg]
    estimates: EstimatesSettings = EstimatesSettings()  # type: ignore[call-arg]
    telemetry: TelemetrySettings = TelemetrySettings()  # type: ignore[call-arg]
    logging: LoggingSettings = LoggingSettings()  # type: ignore[call-arg]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then what the file said (passed as arguments)."""
        return env_settings, init_settings


class SettingsError(Exception):
    """The configuration cannot be used; the message lists every mistake, one a line."""


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read `SPANBILL_CONFIG` (or `spanbill.yaml` if it is there) and the environment.

    Raises:
        SettingsError: listing every unknown key and unusable value, with where each one stands.
    """
    mistakes: list[str] = []
    values = _file_values(environ.get("SPANBILL_CONFIG"))
    known = {name.upper() for name in Settings.model_fields}
    for name in environ:
        section = name.removeprefix(ENV_PREFIX).split("__")[0]
        if name.startswith(ENV_PREFIX) and name not in NOT_SETTINGS and section.upper() not in known:
            mistakes.append(f"{name}: there is no such setting")
    for name in [name for name in values if name.startswith("_")]:  # pydantic's own options, not keys of ours
        mistakes.append(f"{name}: there is no such setting")
        del values[name]
    try:
        settings = Settings(**values)  # type: ignore[arg-type]  # the model itself checks the values
    except ValidationError as fault:
        for error in fault.errors(include_input=False, include_url=False):
            where = ".".join(str(part) for part in error["loc"])
            mistakes.append(f"{where} ({ENV_PREFIX}{where.upper().replace('.', '__')}): {error['msg']}")
    except UnreadableVariable as fault:  # its message has the field in quotes, and no value
        field = str(fault).split('"')[1]
        mistakes.append(f"{ENV_PREFIX}{field.upper()}: the variable is not valid JSON")
    if mistakes:
        raise SettingsError(
            "the configuration has mistakes:\n" + "\n".join(f"  - {line}" for line in mistakes)
        )
    return settings


def settings_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the file of settings stands, which need not be there."""
    return Path(environ.get("SPANBILL_CONFIG") or "spanbill.yaml")


def _file_values(named: str | None) -> dict[str, object]:
    """Return what the file of settings says; nothing if there is none and none is named.

    Raises:
        SettingsError: it cannot be read, or is no mapping.
    """
    path = Path(named or "spanbill.yaml")
    if not named and not path.exists():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise SettingsError(f"{path}: {fault.strerror}") from fault
    except UnicodeDecodeError as fault:
        raise SettingsError(f"{path}: the file is not UTF-8") from fault
    except yaml.MarkedYAMLError as fault:  # whose own message quotes the line, and a key may stand there
        line = "" if fault.problem_mark is None else f", line {fault.problem_mark.line + 1}"
        problem = _QUOTED.sub(
            lambda quoted: quoted[0] if _OF_YAML.fullmatch(quoted[2]) else "something",
            fault.problem or "it ends too early",
        )
        raise SettingsError(f"{path}{line}: not valid YAML: {problem}") from fault
    except yaml.YAMLError as fault:
        raise SettingsError(f"{path}: the file has characters that YAML does not allow") from fault
    except ValueError as fault:  # what YAML takes for a date or a number
        raise SettingsError(f"{path}: a date or a number in the file is none") from fault
    except RecursionError as fault:
        raise SettingsError(f"{path}: the file is nested too deeply") from fault
    if loaded is not None and not isinstance(loaded, dict):
        raise SettingsError(f"{path}: the file must hold a mapping of settings")
    return {str(key): value for key, value in (loaded or {}).items()}
