"""One line for users."""

from __future__ import annotations

from typing import Any

from aiogpulock.default import default_manager
from aiogpulock.errors import ConfigError
from aiogpulock.lock import GpuLock
from aiogpulock.manager import GpuLockManager


def gpu_lock(gpu_id: int | str = 0, *, manager: GpuLockManager | None = None, **options: Any) -> GpuLock:
    """The lock of one GPU: ``async with gpu_lock(0) as lease:``, ``@gpu_lock(0)``, or ``await gpu_lock(0).acquire()``.

    Args:
        gpu_id: an index from 0, or a name of letters, digits and ``. _ : -`` ("cuda:0", a UUID), at most 128 long.
        manager: whose server to use; by default one per event loop, made on first use.
        options: ``task_name`` (str), shown to others as the holder; by default the function, or program and task.
            ``priority`` (int), -100 to 100, higher first; one step is worth 60 s of waiting.
            ``cleanup``, called, and awaited if it answers with an awaitable, before the release; its errors are logged.
            ``on_lost``, called with the reason, on the event loop, when the lease is lost.
            Every key of the ``gpu_lock`` section of ``config.yml`` but ``redis``: ``max_wait_time`` (seconds; None
            waits for ever, 0 tries once and never queues), ``max_waiters``, ``lock_timeout``, ``heartbeat``, …

    Raises:
        InvalidGpuError, ConfigError: at once, before any connection.
    """
    if manager is not None and not isinstance(manager, GpuLockManager):
        raise ConfigError(f"gpu_lock(manager={manager!r}): must be a GpuLockManager")
    if manager is not None:
        return manager.lock(gpu_id, **options)
    return GpuLock(gpu_id, default_manager, **options)
