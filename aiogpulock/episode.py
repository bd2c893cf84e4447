"""One process on one GPU: what of its memory is due to its holds.

Looks while it holds nothing tell that apart. What came between two of them with no hold between was loaded without the
lock, and is nobody's leak; what came with a hold between was left by the hold. So a process that takes the lock again
and again is judged across its holds, and an episode outlives managers and event loops.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from msgspec import structs

from aiogpulock import clock
from aiogpulock.foreign import Family
from aiogpulock.gpu.nvml import Asked
from aiogpulock.gpu.records import MemoryReading, NvmlError, ProcessMemory
from aiogpulock.gpu.samples import IDLE_BYTES, Baseline, MemorySample, Terms, nothing_drains, sample_of, with_own
from aiogpulock.gpu.verify import Pauses
from aiogpulock.lease import Hold

SECOND_LOOK = 0.250
"""Seconds after the first, where only the whole device is seen: it finds what was draining then."""
IDLE_STALE = 1.0
"""Seconds within which a process that waits for the lock is taken to load nothing, if all figures come late."""
STALE = 0.050
"""Seconds after which a first look is taken anew: it may show the holder before."""
SAME_PROCESS = "same process: it holds the lock again, and its memory is the new hold's too"


class Driver(Protocol):
    """What of `Nvml` is needed here."""

    def ask(self, uuid: str, *, processes: bool = True, version: int | None = None) -> Asked[MemoryReading]: ...


class Before:
    """A GPU before a hold, or before the first of several with no look between them.

    The driver's thread is asked at once, and nobody waits for it: the look may come after the body has begun.
    """

    def __init__(self, nvml: Driver, uuid: str, family: Family) -> None:
        self.uuid = uuid
        self.family = family
        self.asked_at = clock.now()
        self.wanted_at = float("inf")
        """When the hold was asked for."""
        self.held_at = float("inf")
        """When the body could begin to allocate."""
        self.idle: MemorySample | None = None
        """An earlier look, with no hold since."""
        self.due: int | None = None
        """Bytes of this process at that look, or before holds that nobody has looked after, that no hold has left."""
        self.apart = False
        """The body waited for this look: what earlier holds had left is no affair of this one."""
        self.root: Before | None = None
        """Before the first hold of those that have no verdict: others are compared with that time."""
        self._nvml = nvml
        self._first = self._ask()
        self._after = nvml.ask(uuid, processes=False) if family.pids is not None else None
        """The figure of the device once more: where it has not changed, the list shows nothing of the body."""
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
    def sample(self) -> MemorySample | None:
        """The look; None while it is under way, or if it failed."""
        first = self._first.answer
        return None if first is None else self._sample(first)

    @property
    def own(self) -> int | None:
        """What of this process's bytes no hold has left; None: that is not known by now."""
        own = self._own_by_now(IDLE_BYTES)
        return self.due if own is None else own.due

    def left(self, tolerance: int) -> int | None:
        """Bytes that earlier holds had left, and that were still there before this one; None: not known."""
        own = self._own_by_now(tolerance)
        return None if own is None else own.most - own.due

    def _own_by_now(self, tolerance: int) -> _Own | None:
        first, after = self._first.answer, self._after
        if first is None or (after is not None and after.answer is None and not after.failed):
            return None
        return self._own(first, self._sample(first), tolerance)

    def _ask(self) -> Asked[MemoryReading]:
        return self._nvml.ask(self.uuid, processes=self.family.pids is not None)

    async def seen(self, *, twice: bool, patience: float = 0.0) -> None:
        """Wait for the look; `twice`: where only the whole device is seen, also for the one that finds what drains.

        `patience`: seconds for which a driver that fails is asked again; the body must not have begun.
        """
        with suppress(NvmlError):
            first = await self._answered(clock.now() + patience)
            if twice and self.family.pids is None and first.used > IDLE_BYTES:
                await asyncio.sleep(max(0.0, self.asked_at + SECOND_LOOK - clock.now()))
                self._look_again()
                if self._second is not None:
                    await self._second

    async def _answered(self, until: float) -> MemoryReading:
        pauses = Pauses()
        while True:
            try:
                return await self._first
            except NvmlError as error:
                if error.lasts or clock.now() >= until:
                    raise
            await pauses.next()
            self.asked_at, self._first, self._after = clock.now(), self._ask(), None

    def _look_again(self) -> None:
        first = self._first.answer
        if self._second is None and first is not None:
            self._second = self._nvml.ask(self.uuid, processes=False, version=first.version)

    async def baseline(self, tolerance: int) -> Baseline:
        """What the hold is judged by. Raises `NvmlError`."""
        first = await self._first
        for more in (self._after, self._second):
            if more is not None:
                with suppress(NvmlError):
                    await more
        return self._baseline(first, tolerance)

    def told(self, tolerance: int) -> Baseline | None:
        """The same, as far as it is known by now."""
        first = self._first.answer
        return None if first is None else self._baseline(first, tolerance)

    def is_a_guess(self, tolerance: int) -> bool:
        """The list came too late, and there is no earlier look: what it shows accuses nobody."""
        known = self.told(tolerance)
        return self.due is None and known is not None and bool(known.doubt)

    def _baseline(self, first: MemoryReading, tolerance: int) -> Baseline:
        second = self._second.answer if self._second is not None else None
        later = sample_of(second, None) if second is not None else None
        sample = self._sample(first)
        own = self._own(first, sample, tolerance)
        if own is not None and self.apart:
            own = own._replace(due=own.most)
        root = self.root.told(tolerance) if self.root is not None else None
        if own is None or sample.own is None:
            doubt, surely = "", None
        elif root is not None and root.sample.own is not None:
            return structs.replace(with_own(root, own.due), doubt=own.doubt, surely=own.surely)
        else:
            counted = sample.own if first.used_at > self.held_at else own.most
            sample = structs.replace(sample, own=own.due, used=sample.used - counted + own.due)
            doubt, surely = own.doubt, own.surely
        steady = nothing_drains(sample, later, tolerance)
        return Baseline(sample, first.version, first.total, steady, doubt, surely)

    def _sample(self, first: MemoryReading) -> MemorySample:
        return sample_of(first, self.family.pids, kin=self.family.kin(first))

    def _own(self, first: MemoryReading, sample: MemorySample, tolerance: int) -> _Own | None:
        """What this process had before the hold; None: NVML does not tell."""
        if sample.own is None:
            return None
        late = sample.at > self.held_at  # the list may show what the body took
        most = self._most(first, sample.own, sample.others) if late else sample.own
        due = self.due or 0
        had = due if self.idle is None else self.idle.own or 0
        loaded = self.idle is not None or self.due is None  # without the lock: no hold was between
        risen = max(0, most - had) if loaded else 0
        if not late or self._has_not_changed(first):
            return _Own(min(most, due + risen), most)
        slack = IDLE_BYTES if self.due is None else max(tolerance, IDLE_BYTES)
        if risen <= slack or self._has_only_waited(first):
            return _Own(min(most, due), most - risen)
        came = f"the first look came {(sample.at - self.held_at) * 1000:.1f} ms after the hold began"
        return _Own(due + risen, most, f"{came}: what the body had by then is not known", due)

    def _has_not_changed(self, first: MemoryReading) -> bool:
        after = self._after.answer if self._after is not None else None
        return first.used_at <= self.held_at and after is not None and abs(after.used - first.used) <= IDLE_BYTES

    def _has_only_waited(self, first: MemoryReading) -> bool:
        """Both figures came late, and since it was looked at just before this process has waited for the lock."""
        late, idle = first.used_at > self.held_at, self.idle
        return late and idle is not None and idle.at > self.wanted_at and self.held_at <= idle.at + IDLE_STALE

    def _most(self, first: MemoryReading, own: int, others: tuple[ProcessMemory, ...]) -> int:
        """What this process had before the hold at the most: the device's figure is read before the list."""
        if first.used_at > self.held_at:
            return own
        then = self.idle.others if self.idle is not None else others
        had = {one.pid: one.bytes or 0 for one in then}
        return max(0, min(own, first.used - sum(min(one.bytes or 0, had.get(one.pid, 0)) for one in others)))


