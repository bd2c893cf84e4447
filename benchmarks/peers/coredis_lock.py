"""coredis' Lock: SET NX, polled every 0.1 s.

Fair settings: as many retries as the others have (its own two are over after 20 ms); its connections are multiplexed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup
from benchmarks.peers import RETRIES, RETRY_FIRST, RETRY_MOST

TITLE = "coredis Lock"
REQUIREMENTS = ("coredis==6.9.0",)
POLLS = 0.1


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    import coredis
    from coredis.exceptions import ConnectionError
    from coredis.patterns.lock import Lock
    from coredis.retry import ExponentialBackoffRetryPolicy

    retries = ExponentialBackoffRetryPolicy(
        (ConnectionError, TimeoutError), RETRIES, base_delay=RETRY_FIRST, max_delay=RETRY_MOST, jitter=True
    )
    async with coredis.Redis.from_url(setup.url, retry_policy=retries) as client:
        yield lambda: Lock(client, setup.lock, timeout=setup.lease)
