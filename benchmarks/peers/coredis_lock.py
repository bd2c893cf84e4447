"""coredis' Lock: SET NX, polled every 0.1 s.

Fair settings: as it comes; its connections are multiplexed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup

TITLE = "coredis Lock"
REQUIREMENTS = ("coredis==6.9.0",)


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    import coredis
    from coredis.patterns.lock import Lock

    async with coredis.Redis.from_url(setup.url) as client:
        yield lambda: Lock(client, setup.lock, timeout=setup.lease)
