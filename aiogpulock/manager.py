"""The manager owns the connections and wires the parts: one per event loop and server."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from aiogpulock import signals
from aiogpulock.audit import AuditLog
from aiogpulock.caretaker import Caretaker
from aiogpulock.config import LockSettings, Settings, SettingsSource
from aiogpulock.errors import (
    GpuLockError,
    InvalidGpuError,
    ManagerClosedError,
    RedisUnavailableError,
)
from aiogpulock.gpu.identity import means_a_device
from aiogpulock.gpu.records import Gpu
from aiogpulock.health import HealthReport, Survey, unreachable
from aiogpulock.heartbeat import Holds
from aiogpulock.history import read_history
from aiogpulock.incidents import AlertHook, CriticalFailureLog, ExceptionStats, Incidents, log_alert
from aiogpulock.keys import LockKeys, check_gpu_id, lock_keys, refuse_key
from aiogpulock.lease import Hold
from aiogpulock.leaving import finish, leave, leave_all
from aiogpulock.liveness import this_process, with_companions
from aiogpulock.lock import GpuLock
from aiogpulock.models import Alert, HistoryEvent, LockSnapshot
from aiogpulock.owners import Owners
from aiogpulock.parts import Parts
from aiogpulock.scripts import Scripts, Terms
from aiogpulock.server_link import ServerLink
from aiogpulock.sight import Sight
from aiogpulock.waiting import WaitingRoom
from aiogpulock.wakeups import Inbox

logger = logging.getLogger(__name__)

T = TypeVar("T")

COMMAND_CONNECTIONS = 4
URGENT_CONNECTIONS = 1
"""For beats and releases: they never wait behind a thousand acquires."""
MOST_REASON = 500
"""Characters of a reason in a lock's history."""


