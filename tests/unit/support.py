"""What tests that run on an event loop need."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiogpulock import GpuLockManager, Lease

FOREVER = 60.0
"""Longer than any test waits."""


async def eventually(condition: Callable[[], Any], *, description: str, timeout: float = 30.0) -> Any:
    """`wait_until` for an event loop: `condition` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {description}; last seen: {value!r}")
        await asyncio.sleep(0.005)


async def waiters(manager: GpuLockManager, count: int, gpu_id: str = "0") -> None:
    """Return when `count` requests are queued for the lock."""

    async def seated() -> bool:
        return any(lock.gpu_id == gpu_id and lock.waiters == count for lock in await manager.status())

    await eventually(seated, description=f"{count} waiters for {gpu_id}")


@asynccontextmanager
async def held_elsewhere(manager: GpuLockManager, **keywords: Any) -> AsyncIterator[Lease]:
    """GPU 0 is held by somebody who is neither this task nor one that the test looks at."""
    lease = await manager.lock(0, **{"task_name": "somebody else", **keywords}).acquire_for("somebody else")
    try:
        yield lease
    finally:
        await lease.release()


async def current(manager: GpuLockManager, gpu_id: str = "0") -> str | None:
    """The value under the lock's key."""
    return next((lock.value for lock in await manager.status() if lock.gpu_id == gpu_id), None)


async def force(manager: GpuLockManager) -> None:
    """Somebody takes GPU 0 from its holder."""
    assert await manager.force_release(0)
