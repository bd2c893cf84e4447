"""redis-lock-py: SET NX, and one pub/sub message at a release that wakes everybody.

Fair settings: a connection per waiter, and a time-out of waiting that no scenario reaches. It has no renewal.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup
from benchmarks.peers import patience

TITLE = "redis-lock-py"
REQUIREMENTS = ("redis-lock-py==1.3.0", "redis[hiredis]==8.1.0")
MESSAGES = True


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    from redis.asyncio import Redis
    from redis_lock.asyncio import RedisLock

    client = Redis.from_url(setup.url, max_connections=3 * setup.waiters + 8, retry=patience())
    lease = max(1, round(setup.lease))
    yield lambda: RedisLock(client, setup.lock, expire_timeout=lease, blocking_timeout=3600)
    await client.aclose()
