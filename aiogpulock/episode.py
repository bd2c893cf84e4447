"""One process on one GPU: from the first look before its holds to the verdict on the last of them.

A process that takes the lock again and again gets one verdict, after its last hold: it is judged by the time before its
first. So an episode outlives managers and event loops, and whatever ends a hold without a verdict.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from msgspec import structs

from aiogpulock import clock
from aiogpulock.foreign import Family
from aiogpulock.gpu.nvml import Asked
from aiogpulock.gpu.records import MemoryReading, NvmlError
from aiogpulock.gpu.samples import IDLE_BYTES, Baseline, MemorySample, nothing_drains, sample_of
from aiogpulock.lease import Hold

SECOND_LOOK = 0.250
"""Seconds after the first, where only the whole device is seen: it finds what was draining then."""
IDLE_STALE = 1.0
"""Seconds after which what this process had without a hold is not taken for what it had before the next: it may have
loaded a model meanwhile."""
STALE = 0.050
"""Seconds after which a first look is taken anew: it may show the holder before."""
SAME_PROCESS = "same process: it holds the lock again, and its memory is the new hold's too"


class Driver(Protocol):
    """What of `Nvml` is needed here."""

    def ask(self, uuid: str, *, processes: bool = True, version: int | None = None) -> Asked[MemoryReading]: ...


class Before:
    """A GPU before a hold, or before the first of several that this process had without a verdict between them.

    The driver's thread is asked at once, and nobody waits for it: the look may come after the body has begun.
    """

    def __init__(self, nvml: Driver, uuid: str, family: Family) -> None:
        self.uuid = uuid
        self.family = family
        self.asked_at = clock.now()
        self.held_at = float("inf")
        """When the body could begin to allocate."""
        self.idle: int | None = None
        """Bytes of this process when it last had no hold, as an earlier look told."""
        self.owed: int | None = None
        """Bytes of this process before an earlier hold that was never judged."""
        self._nvml = nvml
        self._first = nvml.ask(uuid, processes=family.pids is not None)
        self._second: Asked[MemoryReading] | None = None
        if family.pids is None:
            asyncio.get_running_loop().call_later(SECOND_LOOK, self._look_again)

    @property
    def is_usable(self) -> bool:
        """There is a look, or it is under way."""
        return not self._first.failed

    @property
    def is_fresh(self) -> bool:
        """It shows others as they are."""
        return self.is_usable and clock.now() <= self.asked_at + STALE

    @property
    def own(self) -> int | None:
        """Bytes of this process before the hold; None: that is not known by now."""
        first = self._first.answer
        return self.owed if first is None else self._before_the_hold(first, IDLE_BYTES)[0].own

    async def seen(self, *, twice: bool) -> None:
        """Wait for the look; `twice`: where only the whole device is seen, also for the one that finds what drains."""
        with suppress(NvmlError):
            first = await self._first
            if twice and self.family.pids is None and first.used > IDLE_BYTES:
                await asyncio.sleep(max(0.0, self.asked_at + SECOND_LOOK - clock.now()))
                self._look_again()
                if self._second is not None:
                    await self._second

    def _look_again(self) -> None:
        first = self._first.answer
        if self._second is None and first is not None:
            self._second = self._nvml.ask(self.uuid, processes=False, version=first.version)

    async def baseline(self, tolerance: int) -> Baseline:
        """What the hold is judged by. Raises `NvmlError`."""
        first = await self._first
        if self._second is not None:
            with suppress(NvmlError):
                await self._second
        return self._baseline(first, tolerance)

    def told(self, tolerance: int) -> Baseline | None:
        """The same, as far as it is known by now."""
        first = self._first.answer
        return None if first is None else self._baseline(first, tolerance)

    def _baseline(self, first: MemoryReading, tolerance: int) -> Baseline:
        second = self._second.answer if self._second is not None else None
        later = sample_of(second, None) if second is not None else None
        sample, doubt = self._before_the_hold(first, tolerance)
        steady = nothing_drains(sample, later, tolerance)
        return Baseline(sample, first.version, first.total, steady, doubt)

    def _before_the_hold(self, first: MemoryReading, tolerance: int) -> tuple[MemorySample, str]:
        """What was there, and why it may be the body's own already, if nothing else tells what was before it."""
        sample = sample_of(first, self.family.pids, kin=self.family.kin(first))
        late = sample.at > self.held_at and sample.own != 0
        idle = self._idle(first, sample, tolerance) if late else None
        known = [size for size in (self.owed, idle) if size is not None]
        if sample.own is None or not known:
            after = f"{(sample.at - self.held_at) * 1000:.1f} ms after the hold began"
            return sample, f"the first look came {after}: what the body had by then is not known" if late else ""
        own = min(sample.own, *known)
        counted = min(sample.own, idle) if idle is not None and first.used_at <= self.held_at else sample.own
        return structs.replace(sample, own=own, used=sample.used - counted + own), ""

    def _idle(self, first: MemoryReading, sample: MemorySample, tolerance: int) -> int | None:
        """Bytes of this process before the hold, where the list came after it. None: that is not known.

        The device's own figure may be from before it. With no memory to spare there this process had none. If there was
        more than this process had when it was last idle, it may have loaded something since.
        """
        nobodys = sample.unattributed
        if first.used_at > self.held_at or first.version == 1 or sample.own is None or nobodys is None:
            return self.idle
        most = sample.own + nobodys
        if most <= IDLE_BYTES:
            return 0
        return (
            min(self.idle, most) if self.idle is not None and most <= self.idle + max(tolerance, IDLE_BYTES) else None
        )


