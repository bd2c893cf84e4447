"""The manager that `gpu_lock` uses by itself: one per running event loop, closed with the loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable

from aiogpulock.manager import GpuLockManager

FindManager = Callable[[], Awaitable[GpuLockManager]]
"""Whose manager to use, asked for anew at each use: a loop's own may be replaced."""


class PerLoop:
    """Managers that `make` makes on first use, one per running event loop, each closed with its loop."""

    def __init__(self, make: Callable[[], GpuLockManager]) -> None:
        self._make = make
        self._managers: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[GpuLockManager, AsyncGenerator[None, None]]
        ] = weakref.WeakKeyDictionary()

    async def __call__(self) -> GpuLockManager:
        """This event loop's manager, made on first use with the settings found then. Raises `ConfigError`."""
        loop = asyncio.get_running_loop()
        if loop in self._managers and not self._managers[loop][0].unusable:
            return self._managers[loop][0]
        manager = self._make()
        anchor = self._close_with_the_loop(loop, manager)
        self._managers[loop] = manager, anchor
        await anchor.__anext__()
        return manager

    async def _close_with_the_loop(
        self, loop: asyncio.AbstractEventLoop, manager: GpuLockManager
    ) -> AsyncGenerator[None, None]:
        """asyncio has no close hook, but a started async generator is closed and awaited when a loop ends.

        Every other task has been cancelled by then, so closing must not need one.
        """
        try:
            yield
        finally:
            if loop in self._managers and self._managers[loop][0] is manager:
                del self._managers[loop]  # it refers to the loop, which would never be freed
            await manager.close()


default_manager = PerLoop(GpuLockManager)
