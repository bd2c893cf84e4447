"""All locks at one moment, as far as they can be read: what `status`, the page and the command line look at."""

from __future__ import annotations

from typing import NamedTuple

from aiogpulock.census import Census
from aiogpulock.errors import ProtocolError
from aiogpulock.keys import LockKeys
from aiogpulock.models import LockSnapshot
from aiogpulock.redis_client import RedisClient
from aiogpulock.scripts import Scripts

SCAN_PAGES, SCAN_SECONDS = 10, 0.1
"""Per look: of a large keyspace, or over a slow line, what is left is for the next looks."""


class Sight(NamedTuple):
    """The locks at one moment."""

    locks: tuple[LockSnapshot, ...]
    unreadable: dict[str, str]
    """Why, and what to do about it, by GPU id: a newer aiogpulock holds that lock, for one."""


class Observer:
    """Looks at locks, and changes none."""

    def __init__(self, client: RedisClient, scripts: Scripts, namespace: str) -> None:
        self._scripts = scripts
        self._census = Census(client, namespace)

    async def look(self, pages: int = SCAN_PAGES) -> Sight:
        """At every lock that is known, and at those that somebody set by hand: `pages` more calls of SCAN at most.

        Raises `RedisUnavailableError`, `AuthenticationError`.
        """
        keys, _ = await self._census.locks(pages, SCAN_SECONDS)
        return await self.look_at(keys)

    async def look_at(self, keys: list[LockKeys]) -> Sight:
        """Raises `RedisUnavailableError`, `AuthenticationError`."""
        found = await self._scripts.snapshots(keys)
        return Sight(
            tuple(lock for lock in found if isinstance(lock, LockSnapshot)),
            {at.gpu_id: str(error) for at, error in zip(keys, found, strict=True) if isinstance(error, ProtocolError)},
        )
