"""Which server a manager uses, and how it is reached: a named one, or the embedded one, joined and kept alive."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack

from aiogpulock.config import Settings, redact_url
from aiogpulock.embedded import EmbeddedServer, announce_other_server, join
from aiogpulock.errors import ConfigError, GpuLockError, ManagerClosedError, RedisUnavailableError
from aiogpulock.redis_client import RedisClient
from aiogpulock.server_check import check_server

logger = logging.getLogger(__name__)


class ServerLink:
    """The server of one manager. `connect_timeout` bounds a start and each command, in seconds."""

    def __init__(self, settings: Settings) -> None:
        redis = settings.gpu_lock.redis
        self.connect_timeout = redis.connect_timeout
        self.url = redis.url or ""
        """With its password; empty until the embedded server is joined."""
        self._named = bool(redis.url)
        self._url_source = settings.redis_url_source
        self._use_embedded = redis.embedded
        self._embedded: EmbeddedServer | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._announced = False
        self._leave = ExitStack()

    @property
    def scope(self) -> str:
        """Whom locks on the embedded server exclude; empty for a named server: everybody who uses it."""
        return self._embedded.scope if self._embedded is not None else ""

    @property
    def named_by(self) -> str:
        """Who named the server, in words; empty: nobody did."""
        return self._url_source or ""

    def clean_run(self) -> str:
        """The run id of an embedded server that had no data to lose, or nothing."""
        return (self._embedded.clean_run or "") if self._embedded is not None else ""

    def client(self, connections: int) -> RedisClient:
        """A pool of its own on this server; the caller closes it."""
        return RedisClient(
            self.url, where=redact_url(self.url), connections=connections, timeout=self.connect_timeout,
            name="aiogpulock",
        )  # fmt: skip

    async def open(self, connections: int) -> RedisClient:
        """Find the server, start the embedded one if need be, and check it.

        Raises `ConfigError`, `RedisUnavailableError`, `AuthenticationError`, `ServerTooOldError`.
        """
        if self._named and self._use_embedded == "require":
            raise ConfigError(
                f"gpu_lock.redis.embedded is 'require', but a Redis URL is named by {self._url_source}: "
                "remove one of them"
            )
        if self._named and not self._announced:
            self._announced = True
            await asyncio.to_thread(self._announce)
        if not self._named:
            self.url = await self._join_embedded()
        client = self.client(connections)
        try:
            await self._first_contact(client)
        except BaseException:
            await client.close()
            raise
        return client

    async def revive(self) -> None:
        """A connection failed: see that the embedded server runs. Never raises."""
        if self._embedded is None:
            return
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.create_task(self._revive(self._embedded), name="aiogpulock-revive")
        await asyncio.shield(self._reviving)

    async def close(self) -> None:
        """Leave the embedded server; the last one out stops it."""
        if self._reviving is not None:
            await asyncio.wait([self._reviving])
        self._leave.close()

    def _announce(self) -> None:
        """Two locks on one host are none: processes that use the embedded server are warned of this one."""
        self._leave.callback(announce_other_server(self.url).close)

    async def _join_embedded(self) -> str:
        if self._use_embedded == "never":
            raise RedisUnavailableError(
                "no Redis is named, and gpu_lock.redis.embedded is 'never': set REDIS_URL, or pass redis_url"
            )
        if self._embedded is None:
            await asyncio.to_thread(self._join)
        return self._joined().url

    def _join(self) -> None:
        """In a thread, which goes on if the caller is cancelled: the share that it takes must be known here."""
        self._embedded = join(timeout=self.connect_timeout)
        self._leave.callback(self._embedded.close)

    def _joined(self) -> EmbeddedServer:
        if self._embedded is None:
            raise ManagerClosedError("the embedded server was left while it was joined")
        return self._embedded

    async def _first_contact(self, client: RedisClient) -> None:
        """Redis may just be restarting: try for `connect_timeout`."""
        named_by = f" (named by {self._url_source})" if self._url_source else ""
        pause, deadline = 0.05, time.monotonic() + self.connect_timeout
        while True:
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    await check_server(client)
                return
            except TimeoutError as error:
                raise RedisUnavailableError(
                    f"Redis at {client.where} did not answer within {self.connect_timeout:g} s{named_by}"
                ) from error
            except RedisUnavailableError as error:
                if time.monotonic() + pause > deadline:
                    raise RedisUnavailableError(f"{error}{named_by}") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    async def _revive(self, embedded: EmbeddedServer) -> None:
        try:
            await asyncio.to_thread(embedded.revive, timeout=self.connect_timeout)
        except (GpuLockError, OSError) as error:
            logger.warning("the embedded server cannot be started again now: %s", error)
