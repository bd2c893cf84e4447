"""portalocker's RedisLock: a pub/sub subscription is the lock, and waiters ask it who is there; for threads.

Fair settings: its defaults (it looks every 0.25 s; the retries and health checks that a client of its own would have),
without the interruption of the main thread, which is busy here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contender import Setup
from benchmarks.peers import patience

TITLE = "portalocker RedisLock"
REQUIREMENTS = ("portalocker[redis]==4.4.2", "redis[hiredis]==8.1.0")
THREADS = True
POLLS = 0.25


@contextmanager
def opened(setup: Setup) -> Iterator[Callable[[], Any]]:
    import portalocker
    from redis import Redis

    client = Redis.from_url(
        setup.url, max_connections=4 * setup.waiters + 8, decode_responses=True, health_check_interval=10,
        retry=patience(threads=True),
    )  # fmt: skip
    yield lambda: portalocker.RedisLock(setup.lock, connection=client, timeout=3600, interrupt_on_lost=False)
    client.close()
