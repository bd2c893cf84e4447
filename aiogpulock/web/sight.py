"""All locks of a manager, as far as they can be read: what the page, the status and the history look at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from aiogpulock.census import Census
from aiogpulock.errors import GpuLockError
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot
from aiogpulock.parts import Parts

FindManager = Callable[[], Awaitable[GpuLockManager]]

SCAN_PAGES = 1
"""Per look: a value that somebody set by hand is found after some looks, and a large keyspace costs no look much."""


class Sight(msgspec.Struct, frozen=True):
    """The locks at one moment."""

    manager: GpuLockManager
    locks: tuple[LockSnapshot, ...]
    unreadable: dict[str, str]
    """Why, by GPU id: a newer aiogpulock holds that lock, for one."""


class Observer:
    """Looks at all locks on the manager's connection for that."""

    def __init__(self, find_manager: FindManager) -> None:
        self._find_manager = find_manager
        self._parts: Parts | None = None
        self._census: Census | None = None

    async def look(self) -> Sight:
        """Raises `RedisUnavailableError`, `AuthenticationError`, `ManagerClosedError`."""
        manager = await self._find_manager()
        parts = await manager.started()
        if self._census is None or parts is not self._parts:  # a loop's own manager may be replaced
            self._parts, self._census = parts, Census(parts.overview.client, manager.namespace)
        keys, _ = await self._census.locks(SCAN_PAGES)
        found = await parts.overview.scripts.snapshots(keys)
        return Sight(
            manager,
            tuple(lock for lock in found if isinstance(lock, LockSnapshot)),
            {at.gpu_id: str(error) for at, error in zip(keys, found, strict=True) if isinstance(error, GpuLockError)},
        )
