"""The heartbeat: one asyncio task renews all leases of a manager, one pipeline per beat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import ClassVar

from aiogpulock import clock
from aiogpulock.errors import AuthenticationError, GpuLockError, RedisUnavailableError
from aiogpulock.lease import Hold
from aiogpulock.models import LOSS_REASONS
from aiogpulock.replies import Beat
from aiogpulock.scripts import Scripts

logger = logging.getLogger(__name__)


def settle(hold: Hold, beat: Beat, sent_at: float) -> bool:
    """Apply the answer to a beat or a re-assertion. Answers whether the lease must be re-asserted."""
    match beat.status:
        case "renewed":
            hold.confirm(sent_at)
        case "missing":
            return True
        case "other":
            hold.lose("not_owner")
        case "done":
            hold.lose(hold.revocation or LOSS_REASONS.get(beat.detail, "forced"))
    return False


class Holds:
    """The held locks of a manager, shared with its guard thread: read by copy, changed on the loop only."""

    def __init__(self) -> None:
        self._holds: dict[str, Hold] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def __contains__(self, holder_id: str) -> bool:
        return holder_id in self._holds

    def get(self, holder_id: str) -> Hold | None:
        return self._holds.get(holder_id)

    def add(self, hold: Hold) -> None:
        self._holds[hold.id] = hold

    def discard(self, hold: Hold) -> None:
        self._holds.pop(hold.id, None)

    def all(self) -> list[Hold]:
        return list(self._holds.values())

    def beating(self) -> list[Hold]:
        """Those that a beat can renew."""
        return [hold for hold in self.all() if hold.state == "held" and hold.terms.heartbeat]


class Heartbeat:
    """Beats for all holds at the smallest interval among them, and ends each lease at its local deadline.

    `cap()` bounds the interval from outside: without an inbox, half the restart grace. `unreachable` is awaited after a
    beat that could not be delivered, `restored` is called after a re-assertion.
    """

    RETRY: ClassVar[float] = 0.2
    """Seconds until a failed beat is tried again, at most; until the local deadline."""

    def __init__(
        self,
        holds: Holds,
        scripts: Scripts,
        cap: Callable[[], float],
        unreachable: Callable[[], Awaitable[None]],
        restored: Callable[[Hold], None],
    ) -> None:
        self._holds = holds
        self._scripts = scripts
        self._cap = cap
        self._unreachable = unreachable
        self._restored = restored
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        self._wanted = False
        self.ticked_at = clock.now()
        """When the loop last ran a beat, by `clock.now`: the guard thread measures a stall from here."""

    def add(self, hold: Hold) -> None:
        """Keep `hold` alive until it is discarded."""
        if not len(self._holds):
            self.ticked_at = clock.now()
        self._holds.add(hold)
        self._arm_deadline(hold.deadline)
        if not hold.terms.heartbeat:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="aiogpulock-heartbeat")
            self._next_at = 0.0
        if clock.now() + min(self._cap(), hold.terms.interval) < self._next_at:
            self._wake.set()

    def beat_now(self) -> None:
        """Something suggests that a lease may be in danger."""
        self._wanted = True
        self._wake.set()

    async def close(self) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _interval(self, holds: list[Hold]) -> float:
        return min(self._cap(), *(hold.terms.interval for hold in holds))

    async def _run(self) -> None:
        while True:
            holds = self._holds.beating()
            # Without leases the task sleeps on at the last pace: waking it for each new one would cost more.
            pause = self._interval(holds) if holds else max(1.0, self._next_at - clock.now())
            if await self._slept(pause):
                continue  # a lease with a shorter interval came
            self.ticked_at = clock.now()
            while not await self._beat():
                await asyncio.sleep(self.RETRY)

    async def _slept(self, pause: float) -> bool:
        """Sleep; answers whether the sleep was cut short to plan anew. `beat_now` ends it to beat."""
        self._next_at = clock.now() + pause
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        wanted, self._wanted = self._wanted, False
        return not wanted

    async def _beat(self) -> bool:
        """One beat for all. Answers False if it must be repeated soon."""
        holds = self._holds.beating()
        self.ticked_at = clock.now()
        for hold in holds:
            if hold.overdue:
                hold.lose("lease_expired")  # before any I/O: a frozen process wakes up here
        holds = [hold for hold in holds if hold.state == "held"]
        if not holds:
            return True
        sent_at = clock.now()
        try:
            beats = await self._scripts.beat([(h.keys, h.id, h.token, h.terms.lease) for h in holds])
        except RedisUnavailableError as error:
            logger.warning("heartbeat not delivered, trying again: %s", error)
            await self._unreachable()
            return False
        except GpuLockError as error:
            logger.error("heartbeat refused; the leases end at their deadlines: %s", error)
            return True
        confirmed = [await self._settle(hold, beat, sent_at) for hold, beat in zip(holds, beats, strict=True)]
        return all(confirmed)

    async def _settle(self, hold: Hold, beat: Beat | Exception, sent_at: float) -> bool:
        if isinstance(beat, Exception):
            logger.warning("heartbeat of %s failed: %s", hold.keys.lock, beat)
            return isinstance(beat, AuthenticationError)  # it will not get better within a lease
        if settle(hold, beat, sent_at):
            return await self._reassert(hold)
        return True

    async def _reassert(self, hold: Hold) -> bool:
        """Redis forgot the lease: restore it, unless somebody was granted the lock since."""
        sent_at = clock.now()
        if hold.state != "held" or hold.overdue:
            return True
        try:
            beat = await self._scripts.reassert(hold.keys, hold.id, hold.token, hold.terms.lease, hold.reassertion())
        except GpuLockError as error:
            logger.warning("re-assertion of %s failed, trying again: %s", hold.keys.lock, error)
            return False
        settle(hold, beat, sent_at)
        if beat.status == "renewed":
            logger.warning("Redis had lost the lease on %s; it is re-asserted", hold.keys.lock)
            self._restored(hold)
        return True

    def _arm_deadline(self, deadline: float) -> None:
        """The local deadline is watched apart from the beats: one of them may hang."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, deadline - clock.now())
        timer = self._deadline_timer
        if timer is not None and not timer.cancelled() and loop.time() <= timer.when() <= when:
            return
        if timer is not None:
            timer.cancel()
        self._deadline_timer = loop.call_at(when, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._deadline_timer = None
        for hold in self._holds.all():
            if hold.overdue:
                hold.lose("lease_expired")
        live = [hold.deadline for hold in self._holds.all() if hold.state == "held"]
        if live:
            self._arm_deadline(min(live))
