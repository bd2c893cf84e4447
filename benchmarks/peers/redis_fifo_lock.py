"""redis-fifo-lock: a queue in Redis, a doorbell by BLPOP, a lease that a task renews.

Fair settings: the connection per waiter that its README asks for; no time-out of the socket, which would cut each BLPOP
to 2.5 s; a look at the server every third of a lease (its default of 30 s is half of its default lease).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup
from benchmarks.peers import patience

TITLE = "redis-fifo-lock"
REQUIREMENTS = ("redis-fifo-lock==0.3.2", "redis[hiredis]==8.1.0")


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    from redis.asyncio import Redis
    from redis_fifo_lock import FifoLock

    client = Redis.from_url(setup.url, max_connections=2 * setup.waiters + 8, socket_timeout=None, retry=patience())
    lock = FifoLock(client, setup.lock, lease_ms=round(setup.lease * 1000), poll_ms=round(setup.lease * 1000 / 3))
    yield lock.hold
    await client.aclose()
