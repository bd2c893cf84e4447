"""One line for users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiogpulock.default import default_manager
from aiogpulock.leaving import CleanUp
from aiogpulock.lock import GpuLock
from aiogpulock.manager import GpuLockManager


def gpu_lock(
    gpu_id: int | str = 0,
    *,
    manager: GpuLockManager | None = None,
    task_name: str | None = None,
    priority: int = 0,
    max_wait_time: float | None = ...,  # type: ignore[assignment]
    max_waiters: int | None = ...,  # type: ignore[assignment]
    cleanup: CleanUp | None = None,
    on_lost: Callable[[str], None] | None = None,
    **settings: Any,
) -> GpuLock:
    """The lock of one GPU: ``async with gpu_lock(0) as lease:``, ``@gpu_lock(0)``, or ``await gpu_lock(0).acquire()``.

    Args:
        gpu_id: an index from 0, or a name of letters, digits and ``. _ : -`` ("cuda:0", a UUID), at most 128 long.
        manager: whose server to use; by default one per event loop, made on first use.
        task_name: shown to others as the holder; by default the program and the asyncio task, or the function.
        priority: -100 to 100, higher first. One step is worth 60 s of waiting.
        max_wait_time: seconds; None waits for ever, 0 tries once and never queues.
        max_waiters: `QueueFullError` if as many wait already; None sets no bound.
        cleanup: called, and awaited if needed, before the release; its errors are logged.
        on_lost: called with the reason, on the event loop, when the lease is lost.
        settings: further keys of the ``gpu_lock`` section of ``config.yml``.

    Raises:
        InvalidGpuError, ConfigError: at once, before any connection.
    """
    given = {"max_wait_time": max_wait_time, "max_waiters": max_waiters}
    settings.update({name: value for name, value in given.items() if value is not ...})
    settings.update(task_name=task_name, priority=priority, cleanup=cleanup, on_lost=on_lost)
    return manager.lock(gpu_id, **settings) if manager is not None else GpuLock(gpu_id, default_manager, **settings)
