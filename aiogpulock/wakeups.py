"""The inbox: one pub/sub connection per manager. What arrives is a hint; the scripts hold the truth."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import redis.exceptions as rx

from aiogpulock.errors import AuthenticationError
from aiogpulock.models import ProcessInfo
from aiogpulock.redis_client import RedisClient, abort, typed_error

if TYPE_CHECKING:
    from redis.asyncio import Connection

logger = logging.getLogger(__name__)


class Grant(msgspec.Struct, frozen=True, tag="grant", forbid_unknown_fields=True):
    """A waiter was given the lease and must claim it."""

    lock: str
    id: str
    token: int


class Watch(msgspec.Struct, frozen=True, tag="watch", forbid_unknown_fields=True):
    """This inbox has the next waiter in line, who watches the holder."""

    lock: str
    holder: str
    deadline_in: int
    """ms"""
    process: ProcessInfo | None


class Lost(msgspec.Struct, frozen=True, tag="lost", forbid_unknown_fields=True):
    """A lease of ours may have been ended by somebody else."""

    lock: str
    id: str
    token: int
    reason: str


Message = Grant | Watch | Lost

MAX_MESSAGE_BYTES = 16384
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def parse_message(data: bytes) -> Message | None:
    """The message, or None for what no script of ours sends: anybody may publish to an inbox."""
    if len(data) > MAX_MESSAGE_BYTES:
        return None
    try:
        message: Message = _decoder.decode(data)
        return message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Inbox:
    """Owns the pub/sub connection: subscribes, confirms, pings with a deadline, reconnects.

    `on_message` gets each valid message, `on_release` the lock key of a public release message, `on_health` whether
    messages can arrive now, and `on_unreachable` is awaited after each failed connection.
    """

    PING_EVERY: ClassVar[float] = 5.0
    """Seconds of silence before a ping; as many again, and the connection counts as dead."""
    RECONNECT: ClassVar[tuple[float, float]] = (0.02, 0.5)
    """Seconds between attempts, first and most: holders must re-assert within the restart grace."""
    DENIED_RETRY: ClassVar[float] = 60.0

    def __init__(
        self,
        client: RedisClient,
        channel: str,
        *,
        on_message: Callable[[Message], None],
        on_release: Callable[[str], None],
        on_health: Callable[[bool], None],
        on_unreachable: Callable[[], Awaitable[None]],
    ) -> None:
        self.channel = channel
        self.healthy = False
        self._client = client
        self._on_message = on_message
        self._on_release = on_release
        self._on_health = on_health
        self._on_unreachable = on_unreachable
        self._release_channels: dict[bytes, str] = {}
        self._connection: Connection | None = None
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def ready(self) -> bool:
        """Start if needed, wait for the first subscription or its failure; answers whether messages can arrive."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._run(), name="aiogpulock-inbox")
        if self._task is not None:
            await self._tried.wait()
        return self.healthy

    def reconnect(self) -> None:
        """Redis says that nobody listens to this channel: the connection is half open."""
        if self._connection is not None:
            abort(self._connection)

    async def follow_releases(self, channel: str, lock: str) -> None:
        """Hear the public release channel of a lock that an older program holds."""
        if channel.encode() in self._release_channels:
            return
        self._release_channels[channel.encode()] = lock
        await self._send("SUBSCRIBE", channel)

    async def unfollow_releases(self, channel: str) -> None:
        if self._release_channels.pop(channel.encode(), None):
            await self._send("UNSUBSCRIBE", channel)

    async def _send(self, *command: str) -> None:
        if self.healthy and self._connection is not None:
            try:
                await self._connection.send_command(*command, check_health=False)
            except (rx.RedisError, OSError):
                self.reconnect()  # the next session subscribes to all of them

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        pause = self.RECONNECT[0]
        while True:
            try:
                await self._session()
            except Exception as error:  # whatever it is, messages must arrive again
                typed = typed_error(error, self._client.where)
                was_healthy = self._lost()
                if isinstance(typed, AuthenticationError):
                    logger.warning("polling instead of waiting for messages: %s", typed)
                    pause = self.DENIED_RETRY
                else:
                    pause = self.RECONNECT[0] if was_healthy else min(2 * pause, self.RECONNECT[1])
                    if was_healthy:
                        logger.warning("inbox connection lost, reconnecting: %s", typed)
                    await self._on_unreachable()
            finally:
                self._tried.set()
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    def _lost(self) -> bool:
        was_healthy, self.healthy = self.healthy, False
        if was_healthy:
            self._on_health(False)
        return was_healthy

    async def _session(self) -> None:
        connection = self._connection = self._client.new_connection()
        try:
            async with asyncio.timeout(self._client.timeout):
                await connection.connect()
                await connection.send_command("SUBSCRIBE", self.channel, *self._release_channels, check_health=False)
                while (await connection.read_response())[:2] != [b"subscribe", self.channel.encode()]:
                    pass
            self.healthy = True
            self._tried.set()
            self._on_health(True)
            while True:
                self._dispatch(await self._next(connection))
        finally:
            self._connection = None
            abort(connection)

    async def _next(self, connection: Connection) -> Any:
        """The next reply; a server that does not answer a ping in time is gone."""
        for pinged in (False, True):
            try:
                async with asyncio.timeout(self.PING_EVERY):
                    return await connection.read_response(disconnect_on_error=False)
            except TimeoutError:
                if not pinged:
                    await connection.send_command("PING", check_health=False)
        raise rx.TimeoutError(f"no answer to a ping for {self.PING_EVERY:g} s")

    def _dispatch(self, reply: Any) -> None:
        if not isinstance(reply, list) or len(reply) != 3 or reply[0] != b"message":
            return
        _, channel, data = reply
        lock = self._release_channels.get(channel)
        if lock is not None:
            self._on_release(lock)
            return
        message = parse_message(data)
        if message is None:
            logger.debug("ignored a malformed message of %d bytes", len(data))
        else:
            self._on_message(message)
