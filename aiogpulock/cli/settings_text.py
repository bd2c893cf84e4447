"""Settings as text: a config.yml that tells where each value comes from, without passwords."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import yaml

from aiogpulock.config import Settings, redact_url

_SECRETS = ("gpu_lock.redis.url", "gpu_lock_alerts.urls")
COLUMN = 44
"""Where the origins stand."""


def shown_values(settings: Settings) -> dict[str, Any]:
    """Plain values, fit to be shown."""
    values: dict[str, Any] = msgspec.to_builtins(settings)
    values.pop("redis_url_source")
    redis, alerts = values["gpu_lock"]["redis"], values["gpu_lock_alerts"]
    redis["url"] = redis["url"] and redact_url(redis["url"])
    alerts["urls"] = [redact_url(url) for url in alerts["urls"]]
    return values


def as_yaml(settings: Settings, origins: Mapping[str, str]) -> str:
    """A config.yml with an origin behind each value that is not a default."""
    return "".join(_lines(shown_values(settings), origins, "", 0))


def _lines(values: Mapping[str, Any], origins: Mapping[str, str], at: str, depth: int) -> Iterator[str]:
    for name, value in values.items():
        path, indent = f"{at}{name}", "  " * depth
        if isinstance(value, dict):
            yield f"{indent}{name}:\n"
            yield from _lines(value, origins, f"{path}.", depth + 1)
        else:
            line = f"{indent}{name}: {_scalar(value)}"
            yield f"{line:<{COLUMN}}  # {origins[path]}\n" if path in origins else f"{line}\n"


def _scalar(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
