"""aiogpulock, as it comes. `setup.options` are settings of its manager, and `gpu`, if a device is to be locked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup

TITLE = "aiogpulock"
REQUIREMENTS = ()
MESSAGES = True


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    from aiogpulock import GpuLockManager

    settings = dict(setup.options)
    gpu = settings.pop("gpu", setup.lock)
    async with GpuLockManager(setup.url, max_wait_time=None, **settings) as manager:
        yield lambda: manager.lock(gpu)
