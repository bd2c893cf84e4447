"""The settings: frozen records, and the one way in which values from outside become settings.

Durations are seconds. A record made by hand is not checked; `build` and `LockSettings.override` check everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import asdict, replace

from aiogpulock.config.schema import PER_LOCK, Given, Order, Schema, refusal
from aiogpulock.config.values import (
    SIZE_WORDS,
    check_alert_urls,
    check_reclaimers,
    check_redis_url,
    redact_alert_url,
)
from aiogpulock.config.values import parse_size as parse_size
from aiogpulock.config.values import redact_url as redact_url
from aiogpulock.errors import ConfigError
from aiogpulock.keys import check_namespace

# Lua adds these to the server's clock in µs, exactly only below 2^53; `null` is the way to say "for ever".
_MAX_SECONDS = 1e9
Seconds = Annotated[float, Meta(ge=0, le=_MAX_SECONDS, description="seconds (a number from 0 to 1e9)")]
SomeSeconds = Annotated[float, Meta(gt=0, le=_MAX_SECONDS, description="seconds (a number above 0, up to 1e9)")]
Count = Annotated[int, Meta(ge=0, description="a whole number from 0")]
SomeCount = Annotated[int, Meta(ge=1, description="a whole number from 1")]
Size = Annotated[int | str, Meta(description=SIZE_WORDS)]


_FORMER = {
    "lock_key": "name the GPU instead of its key, as in gpu_lock(0)",
    "timeout": "max_wait_time is how long to wait; the original's timeout is lock_timeout, which no long job needs",
}
"""What the original called otherwise, and others have by the same name."""


class HeartbeatSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a holder keeps its lease: a beat each `interval` seconds, a lease of `timeout` seconds from each beat.

    The guard thread beats for a blocked event loop for at most `max_stall` seconds per stall; 0 means no guard.
    """

    enabled: bool = True
    interval: SomeSeconds = 10.0
    timeout: SomeSeconds = 60.0
    max_stall: Seconds = 300.0


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the locks live. `url` may hold a password, which the repr hides; `connect_timeout` is seconds."""

    url: str | None = None
    namespace: str = "gpu_lock"
    connect_timeout: SomeSeconds = 5.0
    embedded: Literal["auto", "require", "never"] = "auto"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = asdict(self) | {"url": None if self.url is None else redact_url(self.url)}
        return list(shown.items())

    def __repr__(self) -> str:
        return f"RedisSettings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class GpuMemorySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is checked of the GPU's memory. Sizes stay as written; `*_bytes` gives bytes. `settle_time` is seconds."""

    policy: Literal["off", "report", "hold", "raise", "quarantine"] = "report"
    tolerance: Size = "256MiB"
    context: Size = "512MiB"
    settle_time: Seconds = 5.0
    require_free: Size | None = None
    on_busy: Literal["ignore", "warn", "wait", "raise"] = "warn"
    on_quarantine: Literal["recheck", "wait", "raise"] = "recheck"
    nvml: Literal["auto", "required", "off"] = "auto"
    cleanup: tuple[str, ...] = ()

    @property
    def tolerance_bytes(self) -> int:
        return parse_size(self.tolerance, "gpu_lock.gpu_memory.tolerance")

    @property
    def context_bytes(self) -> int:
        return parse_size(self.context, "gpu_lock.gpu_memory.context")

    @property
    def require_free_bytes(self) -> int | None:
        return None if self.require_free is None else parse_size(self.require_free, "gpu_lock.gpu_memory.require_free")


class LockSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``gpu_lock``. All times are seconds; `max_wait_time` None waits for ever, 0 tries once.

    `max_waiters` None sets no bound. `critical_failure_log` None means the user's state directory.
    """

    poll_interval: SomeSeconds = 2.0
    max_wait_time: Seconds | None = 300.0
    lock_timeout: SomeSeconds = 600.0
    exponential_backoff: bool = True
    max_poll_interval: SomeSeconds = 10.0
    use_event_driven: bool = True
    fallback_timeout: SomeSeconds = 30.0
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    claim_window: SomeSeconds = 2.0
    restart_grace: Seconds = 5.0
    max_waiters: Count | None = None
    identity: Literal["auto", "uuid", "logical"] = "auto"
    redis: RedisSettings = RedisSettings()
    gpu_memory: GpuMemorySettings = GpuMemorySettings()
    critical_failure_log: str | None = None

    @property
    def lease(self) -> float:
        """Seconds that each beat buys: the smaller of `heartbeat.timeout` and `lock_timeout`, or the latter alone."""
        return min(self.heartbeat.timeout, self.lock_timeout) if self.heartbeat.enabled else self.lock_timeout

    @property
    def margin(self) -> float:
        """Seconds by which a holder gives up before the server: 1 s or 10 % of the lease, at most a third of it."""
        return min(max(1.0, self.lease / 10), self.lease / 3)

    def override(self, **keywords: object) -> LockSettings:
        """Return these settings with the keywords of one ``gpu_lock(...)`` call, checked like a file.

        `heartbeat` and `gpu_memory` take a mapping, merged over the current values, or a whole record. A `lock_timeout`
        without a `heartbeat` interval or timeout beside it scales the heartbeat down.
        """
        if not keywords:
            return self
        if "redis" in keywords:
            raise ConfigError(
                "gpu_lock(redis=…): a single lock cannot choose its server: use GpuLockManager(redis_url=…)"
            )
        for word in keywords.keys() & _FORMER.keys():
            raise ConfigError(f"gpu_lock({word}=…): {_FORMER[word]}")
        return build(
            SCHEMA.flatten({"gpu_lock": keywords}, PER_LOCK), Settings(gpu_lock=self), "current setting"
        ).gpu_lock


class TimeoutLevels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that a lock is held before each step of the monitor's reaction."""

    warning: SomeSeconds = 300.0
    soft_timeout: SomeSeconds = 600.0
    hard_timeout: SomeSeconds = 900.0


