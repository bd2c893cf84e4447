"""One acquisition: from the first call to the claim, or out of the queue again."""

from __future__ import annotations

import asyncio
import logging
import secrets
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from aiogpulock import clock
from aiogpulock.errors import (
    GpuLockError,
    LeaseLostError,
    LockTimeoutError,
    NestedLockError,
    QueueFullError,
    RedisUnavailableError,
)
from aiogpulock.keys import LockKeys
from aiogpulock.lease import Hold, HoldTerms
from aiogpulock.leaving import finish
from aiogpulock.models import LOSS_REASONS, Request
from aiogpulock.owners import AROUND
from aiogpulock.replies import AcquireReply, Finished, Held, Refused, Stale, Waiting, parse_process
from aiogpulock.scripts import LeaseTerms, Terms
from aiogpulock.waiting import Pace, Waiter

if TYPE_CHECKING:
    from aiogpulock.config import LockSettings
    from aiogpulock.gpu.records import Gpu
    from aiogpulock.manager import GpuLockManager

logger = logging.getLogger(__name__)

RETRY_FIRST, RETRY_MOST = 0.05, 1.0
"""Seconds between calls while Redis is away."""


class Wish(NamedTuple):
    """What is to be acquired, and how."""

    keys: LockKeys
    gpu: Gpu
    settings: LockSettings
    task_name: str
    priority: int
    owner: object
    """The task or thread that asks; it cannot wait for itself."""


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


@lru_cache(maxsize=64)
def hold_terms(settings: LockSettings) -> HoldTerms:
    """What a lease goes by under these settings."""
    heartbeat = settings.heartbeat
    return HoldTerms(
        script=Terms(_ms(settings.claim_window), round(settings.restart_grace * 1000)),
        lease=LeaseTerms(_ms(settings.lease), _ms(settings.lock_timeout)),
        local_lease=settings.lease - settings.margin,
        heartbeat=heartbeat.enabled,
        interval=heartbeat.interval,
        max_stall=heartbeat.max_stall if heartbeat.enabled else 0.0,
    )


@lru_cache(maxsize=64)
def pace_of(settings: LockSettings) -> Pace:
    """How often a waiter looks without being told."""
    return Pace(
        settings.fallback_timeout, settings.poll_interval, settings.max_poll_interval, settings.exponential_backoff
    )


