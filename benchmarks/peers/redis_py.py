"""redis-py's own asyncio Lock, as it comes: it polls every 0.1 s.

Fair settings: a bounded pool that waits, so that a thousand polling tasks do not open a thousand connections.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup
from benchmarks.peers import patience

TITLE = "redis-py Lock"
REQUIREMENTS = ("redis[hiredis]==8.1.0",)
POLLS = 0.1


@asynccontextmanager
async def opened(setup: Setup, sleep: float = 0.1) -> AsyncIterator[Callable[[], Any]]:
    from redis.asyncio import BlockingConnectionPool, Redis

    pool = BlockingConnectionPool.from_url(setup.url, max_connections=50, timeout=None, retry=patience())
    client = Redis.from_pool(pool)
    yield lambda: client.lock(setup.lock, timeout=setup.lease, sleep=sleep)
    await client.aclose()
