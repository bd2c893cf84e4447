"""Under which key this host locks each GPU, kept in Redis for this boot: the first writer wins, whoever has NVML.

One process with NVML would lock a UUID and one without it the index, and both would hold the same GPU. So each index,
and each UUID that somebody names, is fixed by HSETNX before its first use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

KEEP_SECONDS = 30 * 24 * 3600
"""Renewed by every use."""


def alias_key(namespace: str, boot_id: str) -> str:
    """A hash: index -> UUID or "logical"; UUID -> the id that it is locked under."""
    return f"{{{namespace}}}:alias:{boot_id}"


class Aliases:
    """The aliases of one host. `execute` sends one Redis command; without a boot id nothing is shared."""

    def __init__(self, execute: Callable[..., Awaitable[Any]], namespace: str, boot_id: str) -> None:
        self._execute = execute
        self._key = alias_key(namespace, boot_id)
        self._shared = bool(boot_id)

    async def fix(self, index: int, wanted: str) -> str:
        """What the index is locked as: a UUID or "logical". `wanted` if nobody has said before."""
        return await self._fix(str(index), wanted)

    async def fix_uuid(self, uuid: str, wanted: str) -> str:
        """The id that the device is locked under: its UUID, or its index."""
        return await self._fix(uuid, wanted)

    async def look(self, index: int) -> str | None:
        """What the index is locked as; None if nobody has said."""
        value = await self._execute("HGET", self._key, index) if self._shared else None
        return value.decode() if value is not None else None

    async def uuids(self) -> tuple[str, ...]:
        """Every UUID that somebody on this host has named or seen."""
        fields = await self._execute("HKEYS", self._key) if self._shared else []
        return tuple(sorted(field.decode() for field in fields if field[:4] in (b"GPU-", b"MIG-")))

    async def _fix(self, field: str, wanted: str) -> str:
        if not self._shared:
            return wanted
        await self._execute("HSETNX", self._key, field, wanted)
        await self._execute("EXPIRE", self._key, KEEP_SECONDS)
        value = await self._execute("HGET", self._key, field)
        return value.decode() if value is not None else wanted
