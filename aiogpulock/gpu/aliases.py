"""Under which key this host locks each GPU, kept in Redis for this boot: the first writer wins, whoever has NVML.

One process with NVML would lock a UUID and one without it the index, and both would hold the same GPU. So each index,
and each UUID that somebody names, is fixed by HSETNX before its first use.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiogpulock.errors import LockTimeoutError

KEEP_SECONDS = 30 * 24 * 3600
"""Renewed by every use."""

ExecuteMany = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


def alias_key(namespace: str, boot_id: str) -> str:
    """A hash: index -> UUID or "logical"; UUID -> the id that it is locked under."""
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

    async def fix(self, index: int, wanted: str) -> str:
        """What the index is locked as: a UUID or "logical". `wanted` if nobody has said before."""
        return await self._fix(str(index), wanted)

    async def fix_uuid(self, uuid: str, wanted: str) -> str:
        """The id that the device is locked under: its UUID, or its index."""
        return await self._fix(uuid, wanted)

    async def look(self, index: int) -> str | None:
        """What the index is locked as; None if nobody has said."""
        return await self._get(str(index))

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

    async def _fix(self, field: str, wanted: str) -> str:
        if not self._fixes:
            return await self._get(field) or wanted
        if not self._shared:
            return wanted
        if field not in self._told and await self._get(field) is None:
            await self._outlast_grace()
        self._told[field] = await self._set(field, self._told.get(field, wanted))
        return self._told[field]

    async def _outlast_grace(self) -> None:
        while (left := await self._grace()) > 0:
            if left > self._patience:
                raise LockTimeoutError(
                    "GPU_LOCK_TIMEOUT: Redis has just restarted, and may have forgotten under which keys this host "
                    f"locks its GPUs: nothing is granted for another {left:.1f} s"
                )
            await asyncio.sleep(left)

    async def _get(self, field: str) -> str | None:
        value = (await self._execute(("HGET", self._key, field)))[0] if self._shared else None
        return value.decode() if value is not None else None

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
