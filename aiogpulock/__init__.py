"""A GPU lock for async Python: FIFO, event-driven, crash-safe, over Redis.

Names are resolved on first use (PEP 562), so that importing this package imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiogpulock import sync as sync
    from aiogpulock.api import gpu_lock as gpu_lock
    from aiogpulock.config import Settings as Settings
    from aiogpulock.errors import AuthenticationError as AuthenticationError
    from aiogpulock.errors import ConfigError as ConfigError
    from aiogpulock.errors import DeviceBusyError as DeviceBusyError
    from aiogpulock.errors import DeviceQuarantinedError as DeviceQuarantinedError
    from aiogpulock.errors import GpuLockError as GpuLockError
    from aiogpulock.errors import InvalidGpuError as InvalidGpuError
    from aiogpulock.errors import LeaseLostError as LeaseLostError
    from aiogpulock.errors import LockTimeoutError as LockTimeoutError
    from aiogpulock.errors import ManagerClosedError as ManagerClosedError
    from aiogpulock.errors import MemoryNotFreedError as MemoryNotFreedError
    from aiogpulock.errors import NestedLockError as NestedLockError
    from aiogpulock.errors import ProtocolError as ProtocolError
    from aiogpulock.errors import QueueFullError as QueueFullError
    from aiogpulock.errors import RedisUnavailableError as RedisUnavailableError
    from aiogpulock.errors import ServerTooOldError as ServerTooOldError
    from aiogpulock.gpu.records import Gpu as Gpu
    from aiogpulock.gpu.records import NvmlError as NvmlError
    from aiogpulock.gpu.report import MemoryReport as MemoryReport
    from aiogpulock.lease import Lease as Lease
    from aiogpulock.lock import GpuLock as GpuLock
    from aiogpulock.manager import GpuLockManager as GpuLockManager
    from aiogpulock.monitor import GpuLockMonitor as GpuLockMonitor

_ERRORS = (
    "AuthenticationError",
    "ConfigError",
    "DeviceBusyError",
    "DeviceQuarantinedError",
    "GpuLockError",
    "InvalidGpuError",
    "LeaseLostError",
    "LockTimeoutError",
    "ManagerClosedError",
    "MemoryNotFreedError",
    "NestedLockError",
    "ProtocolError",
    "QueueFullError",
    "RedisUnavailableError",
    "ServerTooOldError",
)
_HOMES = {
    "Gpu": "gpu.records",
    "GpuLock": "lock",
    "GpuLockManager": "manager",
    "GpuLockMonitor": "monitor",
    "Lease": "lease",
    "MemoryReport": "gpu.report",
    "NvmlError": "gpu.records",
    "Settings": "config",
    "gpu_lock": "api",
    **dict.fromkeys(_ERRORS, "errors"),
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "sync":  # so that ``aiogpulock.sync.gpu_lock(0)`` needs no import of its own
        return import_module("aiogpulock.sync")
    if name not in _HOMES:
        raise AttributeError(f"module 'aiogpulock' has no attribute {name!r}")
    value = getattr(import_module(f"aiogpulock.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
