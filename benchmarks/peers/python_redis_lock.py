"""python-redis-lock: SET NX, and a list that waiters BLPOP from; for threads.

Fair settings: a connection per waiter, the retries of `redis.Redis()`, no renewal thread (its best case: it would start
one per hold).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contender import Setup
from benchmarks.peers import patience

TITLE = "python-redis-lock"
REQUIREMENTS = ("python-redis-lock==4.0.1", "redis[hiredis]==8.1.0")
THREADS = True


@contextmanager
def opened(setup: Setup) -> Iterator[Callable[[], Any]]:
    import redis_lock
    from redis import Redis

    client = Redis.from_url(
        setup.url, max_connections=2 * setup.waiters + 8, socket_timeout=None, retry=patience(threads=True)
    )
    yield lambda: redis_lock.Lock(client, setup.lock, expire=max(1, round(setup.lease)))
    client.close()
