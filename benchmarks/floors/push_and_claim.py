"""A push from a script to a reader in the next process, and one trivial EVALSHA there: a hand-off without a lock.

The processes stand in a ring. To leave is to publish to the next one's channel by a script; to enter is to hear of it,
and then to ask the server once, as a claim does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup

TITLE = "push and claim"
REQUIREMENTS = ()


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    from aiogpulock.redis_client import RedisClient

    client = RedisClient(setup.url, where=setup.url, connections=1, timeout=5, name="floor")
    claim = await client.execute("SCRIPT", "LOAD", "return 1")
    push = await client.execute("SCRIPT", "LOAD", "return redis.call('PUBLISH', ARGV[1], 'go')")
    channel, following = (f"{setup.lock}:{(setup.party + step) % setup.parties}" for step in (0, 1))
    reader = client.new_connection()
    await reader.connect()
    await reader.send_command("SUBSCRIBE", channel)
    await reader.read_response()
    first = setup.party == 0

    @asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        nonlocal first
        if not first:
            async with asyncio.timeout(30):
                await reader.read_response()
        first = False
        await client.execute("EVALSHA", claim, 0)
        yield
        await client.execute("EVALSHA", push, 0, following)

    yield hold
    await reader.disconnect()
    await client.close()
