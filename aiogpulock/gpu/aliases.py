"""Under which key this host locks each GPU, kept in Redis for this boot: the first writer wins, whoever has NVML.

One process with NVML would lock a UUID and one without it the index, and both would hold the same GPU. So each index,
and each UUID that somebody names, is fixed by HSETNX before its first use.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiogpulock.errors import LockTimeoutError

KEEP_SECONDS = 30 * 24 * 3600
"""Renewed by every use."""

ONE_NAME = "a GPU known by one name alone"
"""-> the kind of that name, "index" or "UUID", by which this host locks such GPUs."""

_FIX_BOTH = """
local function said(name, wanted) return redis.call('HGET', KEYS[1], name) or wanted end
local first, second = said(ARGV[1], ARGV[2]), said(ARGV[3], ARGV[4])
if first == ARGV[2] and second == ARGV[4] then
  redis.call('HSET', KEYS[1], ARGV[1], first, ARGV[3], second)
  redis.call('EXPIRE', KEYS[1], ARGV[5])
  return 1
end
return 0
"""
"""KEYS: the hash. ARGV: a name and what is wanted of it, twice; seconds to keep it. Reply: 1, or 0: nothing done."""

ExecuteMany = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


def alias_key(namespace: str, boot_id: str) -> str:
    """A hash: index -> UUID or "logical"; UUID -> the id that it is locked under; `ONE_NAME`."""
    return f"{{{namespace}}}:alias:{boot_id}"


async def _no_grace() -> float:
    return 0.0


class Aliases:
    """The aliases of one host. `execute_many` sends Redis commands; without a boot id nothing is shared.

    `grace` answers for how many seconds an alias that Redis does not know may still be one that it lost: after a
    restart those who know it say it again, and nobody is granted a lock before they had the time to.
    """

    def __init__(
        self,
        execute_many: ExecuteMany,
        namespace: str,
        boot_id: str,
        grace: Callable[[], Awaitable[float]] = _no_grace,
    ) -> None:
        self._execute_many = execute_many
        self._key = alias_key(namespace, boot_id)
        self._shared = bool(boot_id)
        self._grace = grace
        self._told: dict[str, str] = {}
        """What Redis has answered: repeated when it may have forgotten."""
        self._fixes = True
        self._patience = float("inf")

    def reading(self) -> Aliases:
        """The same aliases for somebody who fixes none."""
        twin = copy.copy(self)
        twin._fixes = False
        return twin

    def within(self, patience: float) -> Aliases:
        """The same aliases for somebody who waits `patience` seconds at most for the end of a restart grace."""
        twin = copy.copy(self)
        twin._patience = patience
        return twin

    async def fix(self, name: str, wanted: str) -> str:
        """What is said of an index, a UUID, or `ONE_NAME`; `wanted` if nobody has said before."""
        if not self._fixes:
            return await self.look(name) or wanted
        if not self._shared:
            return wanted
        if name not in self._told and await self.look(name) is None:
            await self._outlast_grace()
        self._told[name] = await self._set(name, self._told.get(name, wanted))
        return self._told[name]

    async def said(self, name: str) -> str | None:
        """What is said of it, or was told here before; None if nobody has said, and nobody who lost it will."""
        value = await self.look(name) or self._told.get(name)
        if value is None and self._fixes and self._shared:
            await self._outlast_grace()
            value = await self.look(name)
        return value

    async def fix_both(self, names: Mapping[str, str]) -> bool:
        """Fix two names at once; answers False, and fixes neither, where somebody has said otherwise of one."""
        if not (self._fixes and self._shared):
            return True
        arguments = [part for pair in names.items() for part in pair]
        done = bool((await self._execute(("EVAL", _FIX_BOTH, 1, self._key, *arguments, KEEP_SECONDS)))[0])
        if done:
            self._told.update(names)
        return done

    async def look(self, name: str) -> str | None:
        """The same; None if nobody has said."""
        value = (await self._execute(("HGET", self._key, name)))[0] if self._shared else None
        return value.decode() if value is not None else None

    async def uuids(self) -> tuple[str, ...]:
        """Every UUID that somebody on this host has named or seen."""
        fields = (await self._execute(("HKEYS", self._key)))[0] if self._shared else []
        return tuple(sorted(field.decode() for field in fields if field[:4] in (b"GPU-", b"MIG-")))

    async def restore(self) -> dict[str, str]:
        """Say again what Redis has told before, where it has forgotten it. Raises `RedisUnavailableError`.

        Answers what others have said otherwise meanwhile: nothing that was told before is believed then.
        """
        told = sorted(self._told.items(), key=lambda item: not item[0].isdecimal())  # the indices decide
        for field, value in told:
            now = await self._set(field, value)
            if now != value:
                self._told.clear()
                return {field: now}
        return {}

    async def _outlast_grace(self) -> None:
        while (left := await self._grace()) > 0:
            if left > self._patience:
                raise LockTimeoutError(
                    "GPU_LOCK_TIMEOUT: Redis has just restarted, and may have forgotten under which keys this host "
                    f"locks its GPUs: nothing is granted for another {left:.1f} s"
                )
            await asyncio.sleep(left)

    async def _set(self, field: str, wanted: str) -> str:
        replies = await self._execute(
            ("HSETNX", self._key, field, wanted), ("EXPIRE", self._key, KEEP_SECONDS), ("HGET", self._key, field)
        )
        return replies[2].decode() if replies[2] is not None else wanted

    async def _execute(self, *commands: tuple[Any, ...]) -> list[Any]:
        replies = await self._execute_many(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies
