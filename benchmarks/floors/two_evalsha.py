"""Two trivial EVALSHA through this library's client: one to enter, one to leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup

TITLE = "two trivial EVALSHA"
REQUIREMENTS = ()


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    from aiogpulock.redis_client import RedisClient

    client = RedisClient(setup.url, where=setup.url, connections=1, timeout=5, name="floor")
    script = await client.execute("SCRIPT", "LOAD", "return 1")

    @asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        await client.execute("EVALSHA", script, 0)
        yield
        await client.execute("EVALSHA", script, 0)

    yield hold
    await client.close()
