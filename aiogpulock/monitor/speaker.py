"""Of several monitors one speaks for all, so that people are told once."""

from __future__ import annotations

import secrets
from contextlib import suppress

from aiogpulock.errors import GpuLockError
from aiogpulock.keys import speaker_key
from aiogpulock.redis_client import RedisClient


class Speaker:
    """The key that says who speaks lapses after `ROUNDS` rounds without it: then another monitor takes over.

    All monitors repair, and each tells what it repaired itself. Without Redis each tells that Redis is away.
    """

    ROUNDS = 3

    def __init__(self, namespace: str) -> None:
        self._key = speaker_key(namespace)
        self._name = secrets.token_hex(8).encode()
        self._speaks = False

    async def speaks(self, client: RedisClient, interval: float) -> bool:
        """Whether this monitor speaks in this round; `interval` is seconds. A server that refuses writes: all speak."""
        ttl = max(1000, round(self.ROUNDS * interval * 1000))
        try:
            other = await client.execute("SET", self._key, self._name, "NX", "GET", "PX", ttl)
            if other == self._name:
                await client.execute("PEXPIRE", self._key, ttl)
            self._speaks = other in (None, self._name)
        except GpuLockError:
            self._speaks = True
        return self._speaks

    async def resign(self, client: RedisClient) -> None:
        """Let another one speak at once. Never raises."""
        if self._speaks:
            self._speaks = False
            with suppress(GpuLockError):
                if await client.execute("GET", self._key) == self._name:
                    await client.execute("DEL", self._key)