class Pending(Protocol):
    """A verdict to come."""

    @property
    def is_stranded(self) -> bool:
        """Its event loop was closed: it never comes."""

    def give_up(self) -> None:
        """The process holds the GPU again. Called on whatever thread."""


class Episode:
    """The holds of this process on one GPU, and what is known of its memory. Safe from any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holds: set[Hold] = set()
        self._before: Before | None = None
        """Before the first hold that has no verdict."""
        self._expected: Before | None = None
        """A look at a time when this process had no hold."""
        self._idle: int | None = None
        self._idle_until = 0.0
        self._pending: Pending | None = None
        self._crept = self._creeping = 0
        self._least: int | None = None
        """Bytes of this process before a hold, the least since something that crept up was named."""

    def expect(self, look: Callable[[], Before]) -> None:
        """A hold is asked for, and its first look may be over before it begins."""
        with self._mutex:
            if (self._expected is None or not self._expected.is_fresh) and not self._goes_on():
                self._expected = look()

    def begin(self, hold: Hold, look: Callable[[], Before]) -> Before:
        """A hold begins. Answers by what it is judged."""
        with self._mutex:
            before = self._before
            if before is None or not before.is_usable or not self._goes_on():
                before = self._before = self._look(before, look)
            before.held_at = min(before.held_at, hold.acquired_at)
            pending = self._enter(hold)
        if pending is not None:
            pending.give_up()
        return before

    def begin_unseen(self, hold: Hold) -> None:
        """A hold begins that nobody judges: what it leaves is found after a later one."""
        with self._mutex:
            pending = self._enter(hold)
        if pending is not None:
            pending.give_up()

    def end(self, hold: Hold, pending: Pending | None) -> bool:
        """A hold is over. Answers whether its verdict is due: this process has no other."""
        with self._mutex:
            self._holds.discard(hold)
            if self._is_held():
                return False
            if pending is not None:  # else it may be a hold that was refused before it began
                self._pending = pending
            return True

    def is_awaited(self, pending: Pending) -> bool:
        """Whether that verdict still means anything."""
        return self._pending is pending

    def judged(self, own: int | None, pending: Pending | None) -> bool:
        """There is a verdict; `own`: what the processes have now. Answers whether it still means anything."""
        with self._mutex:
            if self._pending is not pending:
                return False
            self._before = self._pending = None
            if own is not None:
                self._idle, self._idle_until = own, clock.now() + IDLE_STALE
            return True

    def unjudged(self, pending: Pending | None) -> bool:
        """There will be no verdict: the next hold is judged by the time before this one."""
        with self._mutex:
            if self._pending is not pending:
                return False
            self._pending = None
            return True

    def crept(self, before: int, own: int) -> tuple[int, int]:
        """(bytes, holds) that were added to this process a little at a time, without a verdict that named them.

        `before` and after this hold: what is given back between holds was not left, what is loaded there is no leak.
        """
        self._least = before if self._least is None else min(self._least, before)
        grown = min(self._crept + own - before, own - self._least)
        self._crept, self._creeping = max(0, grown), self._creeping + 1
        return self._crept, self._creeping

    def told(self) -> None:
        """What has crept up is named."""
        self._crept = self._creeping = 0
        self._least = None

    # with the mutex

    def _enter(self, hold: Hold) -> Pending | None:
        self._holds.add(hold)
        pending, self._pending, self._expected = self._pending, None, None
        return pending

    def _is_held(self) -> bool:
        """A hold whose event loop was closed has no body any more; the guard thread releases it."""
        self._holds = {hold for hold in self._holds if hold.state != "released" and not hold.loop.is_closed()}
        return bool(self._holds)

    def _goes_on(self) -> bool:
        """This process had the GPU just now: what it had before its first hold counts, and no look is needed."""
        return self._is_held() or (self._pending is not None and not self._pending.is_stranded)

    def _look(self, left_over: Before | None, look: Callable[[], Before]) -> Before:
        expected, idle = self._expected, self._idle if clock.now() <= self._idle_until else None
        if expected is not None and expected.is_fresh:
            before = expected
        else:
            before = look()  # others come and go; what this process had before the grant stays true
            told = expected.own if expected is not None else None
            idle = idle if told is None else told
        before.idle, before.owed = idle, left_over.own if left_over is not None else None
        return before


_episodes: dict[str, Episode] = {}
os.register_at_fork(after_in_child=_episodes.clear)


def known_episode(uuid: str) -> Episode | None:
    """This process on that device, if it was ever looked at."""
    return _episodes.get(uuid)


def episode_on(uuid: str) -> Episode:
    """This process on that device; a forked child begins anew."""
    return _episodes.setdefault(uuid, Episode())
