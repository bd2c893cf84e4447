"""A small pool of Redis connections: each command has a deadline, each failure a typed error.

It sits on redis-py's `Connection` (handshake, TLS, parser) and not on its client, for three reasons that matter to a
lock: giving a connection back needs no await here, so no cancellation can lose one; nothing is retried behind our back;
and a cancelled command closes its connection, so that its late reply cannot answer somebody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import redis.exceptions as rx
from hiredis import pack_command  # redis-py packs in Python: three times as slow for twenty arguments
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aiogpulock.errors import AuthenticationError, ProtocolError, RedisUnavailableError

if TYPE_CHECKING:
    from redis.asyncio import Connection

_TRANSIENT = (
    rx.ConnectionError,
    rx.TimeoutError,
    rx.BusyLoadingError,
    rx.ReadOnlyError,
    rx.OutOfMemoryError,
    rx.ClusterError,
    OSError,
    TimeoutError,
)
_TRANSIENT_CODES = (
    "BUSY ",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
)
_REFUSED_TEXTS = ("NOPERM", "NOAUTH", "WRONGPASS", "ACL failure", "user executing the script can't")


class ScriptMissingError(Exception):
    """NOSCRIPT: the server does not know this script; safe to retry."""


def typed_error(error: BaseException, where: str) -> Exception:
    """The library's error for one of redis-py; `where` is the redacted URL."""
    text = str(error) or type(error).__name__
    if isinstance(error, rx.NoScriptError):
        return ScriptMissingError(text)
    if isinstance(error, rx.AuthenticationError | rx.NoPermissionError | rx.AuthorizationError) or any(
        refused in text for refused in _REFUSED_TEXTS
    ):
        return AuthenticationError(
            f"Redis at {where} refused this user: {text.rstrip('.')}. Check the password and the user's ACL"
        )
    if isinstance(error, _TRANSIENT) or text.startswith(_TRANSIENT_CODES):
        return RedisUnavailableError(
            f"Redis at {where} is not available: {text.rstrip('.')}. Start it, or correct its URL"
        )
    return ProtocolError(f"Redis at {where} answered with an error: {text}")


def connection_options(url: str, *, connect_timeout: float, name: str) -> dict[str, Any]:
    """What every connection of ours is made with, beside a `Retry` that does not."""
    return {
        "url": url,
        "client_name": name,
        "driver_info": None,
        "protocol": 2,  # RESP3 over TCP switches the check for unread replies off
        # A socket_timeout can swallow a cancellation on Python 3.11; each call is under asyncio.timeout instead.
        "socket_timeout": None,
        "socket_connect_timeout": connect_timeout,
    }


class RedisClient:
    """At most `connections` connections to one server; commands beyond that wait in line.

    `timeout` bounds each command, its connect included, in seconds.
    """

    def __init__(self, url: str, *, where: str, connections: int, timeout: float, name: str) -> None:
        self.where = where
        self.timeout = timeout
        self._factory: ConnectionPool = ConnectionPool.from_url(
            **connection_options(url, connect_timeout=timeout, name=name),
            retry=Retry(NoBackoff(), 0),
        )
        self._free = asyncio.Semaphore(connections)
        self._idle: list[Connection] = []
        self._busy: dict[Connection, float] = {}
        """Connections in use, with the loop's time at which their commands are given up."""
        self._late: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._answered_at = 0.0
        self._closed = False

    @property
    def open_connections(self) -> int:
        """Connections that are open now, idle and in use."""
        return len(self._idle) + len(self._busy)

    @property
    def database(self) -> int:
        return int(self._factory.connection_kwargs.get("db") or 0)

    def new_connection(self) -> Connection:
        """A connection outside the pool, for pub/sub; not connected yet. The caller closes it."""
        connection: Connection = self._factory.make_connection()
        return connection

    async def execute(self, *command: Any) -> Any:
        """Send one command. Raises `RedisUnavailableError`, `AuthenticationError` or `ProtocolError`."""
        reply = (await self.execute_many([command]))[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def execute_many(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands in one write. A command's own error comes as its reply; a lost connection raises.

        Each command must be idempotent: over a connection that was closed while idle they are sent again.
        """
        try:
            await self._turn()
            try:
                return await self._exchange(commands)
            finally:
                self._free.release()
        except (rx.RedisError, OSError, TimeoutError) as error:
            raise typed_error(error, self.where) from error

    async def _turn(self) -> None:
        """Wait for a free connection: for ever while the server answers others, else for `timeout`."""
        while self._free.locked():
            started = time.monotonic()
            try:
                async with asyncio.timeout(self.timeout):
                    await self._free.acquire()
                    return
            except TimeoutError:
                if self._answered_at < started:
                    raise
        await self._free.acquire()

    async def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        while self._idle:
            try:
                return await self._send(self._idle.pop(), commands)
            except TimeoutError:
                raise
            except (rx.ConnectionError, OSError):
                # The server closed it while it was idle; the others were as likely closed by the same event.
                self._close_idle()
        return await self._send(self.new_connection(), commands)

    async def _send(self, connection: Connection, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        self._busy[connection] = asyncio.get_running_loop().time() + self.timeout
        if self._timer is None:
            self._watch()
        try:
            if not connection.is_connected:
                async with asyncio.timeout(self.timeout):
                    await connection.connect()
            await connection.send_packed_command([pack_command(command) for command in commands], check_health=False)
            replies = [await self._read_reply(connection) for _ in commands]
        except BaseException as error:
            abort(connection)
            if connection in self._late and isinstance(error, rx.RedisError | OSError):
                raise TimeoutError from error
            raise
        finally:
            del self._busy[connection]
            self._late.discard(connection)
        if self._closed:
            abort(connection)  # a release that outlived its manager
        else:
            self._idle.append(connection)
        self._answered_at = time.monotonic()
        return replies

    def _watch(self) -> None:
        """One timer for all commands under way: an `asyncio.timeout` for each would take a quarter of its time.

        A command that is overdue is ended by its connection, which is never used again.
        """
        loop = asyncio.get_running_loop()
        late = {connection for connection, deadline in self._busy.items() if deadline <= loop.time()} - self._late
        self._late |= late
        for connection in late:
            cut(connection)
        due = [deadline for connection, deadline in self._busy.items() if connection not in self._late]
        self._timer = loop.call_at(min(due), self._watch) if due else None

    async def _read_reply(self, connection: Connection) -> Any:
        try:
            return await connection.read_response()
        except rx.ResponseError as error:
            return typed_error(error, self.where)

    def _close_idle(self) -> None:
        for connection in self._idle:
            abort(connection)
        self._idle.clear()

    async def close(self) -> None:
        """Close every connection; commands under way fail. A cancellation cannot leave one open."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._close_idle()
        for connection in self._busy:
            abort(connection)
        await asyncio.sleep(0)  # the transports close in the loop's next turn


def cut(connection: Connection) -> None:
    """End the command under way: whoever reads its reply gets a `ConnectionError`. Nothing while it connects."""
    if connection._writer is not None:
        connection._writer.transport.abort()


def abort(connection: Connection) -> None:
    """Close at once, without an await that a cancellation could interrupt."""
    connection._close()
