"""Settings: `settings` has the records, `schema` checks values, `sources` finds them, `values` reads sizes and URLs."""

from aiogpulock.config.settings import (
    AlertSettings,
    CleanupSettings,
    GpuMemorySettings,
    LockSettings,
    MonitorSettings,
    Settings,
    override_monitor,
)
from aiogpulock.config.sources import SettingsSource, load_settings
from aiogpulock.config.values import redact_alert_url, redact_url

__all__ = [
    "AlertSettings",
    "CleanupSettings",
    "GpuMemorySettings",
    "LockSettings",
    "MonitorSettings",
    "Settings",
    "SettingsSource",
    "load_settings",
    "override_monitor",
    "redact_alert_url",
    "redact_url",
]