class Acquisition:
    """Asks until Redis says "held". Whatever ends it before leaves nothing behind.

    `begun`: when its wait began, by `clock.now`.
    """

    def __init__(self, manager: GpuLockManager, wish: Wish, begun: float) -> None:
        self._manager = manager
        self._wish = wish
        self._settings = wish.settings
        self._terms = hold_terms(wish.settings)
        self._begun, self._started = begun, clock.now()
        settings = wish.settings
        self._waiter = Waiter(secrets.token_hex(16), pace_of(settings), wish.priority, settings.claim_window)
        self._known = False
        """Redis has answered once: from then on it may be away for as long as the wait lasts."""
        self._in_doubt = False
        """A call was not answered: it may still be executed."""
        self._sent_at = 0.0
        self._pause = RETRY_FIRST

    async def run(self) -> Hold:
        """The hold, or `LockTimeoutError`, `QueueFullError`, `RedisUnavailableError`, …"""
        self._enter()
        task = asyncio.current_task()
        if task is not None:
            self._manager.owners.acquiring.add(task)
        try:
            async with asyncio.timeout(self._patience()):
                return await self._until_held()
        except (QueueFullError, LockTimeoutError):
            # Redis refused it: there is no seat, unless an earlier call made one.
            if self._in_doubt:
                await finish(lambda: self._withdraw("cancelled"))
            raise
        except TimeoutError:
            await finish(lambda: self._withdraw("timeout"))
            raise self._timeout_error() from None
        except BaseException:
            await finish(lambda: self._withdraw("cancelled"))
            raise
        finally:
            self._manager.owners.acquiring.discard(task)
            self._exit()

    def _patience(self) -> float | None:
        """Seconds; None is for ever: who does not wait at all is refused by Redis."""
        longest = self._settings.max_wait_time
        return max(0.001, self._begun + longest - clock.now()) if longest else None

    def _enter(self) -> None:
        wish = self._wish
        if not self._manager.owners.enter(wish.keys, wish.owner):
            raise NestedLockError(
                f"this task already holds {wish.keys.lock}, or waits for it: it would wait for itself. "
                "Release it first, or pass the lease down"
            )
        self._room = self._manager.room(wish.keys, event_driven=self._settings.use_event_driven)
        self._room.add(self._waiter)

    def _exit(self) -> None:
        self._room.discard(self._waiter)
        if self._waiter.id not in self._manager.holds:
            self._manager.owners.leave(self._wish.keys, self._wish.owner)

    async def _until_held(self) -> Hold:
        while True:
            reply = await self._ask()
            match reply:
                case Held() if clock.now() < self._sent_at + self._terms.local_lease:
                    return self._hold(reply)
                case Held():
                    continue  # this process was stopped for a lease: the claim is repeated, or tells how it ended
                case Refused():
                    raise self._refusal(reply)
                case Finished(outcome):
                    raise self._ended(outcome)
                case Stale():
                    continue  # a forged or old message; ask what is there
                case Waiting():
                    if await self._seated(reply):
                        continue
                case None:
                    pass
            await self._woken()

    async def _woken(self) -> None:
        await self._waiter.woken()
        if self._waiter.hint:
            # It is granted, and the device's memory is read before Redis has said so: in the loop's next turn, when the
            # claim has been sent.
            expect = self._manager.caretaker.expect
            asyncio.get_running_loop().call_soon(expect, self._wish.gpu, self._settings.gpu_memory)

    async def _ask(self) -> AcquireReply | None:
        """One call of acquire.lua; None if Redis is away and the waiter is to be woken to try again."""
        self._manager.check_usable()
        self._sent_at = clock.now()
        try:
            reply = await self._manager.scripts.acquire(
                self._wish.keys, self._terms.script, self._request(), self._waiter.take_hint(), self._waiter.arrival_us
            )
        except RedisUnavailableError:
            self._in_doubt = True
            await self._manager.unreachable()
            if not self._known and clock.now() - self._started + self._pause > self._manager.connect_timeout:
                raise
            self._waiter.wake_in(self._pause)
            self._pause = min(2 * self._pause, RETRY_MOST)
            return None
        self._known, self._pause = True, RETRY_FIRST
        return reply

    def _request(self) -> Request:
        room, wish, settings = self._room, self._wish, self._settings
        return Request(
            id=self._waiter.id,
            inbox=self._manager.inbox_name(event_driven=settings.use_event_driven),
            mode=room.mode(),
            next_check=_ms(room.next_check_in()),
            expires=_ms(room.expires_in()),
            lease=self._terms.lease.lease_ms,
            ttl=self._terms.lease.ttl_ms,
            priority=wish.priority,
            max_waiters=-1 if settings.max_waiters is None else settings.max_waiters,
            may_wait=settings.max_wait_time != 0,
            task=wish.task_name,
            process=self._manager.process,
        )

    async def _seated(self, reply: Waiting) -> bool:
        """Note the seat. Answers whether to ask again at once."""
        manager, keys = self._manager, self._wish.keys
        dead = self._room.seated(self._waiter, reply)
        if reply.holder_process == manager.process:
            self._found(reply)
        if not reply.inbox_has_receiver:
            manager.inbox.reconnect()
        if reply.foreign:
            await manager.inbox.follow_releases(keys.release_channel, keys.lock)
        else:
            await manager.inbox.unfollow_releases(keys.release_channel)
        if dead:
            await self._reap(reply)
            return True
        if reply.holder_id in AROUND and reply.holder_phase == "held":
            raise self._nested(reply.value)
        return reply.more

    def _found(self, reply: Waiting) -> None:
        """The holder is of this process. One that nobody here knows came back with old data, and would stay."""
        manager, holder_id = self._manager, reply.holder_id
        if holder_id in manager.holds or self._room.found(holder_id):
            return
        inbox = manager.inbox_name(event_driven=self._settings.use_event_driven)
        manager.withdraw_later(self._wish.keys, self._terms.script, holder_id, "cancelled", inbox)

    async def _reap(self, reply: Waiting) -> None:
        """The holder's process is gone: end its hold. If Redis went with it, the next call sees to that."""
        manager, keys, script_terms = self._manager, self._wish.keys, self._terms.script
        try:
            _, more = await manager.scripts.reap(
                keys, script_terms, reply.value, "reaped", "process_gone", manager.actor
            )
            if more:
                await manager.resume(keys, script_terms)
        except RedisUnavailableError as error:
            logger.warning("could not reap the dead holder of %s now: %s", keys.lock, error)

    def _hold(self, reply: Held) -> Hold:
        manager, waiter = self._manager, self._waiter
        identity = (
            manager.inbox_name(event_driven=self._settings.use_event_driven),
            self._wish.task_name,
            manager.process,
            waiter.arrival_us,
        )
        hold = Hold(
            self._wish.keys,
            self._wish.gpu,
            waiter.id,
            reply,
            terms=self._terms,
            identity=identity,
            owner=self._wish.owner,
            sent_at=self._sent_at,
        )
        manager.keep(hold)
        return hold

    async def _withdraw(self, reason: str) -> None:
        """Leave the queue for good. If Redis is away, the seat expires, and a delayed acquire is never claimed."""
        keys, terms = self._wish.keys, self._terms.script
        try:
            await self._manager.withdraw(keys, terms, self._waiter.id, reason)
        except GpuLockError as error:
            self._manager.withdraw_later(keys, terms, self._waiter.id, reason)
            logger.warning("could not leave the queue of %s now: %s", keys.lock, error)
            if not self._known:
                self._manager.incidents.keep("attempts", keys)
            if reason == "timeout":
                self._manager.incidents.keep("timeouts", keys)

    def _refusal(self, reply: Refused) -> GpuLockError:
        lock = self._wish.keys.lock
        if reply.value.rpartition(":")[2] in AROUND:
            return self._nested(reply.value)
        if reply.kind == "full":
            return QueueFullError(
                f"the queue of {lock} is full: {reply.waiters} wait, max_waiters is {self._settings.max_waiters}"
            )
        holder = f"held by {task_of(reply.value)}" if reply.value else "not to be granted just after a restart of Redis"
        return LockTimeoutError(
            f"GPU_LOCK_TIMEOUT: {lock} is {holder}, {reply.waiters} wait; max_wait_time=0 does not queue"
        )

    def _nested(self, value: str) -> NestedLockError:
        return NestedLockError(
            f"{self._wish.keys.lock} is held by {task_of(value)}, which started this program: it would wait for "
            "itself. Leave one of the two locks out"
        )

    def _ended(self, outcome: str) -> LeaseLostError:
        """Somebody ended this request: an operator, or its deadline while the reply to its claim was lost."""
        ended = outcome.replace("_", " ")
        return LeaseLostError(
            f"the request for {self._wish.keys.lock} was {ended} before its body began: acquire again",
            reason=LOSS_REASONS.get(outcome, "lease_expired"),
            fencing_token=0,
        )

    def _timeout_error(self) -> LockTimeoutError:
        waited = clock.now() - self._begun
        reply = self._waiter.reply
        if reply is None:
            where = "Redis did not answer"
        else:
            where = f"position {reply.position} of {reply.waiters}, held by {_describe(reply)}"
        return LockTimeoutError(
            f"GPU_LOCK_TIMEOUT: {self._wish.keys.lock} not acquired within {waited:.1f} s "
            f"(max_wait_time {self._settings.max_wait_time:g} s): {where}"
        )


def _describe(reply: Waiting) -> str:
    """The holder, as a person would name it."""
    if reply.foreign:
        return f"{reply.value!r} (set by another program)"
    if not reply.value:
        return "nobody"
    process = parse_process(reply.holder_process)
    name = task_of(reply.value)
    draining = ", which waits for the GPU's memory to come back" if reply.holder_phase == "draining" else ""
    return f"{name} on {process.host} pid {process.pid}{draining}" if process else name


def task_of(value: str) -> str:
    """The task in a lock's value, quoted; the value itself if an older program set it."""
    return repr(value.removeprefix("locked_by_").rpartition(":")[0] or value)
