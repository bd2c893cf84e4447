"""The manager that `gpu_lock` uses by itself: one per running event loop, closed with the loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator

from aiogpulock.manager import GpuLockManager

_managers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[GpuLockManager, AsyncGenerator[None, None]]] = (
    weakref.WeakKeyDictionary()
)


async def default_manager() -> GpuLockManager:
    """This event loop's manager, made on first use with the settings found then. Raises `ConfigError`."""
    loop = asyncio.get_running_loop()
    if loop in _managers and not _managers[loop][0].unusable:
        return _managers[loop][0]
    manager = GpuLockManager()
    anchor = _close_with_the_loop(loop, manager)
    _managers[loop] = manager, anchor
    await anchor.__anext__()
    return manager


async def _close_with_the_loop(loop: asyncio.AbstractEventLoop, manager: GpuLockManager) -> AsyncGenerator[None, None]:
    """asyncio has no close hook, but a started async generator is closed and awaited when a loop ends.

    Every other task has been cancelled by then, so closing must not need one.
    """
    try:
        yield
    finally:
        if loop in _managers and _managers[loop][0] is manager:
            del _managers[loop]  # it refers to the loop, which would never be freed
        await manager.close()
