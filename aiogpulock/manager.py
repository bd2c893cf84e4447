"""The manager owns the connections and wires the parts: one per event loop and server."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from aiogpulock import signals
from aiogpulock.config import Settings, SettingsSource, redact_url
from aiogpulock.embedded import EmbeddedServer, announce_other_server, join
from aiogpulock.errands import Errands
from aiogpulock.errors import (
    ConfigError,
    GpuLockError,
    InvalidGpuError,
    ManagerClosedError,
    RedisUnavailableError,
)
from aiogpulock.guard import Guard
from aiogpulock.heartbeat import Heartbeat, Holds
from aiogpulock.incidents import AlertHook, CriticalFailureLog, ExceptionStats, Incidents, log_alert
from aiogpulock.keys import LockKeys, check_gpu_id, inbox_channel, index_key, lock_keys
from aiogpulock.lease import Hold
from aiogpulock.leaving import finish, leave
from aiogpulock.liveness import ProcessWatch, this_process
from aiogpulock.lock import GpuLock
from aiogpulock.models import LockSnapshot
from aiogpulock.owners import Owners
from aiogpulock.redis_client import RedisClient
from aiogpulock.scripts import Scripts, Terms
from aiogpulock.server_check import check_server
from aiogpulock.waiting import WaitingRoom
from aiogpulock.wakeups import Grant, Inbox, Lost, Message

logger = logging.getLogger(__name__)

T = TypeVar("T")

COMMAND_CONNECTIONS = 4
URGENT_CONNECTIONS = 1
"""For beats and releases: they never wait behind a thousand acquires."""
KEEP_INDEX_SECONDS = 30 * 24 * 3600


class GpuLockManager:
    """Locks on one Redis server, for one event loop of one process.

    `redis_url` and `config` (a path) name server and settings; without them see `load_settings`. Further keywords
    override keys of the ``gpu_lock`` section. `alert_hook` gets each `Alert`; by default it is logged.
    Use it as an async context manager, or call `close`.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        config: str | os.PathLike[str] | None = None,
        *,
        alert_hook: AlertHook = log_alert,
        **overrides: object,
    ) -> None:
        self._source = SettingsSource(
            config, redis_url=redis_url, overrides={"gpu_lock": overrides} if overrides else {}
        )
        settings = self._source.current()
        self.namespace = settings.gpu_lock.redis.namespace
        self.connect_timeout = settings.gpu_lock.redis.connect_timeout
        self.emergency_seconds = self.connect_timeout
        self.process = msgspec.json.encode(this_process())
        self.actor = f"{this_process().host}:{os.getpid()}"
        self.holds = Holds()
        self.owners = Owners()
        self.incidents = Incidents(
            CriticalFailureLog(settings.gpu_lock.critical_failure_log), alert_hook, self._send_counts
        )
        self._url = settings.gpu_lock.redis.url
        self._url_source = settings.redis_url_source
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._embedded: EmbeddedServer | None = None
        self._leave_server = ExitStack()
        self._announced = False
        self._starting = asyncio.Lock()
        self._parts: _Parts | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._indexed: dict[str, float] = {}
        self._closed = False

    # what users call

    @property
    def settings(self) -> Settings:
        """The settings for new acquisitions; a change of the file is picked up."""
        return self._source.current()

    @property
    def exception_stats(self) -> ExceptionStats:
        """What went wrong while leaving, in this manager."""
        return self.incidents.stats

    @property
    def server(self) -> str | None:
        """The server in use, without its password; None before the first use."""
        return self._parts.client.where if self._parts else None

    def lock(self, gpu_id: int | str, **keywords: Any) -> GpuLock:
        """A lock of this manager; keywords as for `gpu_lock`."""
        return GpuLock(gpu_id, self._itself, **keywords)

    async def _itself(self) -> Self:
        return self

    @property
    def forked(self) -> bool:
        """Carried into a forked process: its connections and its leases are the parent's."""
        return self._pid != os.getpid()

    @property
    def unusable(self) -> bool:
        """Closed, or carried into a forked process."""
        return self._closed or self.forked

    async def status(self) -> list[LockSnapshot]:
        """Every known lock: holder, age, queue, deadline. Raises `RedisUnavailableError`."""
        parts = await self.started()
        known = await parts.client.execute("ZRANGE", index_key(self.namespace), 0, -1)
        ids = sorted(gpu_id.decode() for gpu_id in known)
        return [await parts.scripts.snapshot(lock_keys(gpu_id, self.namespace)) for gpu_id in ids]

    async def force_release(self, gpu_id: int | str, *, reason: str = "operator", actor: str | None = None) -> bool:
        """End exactly the holder that is seen now, never its successor; the next waiter is granted in the same step.

        The holder is told at once: its body is cancelled, reason ``forced``. Answers whether there was one to end.
        `reason` and `actor` go into the lock's history. Raises `RedisUnavailableError`.
        """
        parts = await self.started()
        keys = lock_keys(check_gpu_id(gpu_id), self.namespace)
        seen = await parts.scripts.snapshot(keys)
        if seen.value is None:
            return False
        terms = self.script_terms()
        who = f"{actor or self.actor} ({reason})"
        ended, more = await parts.scripts.reap(keys, terms, seen.value, "forced", "forced", who)
        if more:
            await self.resume(keys, terms)
        return ended

    async def __aenter__(self) -> Self:
        await self.started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release what is still held, close all connections. Idempotent."""
        if self._closed:
            return
        self._closed = True
        signals.forget(self)
        if not self.forked:
            await finish(self._close_parts)

    # what the parts call

    async def started(self) -> _Parts:
        """Connect on first use. Raises `RedisUnavailableError`, `AuthenticationError`, `ServerTooOldError`."""
        self.check_usable()
        if self._parts is not None:
            return self._parts
        async with self._starting:
            self.check_usable()
            if self._parts is None:
                self._loop = asyncio.get_running_loop()
                self._parts = await self._start()
                signals.cover(self)
        self.check_usable()  # it may have been closed while it started
        return self._parts

    @property
    def parts(self) -> _Parts:
        if self._parts is None:
            raise ManagerClosedError("this manager has not been started")
        return self._parts

    @property
    def scripts(self) -> Scripts:
        return self.parts.scripts

    @property
    def urgent(self) -> Scripts:
        return self.parts.urgent

    @property
    def inbox(self) -> Inbox:
        return self.parts.inbox

    @property
    def running_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that this manager belongs to."""
        if self._loop is None:
            raise ManagerClosedError("this manager has not been started")
        return self._loop

    def script_terms(self) -> Terms:
        lock = self.settings.gpu_lock
        return Terms(round(lock.claim_window * 1000), round(lock.restart_grace * 1000))

    def room(self, keys: LockKeys, *, event_driven: bool) -> WaitingRoom:
        """Where the waiters of this process for one lock wait."""
        return self.parts.room(keys, event_driven=event_driven)

    def inbox_name(self, *, event_driven: bool) -> str:
        """Waiters that poll by choice have an inbox record of their own."""
        channel = self.inbox.channel
        return channel if event_driven else f"{channel}:poll"

    def keep(self, hold: Hold) -> None:
        """A lease has begun: beat for it, and guard it."""
        self.parts.heartbeat.add(hold)
        if hold.terms.max_stall > 0:
            self.parts.guard().cover(hold)

    def forget(self, hold: Hold) -> None:
        self.holds.discard(hold)
        self.owners.leave(hold.keys, hold.owner)

    def leaked(self, hold: Hold) -> None:
        """A lease was garbage-collected unreleased, on whatever thread."""
        if self.unusable:
            return
        errand = f"release of leaked {hold.id}"
        with suppress(RuntimeError):  # the loop is closed: the guard thread releases
            hold.loop.call_soon_threadsafe(self._add_errand, errand, lambda: leave(self, hold, "leaked"))

    async def resume(self, keys: LockKeys, terms: Terms) -> None:
        """Go on with a grant that looked at many dead seats."""
        while await self.scripts.resume(keys, terms):
            pass

    def resume_later(self, keys: LockKeys, terms: Terms) -> None:
        """The same, without waiting for it: nobody who leaves must hear of its failures."""
        self._add_errand(f"resume of {keys.lock}", lambda: self.resume(keys, terms))

    async def withdraw(self, keys: LockKeys, terms: Terms, waiter_id: str, reason: str, inbox: str = "") -> None:
        if await self.urgent.withdraw(keys, terms, waiter_id, reason, inbox):
            await self.resume(keys, terms)

    def withdraw_later(self, keys: LockKeys, terms: Terms, waiter_id: str, reason: str, inbox: str = "") -> None:
        """Leave the queue without waiting for it: Redis may be away."""
        self._add_errand(f"withdrawal of {waiter_id}", lambda: self.withdraw(keys, terms, waiter_id, reason, inbox))

    async def emergency_scripts(self, call: Callable[[Scripts], Awaitable[T]]) -> T:
        """Run `call` on a connection of its own."""
        parts = self.parts
        client = self._client(parts.url, connections=1)
        try:
            return await call(Scripts(client, self._clean_run))
        finally:
            await client.close()

    async def unreachable(self) -> None:
        """A connection failed: see that the embedded server runs. Never raises."""
        if self._embedded is None or self._closed:
            return
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.create_task(self._revive(self._embedded), name="aiogpulock-revive")
        await asyncio.shield(self._reviving)

    async def index(self, keys: LockKeys) -> None:
        """Make a lock known before its first acquire, and once a day. Raises `AuthenticationError`.

        A server that refuses writes for a while must not end an acquisition that would wait for it.
        """
        if time.time() - self._indexed.get(keys.gpu_id, 0.0) < 24 * 3600:
            return
        try:
            await self._index(keys)
        except RedisUnavailableError:
            self._add_errand(f"index of {keys.lock}", lambda: self._index(keys))

    async def _index(self, keys: LockKeys) -> None:
        now, client = time.time(), self.parts.client
        await client.execute("ZADD", keys.index, int(now), keys.gpu_id)
        await client.execute("EXPIRE", keys.index, KEEP_INDEX_SECONDS)
        self._indexed[keys.gpu_id] = now

    # start and end

    def check_usable(self) -> None:
        """Raise `ManagerClosedError` if nothing can be acquired here any more, or not from here."""
        if self._closed:
            raise ManagerClosedError("this GpuLockManager is closed: make a new one")
        if self._pid != os.getpid():
            raise ManagerClosedError(
                f"this GpuLockManager belongs to process {self._pid}; after a fork, make a new one in the child"
            )
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise ManagerClosedError("this GpuLockManager belongs to another event loop: make one per loop")

    async def _start(self) -> _Parts:
        lock = self.settings.gpu_lock
        if self._url and lock.redis.embedded == "require":
            raise ConfigError(
                f"gpu_lock.redis.embedded is 'require', but a Redis URL is named by {self._url_source}: "
                "remove one of them"
            )
        if self._url and not self._announced:
            self._announced = True
            await asyncio.to_thread(self._announce, self._url)
        url = self._url or await self._join_embedded()
        client = self._client(url, connections=COMMAND_CONNECTIONS)
        try:
            await self._first_contact(client)
        except BaseException:
            await client.close()
            raise
        return _Parts(self, url, client, self._client(url, connections=URGENT_CONNECTIONS))

    async def _join_embedded(self) -> str:
        lock = self.settings.gpu_lock
        if lock.redis.embedded == "never":
            raise RedisUnavailableError(
                "no Redis is named, and gpu_lock.redis.embedded is 'never': set REDIS_URL, or pass redis_url"
            )
        if self._embedded is None:
            await asyncio.to_thread(self._join)
        return self._joined().url

    def _announce(self, url: str) -> None:
        """Two locks on one host are none: processes that use the embedded server are warned of this one."""
        self._leave_server.callback(announce_other_server(url).close)

    def _join(self) -> None:
        """In a thread, which goes on if the caller is cancelled: the share that it takes must be known here."""
        self._embedded = join(timeout=self.connect_timeout)
        self._leave_server.callback(self._embedded.close)

    def _joined(self) -> EmbeddedServer:
        if self._embedded is None:
            raise ManagerClosedError("the embedded server was left while it was joined")
        return self._embedded

    async def _first_contact(self, client: RedisClient) -> None:
        """Redis may just be restarting: try for `connect_timeout`."""
        pause, deadline = 0.05, time.monotonic() + self.connect_timeout
        while True:
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    await check_server(client)
                return
            except TimeoutError as error:
                raise RedisUnavailableError(
                    f"Redis at {client.where} did not answer within {self.connect_timeout:g} s{self._named_by()}"
                ) from error
            except RedisUnavailableError as error:
                if time.monotonic() + pause > deadline:
                    raise RedisUnavailableError(f"{error}{self._named_by()}") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _named_by(self) -> str:
        return f" (named by {self._url_source})" if self._url_source else ""

    def _client(self, url: str, *, connections: int) -> RedisClient:
        return RedisClient(
            url, where=redact_url(url), connections=connections, timeout=self.connect_timeout, name="aiogpulock"
        )

    def _clean_run(self) -> str:
        return (self._embedded.clean_run or "") if self._embedded is not None else ""

    async def _revive(self, embedded: EmbeddedServer) -> None:
        try:
            await asyncio.to_thread(embedded.revive, timeout=self.connect_timeout)
        except (GpuLockError, OSError) as error:
            logger.warning("the embedded server cannot be started again now: %s", error)

    async def _close_parts(self) -> None:
        async with self._starting:  # a start under way ends first, then is closed
            parts = self._parts
        if parts is not None:
            await parts.end_waiting()
        for hold in self.holds.all():
            hold.lose("manager_closed")  # a body must not go on unprotected
            await leave(self, hold, "leaked")
        if parts is not None:
            await parts.close()
        if self._reviving is not None:
            await asyncio.wait([self._reviving])
        self._leave_server.close()

    # messages

    def _add_errand(self, name: str, errand: Callable[[], Awaitable[object]]) -> None:
        if not self._closed:
            self.parts.errands.add(name, errand)

    def _send_counts(self, keys: LockKeys) -> None:
        """One batch per lock is under way at a time, under one id, so that a lost reply counts nothing twice."""
        if self._parts is None or self._closed:
            return
        batch, counters = secrets.token_hex(16), self.incidents.take_unsent(keys)
        self._add_errand(f"counters {batch}", lambda: self.urgent.count(keys, batch, counters))

    def on_message(self, message: Message) -> None:
        keys = self._keys_of(message.lock)
        room = self.parts.rooms.get((message.lock, True))
        if keys is None:
            return
        match message:
            case Grant():
                if not (room and room.granted(message)) and message.id not in self.holds:
                    self.withdraw_later(keys, self.script_terms(), message.id, "cancelled", self.inbox.channel)
            case Lost():
                hold = self.holds.get(message.id)
                if hold is not None:
                    hold.revocation = message.reason
                    self.parts.heartbeat.beat_now()
            case _:
                if room:
                    room.next_in_line(message)

    def on_release(self, lock: str) -> None:
        """An older program released: the first in line looks."""
        for (key, _), room in self.parts.rooms.items():
            if key == lock:
                room.wake_first()

    def on_health(self, healthy: bool) -> None:
        if healthy:
            self.parts.heartbeat.beat_now()  # the server may have restarted without its data
        for room in self.parts.rooms.values():
            room.health_changed()

    def _keys_of(self, lock: str) -> LockKeys | None:
        try:
            return lock_keys(check_gpu_id(lock.removeprefix(f"{self.namespace}:")), self.namespace)
        except InvalidGpuError:
            return None