class GpuLockManager:
    """Locks on one Redis server, for one event loop of one process.

    `redis_url` and `config` (a path) name server and settings; without them see `load_settings`. Further keywords
    override keys of the ``gpu_lock`` section. `alert_hook` gets each `Alert`; by default it is logged. `companions` are
    pids of this host that work under the leases of this manager: a crash frees a lock only when they are gone too.
    Use it as an async context manager, or call `close`.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        config: str | os.PathLike[str] | None = None,
        *,
        alert_hook: AlertHook = log_alert,
        companions: Iterable[int] = (),
        **overrides: object,
    ) -> None:
        self._source = SettingsSource(
            config, redis_url=redis_url, overrides={"gpu_lock": overrides} if overrides else {}
        )
        settings = self._source.current()
        self.namespace = settings.gpu_lock.redis.namespace
        self.connect_timeout = settings.gpu_lock.redis.connect_timeout
        self.emergency_seconds = self.connect_timeout
        self.companions = tuple(companions)
        self.process = msgspec.json.encode(with_companions(this_process(), self.companions))
        self.actor = f"{this_process().host}:{os.getpid()}"
        self.holds = Holds()
        self.owners = Owners()
        self.incidents = Incidents(
            CriticalFailureLog(settings.gpu_lock.critical_failure_log), alert_hook, self._send_counts, self._send_alert
        )
        self._audit = AuditLog(lambda: self.settings.gpu_lock_monitor.audit_log)
        self._link = ServerLink(settings)
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = asyncio.Lock()
        self._parts: Parts | None = None
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
    def link(self) -> ServerLink:
        """The server and how it is reached."""
        return self._link

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
        """Every known lock: holder, age, queue, deadline. Raises `RedisUnavailableError`.

        Also those that somebody set by hand; in a keyspace of more than 10,000 keys they are found after some calls.
        One that cannot be read is left out and logged; `look` and `health_check` tell of it.
        """
        sight = await self.look()
        for why in sight.unreadable.values():
            logger.warning("%s", why)
        return list(sight.locks)

    async def look(self, gpu_ids: Iterable[int | str] | None = None) -> Sight:
        """The same with what cannot be read, and why; of all locks, or of those of `gpu_ids` in their order.

        Raises `InvalidGpuError`, `RedisUnavailableError`.
        """
        observer = (await self.started()).overview.observer
        if gpu_ids is None:
            return await observer.look()
        return await observer.look_at([await self.keys_of(gpu_id) for gpu_id in gpu_ids])

    async def health_check(self, *, timeout: float | None = None) -> HealthReport:
        """What is dead, held for long, or about to go wrong, on the server and in every lock; the rates of failures.

        Answers within `timeout` seconds (by default `redis.connect_timeout`), also when Redis hangs: then with
        ``redis_connected`` False and the reason in ``error``. Changes no lock. Raises `ManagerClosedError`.
        """
        return (await self.survey(timeout=timeout)).report

    async def survey(self, *, timeout: float | None = None) -> Survey:
        """`health_check`, and all locks as it saw them: nothing in one contradicts the other."""
        try:
            async with asyncio.timeout(limit := self.connect_timeout if timeout is None else timeout):
                parts = await self.started()
                return await parts.overview.survey(self.settings, limit)
        except TimeoutError:
            return unreachable(self.server, f"Redis did not answer within {limit:g} s")
        except ManagerClosedError:
            raise
        except GpuLockError as error:
            return unreachable(self.server, str(error))

    async def history(self, gpu_id: int | str | LockSnapshot, *, limit: int = 100) -> list[HistoryEvent]:
        """The last `limit` events of one lock, newest first: each hold, and whatever was done to the lock.

        Raises `InvalidGpuError`, `RedisUnavailableError`.
        """
        parts = await self.started()
        return await read_history(parts.client, await self.keys_of(gpu_id), limit)

    async def lift_quarantine(self, gpu_id: int | str, *, reason: str = "operator", actor: str | None = None) -> bool:
        """End a GPU's quarantine, whatever its memory looks like. Answers whether there was one.

        `reason` and `actor` go into the lock's history. Raises `InvalidGpuError`, `RedisUnavailableError`.
        """
        gpu = await self._known(gpu_id)
        keys, lifted = lock_keys(gpu.id, self.namespace), False
        for line, told in (await self.scripts.quarantines(keys)).items():
            if told is None or gpu.uuid in (None, told.uuid):  # hosts may share a lock: another's device is not ours
                lifted |= await self.scripts.lift(keys, line, reason, actor or self.actor)
        return lifted

    async def keys_of(self, gpu_id: int | str | LockSnapshot) -> LockKeys:
        """The keys under which this host locks a GPU, for whoever looks at the lock and does not acquire it.

        An id that means no device here is taken by its name: its lock may be an old one. A snapshot names its own lock,
        also where this host would lock the device under another key. Raises `InvalidGpuError` for
        what can be no id, `RedisUnavailableError`.
        """
        return lock_keys((await self._known(gpu_id)).id, self.namespace)

    async def device(self, gpu_id: int | str) -> Gpu:
        """What an id means on this host. Raises `InvalidGpuError`, `RedisUnavailableError`."""
        lock, parts = self.settings.gpu_lock, await self.started()
        return await parts.finder.look(check_gpu_id(gpu_id), lock.identity, lock.gpu_memory.nvml)

    async def _known(self, gpu_id: int | str | LockSnapshot) -> Gpu:
        if isinstance(gpu_id, LockSnapshot):
            return Gpu(gpu_id.gpu_id)
        name = check_gpu_id(gpu_id)
        try:
            return await self.device(name)
        except InvalidGpuError:
            return Gpu(name)

    async def force_release(
        self,
        gpu_id: int | str | LockSnapshot,
        *,
        holder_id: str | None = None,
        reason: str = "operator",
        actor: str | None = None,
    ) -> bool:
        """End exactly the holder that is seen now, never its successor; the next waiter is granted in the same step.

        The holder is told at once: its body is cancelled, reason ``forced``. Answers whether there was one to end.
        `holder_id`: only this holder (for a foreign value: the value). `reason`, cut to 500 characters, and `actor` go
        into the lock's history. Raises `RedisUnavailableError`.
        """
        parts = await self.started()
        keys = await self.keys_of(gpu_id)
        seen = await parts.scripts.snapshot(keys)
        value = seen.ownership
        if value is None or holder_id not in (None, seen.holder_id or value):
            return False
        terms = self.script_terms()
        reason = reason[:MOST_REASON]  # a lock keeps 1,000 events
        who = f"{actor or self.actor} ({reason})"
        ended, more = await parts.scripts.reap(keys, terms, value, "forced", "forced", who)
        if more:
            await self.resume(keys, terms)
        if ended:
            self._audit.record(
                "force_release", keys.lock, value, holder=seen.task_name, reason=reason, actor=actor or self.actor
            )
        return ended

    async def __aenter__(self) -> Self:
        await self.started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release what is still held, close all connections. Idempotent.

        While Redis does not answer it gives up after a few times `redis.connect_timeout`, however many locks are held.
        """
        if self._closed:
            return
        self._closed = True
        signals.forget(self)
        if not self.forked:
            await finish(self._close_parts)

    # what the parts call

    async def started(self) -> Parts:
        """Connect on first use. Raises `RedisUnavailableError`, `AuthenticationError`, `ServerTooOldError`."""
        self.check_usable()
        if self._parts is not None:
            return self._parts
        async with self._starting:
            self.check_usable()
            if self._parts is None:
                self._loop = asyncio.get_running_loop()
                client = await self._link.open(COMMAND_CONNECTIONS)
                self._parts = Parts(self, client, self._link.client(URGENT_CONNECTIONS))
                signals.cover(self)
        self.check_usable()  # it may have been closed while it started
        return self._parts

    @property
    def parts(self) -> Parts:
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
    def caretaker(self) -> Caretaker:
        return self.parts.caretaker

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
        """Where the waiters of this process for one lock wait. It is gone with the last of them: add to it at once."""
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
            hold.loop.call_soon_threadsafe(self.later, errand, lambda: leave(self, hold, "leaked"))

    async def resume(self, keys: LockKeys, terms: Terms) -> None:
        """Go on with a grant that looked at many dead seats."""
        while await self.scripts.resume(keys, terms):
            pass

    def resume_later(self, keys: LockKeys, terms: Terms) -> None:
        """The same, without waiting for it: nobody who leaves must hear of its failures."""
        self.later(f"resume of {keys.lock}", lambda: self.resume(keys, terms))

    async def withdraw(self, keys: LockKeys, terms: Terms, waiter_id: str, reason: str, inbox: str = "") -> None:
        if await self.urgent.withdraw(keys, terms, waiter_id, reason, inbox):
            await self.resume(keys, terms)

    def withdraw_later(self, keys: LockKeys, terms: Terms, waiter_id: str, reason: str, inbox: str = "") -> None:
        """Leave the queue without waiting for it: Redis may be away."""
        self.later(f"withdrawal of {waiter_id}", lambda: self.withdraw(keys, terms, waiter_id, reason, inbox))

    def later(self, name: str, errand: Callable[[], Awaitable[object]]) -> None:
        """Do it when Redis can be reached, without waiting for it."""
        if not self._closed:
            self.parts.errands.add(name, errand)

    async def emergency_scripts(self, call: Callable[[Scripts], Awaitable[T]]) -> T:
        """Run `call` on a connection of its own."""
        client = self._link.client(connections=1)
        try:
            return await call(Scripts(client, self._link.clean_run))
        finally:
            await client.close()

    async def unreachable(self) -> None:
        """A connection failed: see that the embedded server runs. Never raises."""
        if not self._closed:
            await self._link.revive()

    async def find(self, gpu_id: str, settings: LockSettings) -> Gpu:
        """The device of an id, and what it is locked by. Raises `InvalidGpuError`, `NvmlError` if that is required."""
        if not means_a_device(gpu_id):
            refuse_key(gpu_id, self.namespace)
        patience = float("inf") if settings.max_wait_time is None else settings.max_wait_time
        return await self.parts.finder.find(gpu_id, settings.identity, settings.gpu_memory.nvml, patience)

    async def index(self, keys: LockKeys) -> None:
        """Make a lock known before its first acquire, and once a minute. Raises `AuthenticationError`.

        A server that refuses writes for a while must not end an acquisition that would wait for it.
        """
        index = self.parts.index
        if keys.gpu_id in index:
            return
        try:
            await index.add(keys.gpu_id)
        except RedisUnavailableError:
            self.later(f"index of {keys.lock}", lambda: index.add(keys.gpu_id))

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

    async def _close_parts(self) -> None:
        async with self._starting:  # a start under way ends first, then is closed
            parts = self._parts
        if parts is not None:
            await parts.end_waiting()
        for hold in self.holds.all():
            hold.lose("manager_closed")  # a body must not go on unprotected
        await leave_all(self, "leaked")
        if parts is not None:
            await parts.close()
        await self._link.close()

    # what goes into a lock's records besides its life

    def _send_counts(self, keys: LockKeys) -> None:
        """One batch per lock is under way at a time, under one id, so that a lost reply counts nothing twice."""
        if self._parts is None or self._closed:
            return
        batch, counters = secrets.token_hex(16), self.incidents.take_unsent(keys)
        self.later(f"counters {batch}", lambda: self.urgent.count(keys, batch, counters))

    def _send_alert(self, keys: LockKeys, alert: Alert) -> None:
        """Into the lock's history, where a monitor finds it; from any thread, and when Redis is back if it is away."""
        if self._parts is None or self._closed:
            return
        note = secrets.token_hex(16)
        add = partial(self.later, f"alert {note}", lambda: self.urgent.note(keys, note, alert, self.actor))
        if asyncio._get_running_loop() is self._loop:
            add()
        else:  # the guard thread: the loop is blocked, and hears of it afterwards
            with suppress(RuntimeError):  # it is closed
                self.running_loop.call_soon_threadsafe(add)
