"""Which locks there are: the index, and an incremental SCAN for what it misses."""

from __future__ import annotations

import asyncio

from aiogpulock import clock
from aiogpulock.errors import AuthenticationError, InvalidGpuError, ProtocolError
from aiogpulock.keys import LockKeys, check_gpu_id, index_key, lock_keys
from aiogpulock.redis_client import RedisClient

PAGE = 1000
"""Keys that the server looks at per SCAN call: some 0.3 ms of its time."""
MOST_STRAYS = 1000
_HEARTBEAT_SUFFIX = ":heartbeat"
"""Older programs keep a beat beside their lock; that key is no lock."""


class Census:
    """The locks of one namespace. A value that somebody set by hand is in no index: SCAN finds it.

    SCAN goes on where the last call stopped, so that each call costs the server a bounded time, however many keys other
    programs keep there. `scan_refused` says why there is no scan, if there is none.
    """

    def __init__(self, client: RedisClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self._cursor = b"0"
        self._strays: set[str] = set()
        """Found by this pass over the keyspace or by the one before: what is gone since then is forgotten."""
        self._pass: set[str] = set()
        self._scanning = asyncio.Lock()
        """Two scans on one cursor would each take pages from the other, and both would call their part the whole."""
        self.scan_refused = ""
        self.index_error = ""
        """Why the index cannot be read, if so: then only SCAN finds locks."""

    async def locks(self, pages: int, seconds: float) -> tuple[list[LockKeys], bool]:
        """All that is known after more calls of SCAN, and whether those reached the end.

        At most `pages` of them, and none begins after `seconds`: on a slow line each takes as long as its way there.
        Raises `RedisUnavailableError`, `AuthenticationError`.
        """
        indexed = await self._indexed()
        before = self._strays  # what is gone is looked at once more: that it is gone is news as well
        async with self._scanning:
            complete = await self._scan(pages, seconds)
        ids = before | self._strays | {gpu_id.decode("utf-8", "replace") for gpu_id in indexed}
        return [lock_keys(gpu_id, self._namespace) for gpu_id in sorted(filter(_is_lock_id, ids))], complete

    async def _indexed(self) -> list[bytes]:
        key = index_key(self._namespace)
        try:
            indexed: list[bytes] = await self._client.execute("ZRANGE", key, 0, -1)
        except ProtocolError as error:
            self.index_error = f"{key} holds what is none of ours: move or delete it ({error})"
            return []
        self.index_error = ""
        return indexed

    async def _scan(self, pages: int, seconds: float) -> bool:
        prefix, began = f"{self._namespace}:", clock.now()
        for page in range(pages):
            if page and clock.now() - began >= seconds:
                break
            command = ("SCAN", self._cursor, "MATCH", f"{prefix}*", "COUNT", PAGE, "TYPE", "string")
            try:
                self._cursor, found = await self._client.execute(*command)
            except AuthenticationError as error:
                self.scan_refused = f"locks outside the index cannot be found: add +scan to the user's ACL ({error})"
                return False
            self.scan_refused = ""
            ids = (key.decode("utf-8", "replace").removeprefix(prefix) for key in found)
            self._pass.update(gpu_id for gpu_id in ids if not gpu_id.endswith(_HEARTBEAT_SUFFIX))
            while len(self._pass) > MOST_STRAYS:
                self._pass.pop()
            self._strays = self._strays | self._pass
            while len(self._strays) > MOST_STRAYS:
                self._strays.pop()
            if self._cursor == b"0":
                self._strays, self._pass = self._pass, set()
                return True
        return False


def _is_lock_id(gpu_id: str) -> bool:
    try:
        check_gpu_id(gpu_id)
    except InvalidGpuError:
        return False
    return True
