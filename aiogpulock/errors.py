"""Every error that a user of aiogpulock can meet. Each names the thing and tells what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiogpulock.gpu.records import GpuProcess
    from aiogpulock.gpu.report import MemoryReport


class GpuLockError(Exception):
    """Base of all errors of this library."""


class ConfigError(GpuLockError, ValueError):
    """A setting is unknown, of the wrong type, or impossible beside another. Raised before any connection."""


class InvalidGpuError(GpuLockError, ValueError):
    """The GPU id is not one that can be locked. Raised before any connection."""


class LockTimeoutError(GpuLockError, TimeoutError):
    """`max_wait_time` is over. The text starts with ``GPU_LOCK_TIMEOUT:`` and names position, holder and time."""


class QueueFullError(GpuLockError):
    """The queue already has `max_waiters` waiters."""


class NestedLockError(GpuLockError):
    """It would wait for itself: the same task already holds this GPU, or waits for it, or whoever started this process
    holds it (`aiogpulock run`, `Lease.env`)."""


class LeaseLostError(GpuLockError):
    """The lease ended before its holder released it; another holder may be at work.

    `reason` says why (``lease_expired``, ``forced``, ``forced_by_monitor``, ``displaced``, ``stalled``, ``not_owner``,
    ``manager_closed``);
    `fencing_token` is the token of the lost lease. An error that travelled as its text alone, as in Celery's JSON, has
    ``unknown`` and 0.
    """

    def __init__(self, message: str, *, reason: str = "unknown", fencing_token: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.fencing_token = fencing_token

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_lease_lost, (self.args[0], self.reason, self.fencing_token)


def _rebuild_lease_lost(message: str, reason: str, fencing_token: int) -> LeaseLostError:
    """Pickling passes positional arguments only; a Celery result carries this error between processes."""
    return LeaseLostError(message, reason=reason, fencing_token=fencing_token)


class DeviceBusyError(GpuLockError):
    """Processes that hold no lock use the GPU, or less memory is free than `require_free`. The lock was handed on.

    `processes` are the foreign ones: pid, start time, bytes and command name of each.
    """

    def __init__(self, message: str, processes: tuple[GpuProcess, ...] = ()) -> None:
        super().__init__(message)
        self.processes = processes

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.processes)


class DeviceQuarantinedError(GpuLockError):
    """Memory of a former holder has not come back, and policy ``quarantine`` tells its successors.

    `reason` says who left what. The lock was handed on. The first holder that finds the memory free ends the
    quarantine; `GpuLockManager.lift_quarantine` ends it by hand.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.reason)


class MemoryNotFreedError(GpuLockError):
    """Policy ``raise``: the lock was released, and the GPU's memory had not come back.

    `report` is the verdict; None in an error that travelled as its text alone, as in Celery's JSON.
    """

    def __init__(self, message: str, report: MemoryReport | None = None) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.report)


class RedisUnavailableError(GpuLockError):
    """Redis cannot be reached, or cannot serve now. Nothing is ever granted without Redis."""


class AuthenticationError(GpuLockError):
    """Redis refused the password, the user, or one of its permissions."""


class ServerTooOldError(GpuLockError):
    """The server is older than Redis 7.0."""


class ProtocolError(GpuLockError):
    """A newer aiogpulock holds this lock, or the server answered what no script of ours answers."""


class ManagerClosedError(GpuLockError):
    """The manager is closed, or belongs to another process or event loop."""
