"""The index: every id of a namespace that was locked in the last month, for whoever asks which locks there are."""

from __future__ import annotations

import time

from aiogpulock.keys import index_key
from aiogpulock.redis_client import RedisClient

KEEP_SECONDS = 30 * 24 * 3600
FRESH_SECONDS = 60
"""For so long an id that this process has added is not added again: somebody may have emptied the database."""
MOST_REMEMBERED = 1000
"""One more, and the oldest is added again at its next use."""


class Index:
    """Written by clients, outside the scripts. ``gpu_id in index``: this process has added it of late."""

    def __init__(self, client: RedisClient, namespace: str) -> None:
        self._client = client
        self._key = index_key(namespace)
        self._added: dict[str, float] = {}

    def __contains__(self, gpu_id: str) -> bool:
        return time.time() - self._added.get(gpu_id, 0.0) < FRESH_SECONDS

    async def add(self, gpu_id: str) -> None:
        """Make an id known, and forget old ones. Raises `RedisUnavailableError`, `AuthenticationError`."""
        now = time.time()
        commands = (
            ("ZADD", self._key, int(now), gpu_id),
            ("EXPIRE", self._key, KEEP_SECONDS),
            ("ZREMRANGEBYSCORE", self._key, "-inf", int(now) - KEEP_SECONDS),
        )
        for reply in await self._client.execute_many(commands):
            if isinstance(reply, Exception):
                raise reply
        self._added.pop(gpu_id, None)
        self._added[gpu_id] = now
        if len(self._added) > MOST_REMEMBERED:
            del self._added[next(iter(self._added))]

    def forget(self) -> None:
        """Redis may have lost it: each id is added again at its next use."""
        self._added.clear()