class _Own(NamedTuple):
    """Bytes of a process before a hold."""

    due: int
    """What no hold has left."""
    most: int
    """What it had at the most."""
    doubt: str = ""
    """Why some of that may be the body's."""
    surely: int | None = None
    """In doubt: what is known not to be."""


class Pending(Protocol):
    """A verdict to come."""

    @property
    def is_stranded(self) -> bool:
        """Its event loop was closed: it never comes."""

    def give_up(self) -> None:
        """The process holds the GPU again. Called on whatever thread."""


class Standing(NamedTuple):
    """Memory that a hold has left, and that every look since has found."""

    hold: Hold
    since: float
    bytes: int
    before: int
    """Bytes of this process that no hold had left."""


class Episode:
    """The holds of this process on one GPU, and what is known of its memory. Safe from any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holds: set[Hold] = set()
        self._before: Before | None = None
        """Before the last hold that has no verdict."""
        self._expected: Before | None = None
        """A look at a time when this process had no hold."""
        self._wanted_at = float("inf")
        """Since when this process has waited for a hold."""
        self._idle: MemorySample | None = None
        """The last look, if there was no hold since."""
        self._due = 0
        """Bytes of this process at that look that no hold has left, or that were told."""
        self._standing: Standing | None = None
        self._pending: Pending | None = None
        self._crept = self._creeping = 0
        self._least: int | None = None
        """Bytes of this process before a hold, the least since something that crept up was named."""

    def expect(self, look: Callable[[], Before]) -> None:
        """A hold is asked for, and its first look may be over before it begins."""
        with self._mutex:
            self._wanted_at = min(self._wanted_at, clock.now())
            if (self._expected is None or not self._expected.is_fresh) and not self._is_one_stretch():
                self._keep_expected()
                self._expected = look()

    def begin(self, hold: Hold, look: Callable[[], Before]) -> Before:
        """A hold begins. Answers by what it is judged."""
        with self._mutex:
            before = self._before
            if before is None or not before.is_usable or not self._is_one_stretch():
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

    def saw(
        self, pending: Pending, hold: Hold, base: int, sample: MemorySample, terms: Terms
    ) -> tuple[int, Standing | None]:
        """A look after a hold, which is judged by `base` bytes. Answers by how many from now on.

        And what an earlier hold has left that is overdue: it is told once, and then counts as due.
        """
        with self._mutex:
            if self._pending is not pending or sample.own is None:
                return base, None
            if self._idle is None:
                self._forget_what_came_back(terms)
            self._note(sample, base)
            overdue = self._overdue(hold, sample, terms)
            return max(base, self._due), overdue

    def judged(self, sample: MemorySample | None, pending: Pending | None) -> bool:
        """There is a verdict, after that look. Answers whether it still means anything."""
        with self._mutex:
            if self._pending is not pending:
                return False
            self._before = self._pending = self._standing = None
            if sample is not None and sample.own is not None:
                self._idle, self._due = sample, sample.own
            return True

    def judged_apart(self, hold: Hold, before: Before, sample: MemorySample, terms: Terms) -> Standing | None:
        """There is a verdict on a hold by its own first look. Answers what an earlier one has left that is overdue."""
        with self._mutex:
            if self._pending is not None:
                return None
            due, left, own = before.own or 0, before.left(IDLE_BYTES) or 0, sample.own or 0
            self._before, self._idle, self._due = None, sample, min(own, due + max(0, own - due - left))
            overdue = self._overdue(hold, sample, terms) if self._standing is not None else None
            if self._standing is not None and self._standing.hold is hold:
                self._standing = None  # what two earlier ones have left
            return overdue

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
        with self._mutex:
            self._least = before if self._least is None else min(self._least, before)
            grown = min(self._crept + own - before, own - self._least)
            self._crept, self._creeping = max(0, grown), self._creeping + 1
            return self._crept, self._creeping

    def told(self) -> None:
        """What has crept up is named."""
        with self._mutex:
            self._crept = self._creeping = 0
            self._least = None

    # with the mutex

    def _enter(self, hold: Hold) -> Pending | None:
        self._holds.add(hold)
        pending, self._pending, self._expected, self._idle = self._pending, None, None, None
        self._wanted_at = float("inf")
        return pending

    def _note(self, sample: MemorySample, base: int) -> None:
        own = sample.own or 0
        if self._idle is None:
            self._due = min(base, own)
        else:
            self._due = min(self._due + max(0, own - (self._idle.own or 0)), own)
        self._idle = sample

    def _keep_expected(self) -> None:
        """Others come and go; what this process had while it waited stays true, until a later look."""
        sample = self._expected.sample if self._expected is not None else None
        if sample is None or sample.own is None:
            return
        if self._before is None if self._idle is None else sample.at > self._idle.at:
            self._note(sample, sample.own)

    def _forget_what_came_back(self, terms: Terms) -> None:
        """The look before the hold may have found it back."""
        left = self._before.left(terms.tolerance) if self._before is not None else None
        if left is not None and left <= terms.tolerance:
            self._standing = None

    def _overdue(self, hold: Hold, sample: MemorySample, terms: Terms) -> Standing | None:
        left = (sample.own or 0) - self._due
        standing = self._standing
        if left <= terms.allowed(warm=self._due > 0):
            self._standing = None
        elif standing is None:
            self._standing = Standing(hold, sample.at, left, self._due)
        else:
            self._standing = standing = standing._replace(bytes=min(standing.bytes, left))
            if standing.hold is not hold and sample.at >= standing.since + terms.settle_time:
                self._due += standing.bytes
                self._standing = None
                self._overdue(hold, sample, terms)
                return standing
        return None

    def _is_held(self) -> bool:
        """A hold whose event loop was closed has no body any more; the guard thread releases it."""
        self._holds = {hold for hold in self._holds if hold.state != "released" and not hold.loop.is_closed()}
        return bool(self._holds)

    def _goes_on(self) -> bool:
        """This process had the GPU just now, and there is no verdict."""
        return self._is_held() or (self._pending is not None and not self._pending.is_stranded)

    def _is_one_stretch(self) -> bool:
        """A hold that begins now is one with those before: nobody has looked between."""
        return self._is_held() or (self._idle is None and self._goes_on())

    def _look(self, earlier: Before | None, look: Callable[[], Before]) -> Before:
        expected = self._expected
        if expected is not None and expected.is_fresh:
            before = expected
        else:
            self._keep_expected()
            before = look()
        if self._idle is not None:
            before.idle, before.due, before.wanted_at = self._idle, self._due, self._wanted_at
        elif earlier is not None:
            before.due = earlier.own
        if earlier is not None and earlier.is_usable and self._goes_on():
            before.root = earlier.root or earlier
            if before.root.family.pids == before.family.pids:
                before.family = before.root.family  # it knows who has lost its parent since
        return before


_episodes: dict[str, Episode] = {}
os.register_at_fork(after_in_child=_episodes.clear)


def known_episode(uuid: str) -> Episode | None:
    """This process on that device, if it was ever looked at."""
    return _episodes.get(uuid)


def episode_on(uuid: str) -> Episode:
    """This process on that device; a forked child begins anew."""
    return _episodes.setdefault(uuid, Episode())
