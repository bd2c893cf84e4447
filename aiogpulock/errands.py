"""Errands: idempotent calls that nobody waits for, repeated until Redis has answered each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiogpulock.errors import GpuLockError, RedisUnavailableError

logger = logging.getLogger(__name__)

Errand = Callable[[], Awaitable[object]]


class Errands:
    """Runs errands one after the other in a task that ends when none is left."""

    RETRY = 0.5
    """Seconds between attempts while Redis is away."""
    MOST = 10_000

    def __init__(self) -> None:
        self._errands: dict[str, Errand] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, name: str, errand: Errand) -> None:
        """Run `errand` soon; one of that name that still waits is replaced."""
        if name not in self._errands and len(self._errands) >= self.MOST:
            logger.error("too many errands wait for Redis; dropped %s", name)
            return
        self._errands[name] = errand
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="aiogpulock-errands")

    async def close(self) -> None:
        """Try each that is left once more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        while self._errands and await self._next():
            pass

    async def _run(self) -> None:
        while self._errands:
            if not await self._next():
                await asyncio.sleep(self.RETRY)

    async def _next(self) -> bool:
        """Run the oldest; answers whether Redis was there."""
        name, errand = next(iter(self._errands.items()))
        try:
            await errand()
        except RedisUnavailableError as error:
            logger.debug("%s must wait: %s", name, error)
            return False
        except GpuLockError as error:
            logger.warning("%s failed: %s", name, error)
        if self._errands.get(name) is errand:
            del self._errands[name]
        return True
