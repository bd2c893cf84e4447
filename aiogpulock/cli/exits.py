"""The exit statuses of all verbs, and the error behind each. After sysexits.h where that has one."""

from __future__ import annotations

from aiogpulock.errors import (
    AuthenticationError,
    ConfigError,
    DeviceBusyError,
    DeviceQuarantinedError,
    GpuLockError,
    InvalidGpuError,
    LeaseLostError,
    LockTimeoutError,
    NestedLockError,
    QueueFullError,
    RedisUnavailableError,
    ServerTooOldError,
)

FAILED = 1
USAGE = 2
UNAVAILABLE = 69
CONFLICT = 75
LOST = 76
CONFIG = 78
NOT_EXECUTABLE = 126
NOT_FOUND = 127
INTERRUPTED = 130
SIGNALLED = 128
"""Plus the signal's number."""

_STATUSES: tuple[tuple[type[GpuLockError], int], ...] = (
    (InvalidGpuError, USAGE),
    (ConfigError, CONFIG),
    (RedisUnavailableError, UNAVAILABLE),
    (AuthenticationError, UNAVAILABLE),
    (ServerTooOldError, UNAVAILABLE),
    (LockTimeoutError, CONFLICT),
    (QueueFullError, CONFLICT),
    (DeviceBusyError, CONFLICT),
    (DeviceQuarantinedError, CONFLICT),
    (LeaseLostError, LOST),
    (NestedLockError, USAGE),
)


def status_of(error: GpuLockError) -> int:
    """The exit status for an error that ended a verb."""
    from aiogpulock.gpu.records import NvmlError  # imports msgspec, which the help of a verb does without

    other = CONFIG if isinstance(error, NvmlError) else FAILED
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), other)
