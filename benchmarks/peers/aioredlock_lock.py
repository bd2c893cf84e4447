"""aioredlock on one server: SET NX, polled after 0.1 to 0.3 s.

Fair settings: as many tries as it takes; its default is to give up after three.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup

TITLE = "aioredlock"
REQUIREMENTS = ("aioredlock==0.7.3",)
POLLS = 0.3


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    from aioredlock import Aioredlock

    manager = Aioredlock([setup.url], retry_count=10**9, internal_lock_timeout=setup.lease)

    class Hold:
        async def acquire(self) -> Any:
            self.lock = await manager.lock(setup.lock)
            return self.lock

        __aenter__ = acquire

        async def __aexit__(self, *error: object) -> None:
            await self.lock.release()

    yield Hold
    await manager.destroy()
