"""Settings: `settings` has the records, `schema` checks values, `sources` finds them, `values` reads sizes and URLs."""

from aiogpulock.config.settings import LockSettings, Settings
from aiogpulock.config.sources import SettingsSource, load_settings
from aiogpulock.config.values import redact_url

__all__ = ["LockSettings", "Settings", "SettingsSource", "load_settings", "redact_url"]
