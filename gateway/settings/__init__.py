"""Settings: environment and YAML become one frozen object, read once, and every mistake is named at once."""

from gateway.settings.model import (
    ENV_PREFIX,
    AdjustmentSettings,
    JournalSettings,
    KeySettings,
    LoggingSettings,
    PricesSettings,
    ProviderSettings,
    Settings,
    SettingsError,
    UpstreamSettings,
    load_settings,
)
from gateway.settings.routing import (
    AliasSettings,
    AliasTargetSettings,
    CooldownSettings,
    RetriesSettings,
    RoutingSettings,
)

__all__ = [
    "ENV_PREFIX",
    "AdjustmentSettings",
    "AliasSettings",
    "AliasTargetSettings",
    "CooldownSettings",
    "JournalSettings",
    "KeySettings",
    "LoggingSettings",
    "PricesSettings",
    "ProviderSettings",
    "RetriesSettings",
    "RoutingSettings",
    "Settings",
    "SettingsError",
    "UpstreamSettings",
    "load_settings",
]
