"""Settings: environment and YAML become one frozen object, read once, and every mistake is named at once."""

from gateway.settings.keys import AdminSettings, ControlSettings, KeySettings
from gateway.settings.logs import LoggingSettings
from gateway.settings.model import (
    ENV_PREFIX,
    AdjustmentSettings,
    JournalSettings,
    LedgerSettings,
    PricesSettings,
    ProviderSettings,
    Settings,
    SettingsError,
    UpstreamSettings,
    load_settings,
    settings_file,
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
    "AdminSettings",
    "AliasSettings",
    "AliasTargetSettings",
    "ControlSettings",
    "CooldownSettings",
    "JournalSettings",
    "KeySettings",
    "LedgerSettings",
    "LoggingSettings",
    "PricesSettings",
    "ProviderSettings",
    "RetriesSettings",
    "RoutingSettings",
    "Settings",
    "SettingsError",
    "UpstreamSettings",
    "load_settings",
    "settings_file",
]