class _Parts:
    """What a started manager is made of."""

    def __init__(self, manager: GpuLockManager, url: str, client: RedisClient, urgent: RedisClient) -> None:
        self.url = url
        self.client = client
        self.scripts = Scripts(client, manager._clean_run)
        self.urgent = Scripts(urgent, manager._clean_run)
        self.rooms: dict[tuple[str, bool], WaitingRoom] = {}
        self.watch = ProcessWatch()
        self.errands = Errands()
        self.inbox = Inbox(
            client,
            inbox_channel(manager.namespace, client.database, secrets.token_hex(8)),
            on_message=manager.on_message,
            on_release=manager.on_release,
            on_health=manager.on_health,
            on_unreachable=manager.unreachable,
        )
        self.heartbeat = Heartbeat(manager.holds, self.urgent, cap=self._beat_cap, unreachable=manager.unreachable)
        self._manager = manager
        self._urgent_client = urgent
        self._guard: Guard | None = None

    def room(self, keys: LockKeys, *, event_driven: bool) -> WaitingRoom:
        room = self.rooms.get((keys.lock, event_driven))
        if room is None:
            events: Callable[[], bool] = (lambda: self.inbox.healthy) if event_driven else (lambda: False)
            room = self.rooms[keys.lock, event_driven] = WaitingRoom(events, self.watch)
        return room

    def guard(self) -> Guard:
        if self._guard is None:
            manager = self._manager
            self._guard = Guard(
                self.url,
                manager.holds,
                timeout=min(2.0, manager.connect_timeout),
                ticked_at=lambda: self.heartbeat.ticked_at,
                clean_run=manager._clean_run,
                on_stall=_report_stall(manager),
            )
        return self._guard

    def _beat_cap(self) -> float:
        """A holder without an inbox learns of a restart only by its beats: they must come within the grace."""
        grace = self._manager.settings.gpu_lock.restart_grace
        return float("inf") if self.inbox.healthy or grace == 0 else grace / 2

    async def end_waiting(self) -> None:
        """Waiters find the manager closed, and leave the queue while there are connections."""
        deadline = time.monotonic() + self._manager.connect_timeout
        while any(len(room) for room in self.rooms.values()) and time.monotonic() < deadline:
            for room in self.rooms.values():
                room.wake_all()
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        for room in self.rooms.values():
            room.close()
        await self.errands.close()
        await self.heartbeat.close()
        await self.inbox.close()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()
        self.watch.close()
        await self.client.close()
        await self._urgent_client.close()


def _report_stall(manager: GpuLockManager) -> Callable[[Hold, float], None]:
    def report(hold: Hold, late: float) -> None:
        text = (
            f"the event loop has been blocked for {late:.1f} s; the guard thread beats for it "
            f"for at most {hold.terms.max_stall:g} s. Move blocking work to a thread"
        )
        manager.incidents.alert("event_loop_blocked", "warning", hold.keys, text)

    return report