class MonitorHeartbeat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of silence that are worth an alert. The lease's own deadline decides, not these."""

    interval: SomeSeconds = 10.0
    timeout: SomeSeconds = 60.0


class CleanupSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a failed repair is tried again, and how many seconds lie between."""

    max_retry: Count = 3
    retry_delay: Seconds = 60.0


class MonitorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``gpu_lock_monitor``. `monitor_interval` is seconds; `audit_log` None writes none."""

    enabled: bool = True
    auto_recovery: bool = True
    monitor_interval: SomeSeconds = 30.0
    timeout_levels: TimeoutLevels = TimeoutLevels()
    hard_timeout_action: Literal["alert", "release"] = "alert"
    heartbeat: MonitorHeartbeat = MonitorHeartbeat()
    cleanup: CleanupSettings = CleanupSettings()
    audit_log: str | None = None


class AlertSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``gpu_lock_alerts``. `window` and `repeat_after` are seconds. The repr hides what follows a host."""

    urls: tuple[str, ...] = ()
    window: SomeSeconds = 300.0
    min_samples: SomeCount = 20
    repeat_after: Seconds = 3600.0

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return list((asdict(self) | {"urls": tuple(map(redact_alert_url, self.urls))}).items())

    def __repr__(self) -> str:
        return f"AlertSettings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. `redis_url_source` says in words who named `gpu_lock.redis.url`; None: nobody did."""

    gpu_lock: LockSettings = LockSettings()
    gpu_lock_monitor: MonitorSettings = MonitorSettings()
    gpu_lock_alerts: AlertSettings = AlertSettings()
    redis_url_source: str | None = None


def override_monitor(settings: Settings, keywords: Mapping[str, object]) -> MonitorSettings:
    """Return the monitor's settings with these keys of its section in them, checked like a file."""
    if not keywords:
        return settings.gpu_lock_monitor
    given = SCHEMA.flatten({"gpu_lock_monitor": keywords}, "keyword of GpuLockMonitor()")
    return build(given, settings, "current setting").gpu_lock_monitor


def _check_namespace(value: str, _key: str) -> None:
    check_namespace(redact_url(value))  # a URL that was put here by mistake; a good namespace stays as it is


SCHEMA = Schema(
    root=Settings,
    sections=("gpu_lock", "gpu_lock_monitor", "gpu_lock_alerts"),
    checks={
        "gpu_lock.redis.url": check_redis_url,
        "gpu_lock.redis.namespace": _check_namespace,
        "gpu_lock.gpu_memory.tolerance": parse_size,
        "gpu_lock.gpu_memory.context": parse_size,
        "gpu_lock.gpu_memory.cleanup": check_reclaimers,
        "gpu_lock.gpu_memory.require_free": lambda value, key: None if value is None else parse_size(value, key),
        "gpu_lock_alerts.urls": check_alert_urls,
    },
    orders=(
        Order("gpu_lock.poll_interval", "gpu_lock.max_poll_interval", may_equal=True),
        Order("gpu_lock.heartbeat.interval", "gpu_lock.heartbeat.timeout"),
        Order("gpu_lock_monitor.heartbeat.interval", "gpu_lock_monitor.heartbeat.timeout"),
        Order("gpu_lock_monitor.timeout_levels.warning", "gpu_lock_monitor.timeout_levels.soft_timeout"),
        Order("gpu_lock_monitor.timeout_levels.soft_timeout", "gpu_lock_monitor.timeout_levels.hard_timeout"),
    ),
)
_BEAT_TIMES = frozenset({"gpu_lock.heartbeat.interval", "gpu_lock.heartbeat.timeout"})


def build(given: Mapping[str, Given], base: Settings, base_source: str) -> Settings:
    """Return `base` with the given leaves in it, or raise `ConfigError` for the first value or order that cannot be.

    A `lock_timeout` below the heartbeat's timeout scales the heartbeat down, unless `given` has a heartbeat time too.
    """
    settings = SCHEMA.apply(given, base)
    if "gpu_lock.lock_timeout" in given and not _BEAT_TIMES & given.keys():
        settings = replace(settings, gpu_lock=_scaled(settings.gpu_lock))

    def source(path: str) -> str:
        return given[path].source if path in given else base_source

    SCHEMA.check_orders(settings, source)
    _check_beat(settings.gpu_lock, source("gpu_lock.heartbeat.interval"))
    return settings


def _scaled(lock: LockSettings) -> LockSettings:
    beat = lock.heartbeat
    ratio = min(1.0, lock.lock_timeout / beat.timeout)
    return replace(lock, heartbeat=replace(beat, interval=beat.interval * ratio, timeout=beat.timeout * ratio))


def _check_beat(lock: LockSettings, source: str) -> None:
    """A beat that is due after the holder's own deadline would lose every lease."""
    limit = lock.lease - lock.margin
    if lock.heartbeat.enabled and lock.heartbeat.interval >= limit:
        lease = f"the lease, {lock.lease:g} (the smaller of heartbeat.timeout and lock_timeout)"
        expected = f"less than {limit:g}: {lease}, less a margin of {lock.margin:g}"
        raise refusal("gpu_lock.heartbeat.interval", Given(lock.heartbeat.interval, source), expected)
