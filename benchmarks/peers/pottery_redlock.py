"""pottery's AIORedlock on one server: SET NX, polled after a random time up to 0.2 s.

Fair settings: one master, so no quorum to wait for; a bounded pool that waits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup
from benchmarks.peers import patience

TITLE = "pottery AIORedlock"
REQUIREMENTS = ("pottery==3.0.1", "redis[hiredis]==8.1.0")
POLLS = 0.2


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    from pottery import AIORedlock
    from redis.asyncio import BlockingConnectionPool, Redis

    client = Redis.from_pool(
        BlockingConnectionPool.from_url(setup.url, max_connections=50, timeout=None, retry=patience())
    )
    yield lambda: AIORedlock(key=setup.lock, masters={client}, auto_release_time=setup.lease)
    await client.aclose()
