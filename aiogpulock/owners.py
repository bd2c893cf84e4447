"""Who waits for or holds which lock: within this process, and around it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from aiogpulock.keys import LockKeys

WITHIN = "AIOGPULOCK_WITHIN"
AROUND = tuple(os.environ.get(WITHIN, "").split())
"""The ids of the leases under which this process was started: whoever holds them waits for it to end."""


class Owners:
    """A task or thread may have one acquisition per lock: a second one would wait for the first."""

    def __init__(self) -> None:
        self._owners: set[tuple[str, object]] = set()
        self.acquiring: set[asyncio.Task[Any]] = set()
        """The tasks that wait, for themselves or for a thread."""

    def __len__(self) -> int:
        return len(self._owners)

    def enter(self, keys: LockKeys, owner: object) -> bool:
        """False if `owner` is in already."""
        if (keys.lock, owner) in self._owners:
            return False
        self._owners.add((keys.lock, owner))
        return True

    def leave(self, keys: LockKeys, owner: object) -> None:
        self._owners.discard((keys.lock, owner))

    def tasks(self) -> set[asyncio.Task[Any]]:
        """Those that can be cancelled: the ones that wait, and holders that are tasks."""
        return self.acquiring | {owner for _, owner in self._owners if isinstance(owner, asyncio.Task)}
