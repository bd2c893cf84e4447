"""Waiting for one lock in one process: who is woken, when, and by what.

No task waits here. A room wakes its waiters by messages, by a process's death, at the holder's deadline, and, whatever
gets lost, by one timer per process and lock, not per waiter.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

from aiogpulock.liveness import ProcessWatch
from aiogpulock.models import ProcessInfo
from aiogpulock.replies import Waiting, parse_process
from aiogpulock.wakeups import Grant, Watch

_parse_process = lru_cache(maxsize=256)(parse_process)

PRIORITY_STEP_US = 60_000_000


class Pace(NamedTuple):
    """How often to look without being told. Seconds."""

    fallback: float
    poll: float
    max_poll: float
    exponential: bool

    def polling(self, checks: int, first_in_line: bool) -> float:
        """Seconds until the next poll after `checks` polls. The first in line is next: it does not slow down."""
        if first_in_line or not self.exponential:
            return min(self.poll, self.max_poll)
        return min(self.poll * 2.0 ** min(checks, 32), self.max_poll)


class Waiter:
    """One acquisition that waits, woken by `wake`."""

    def __init__(self, waiter_id: str, pace: Pace, priority: int, claim_window: float) -> None:
        self.id = waiter_id
        self.pace = pace
        self.claim_window = claim_window
        self.hint = 0
        """Token of a grant that a message told of."""
        self.arrival_us = 0
        self.reply: Waiting | None = None
        self._priority = priority
        self._woken = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def place(self) -> int:
        """The order within the queue, as the scripts have it."""
        return self.arrival_us - self._priority * PRIORITY_STEP_US

    def wake(self) -> None:
        self._woken.set()

    def wake_in(self, seconds: float) -> None:
        """Wake at that time if nothing does before."""
        self.cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.wake)

    def cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def woken(self) -> None:
        await self._woken.wait()
        self._woken.clear()
        self.cancel_timer()

    def take_hint(self) -> int:
        hint, self.hint = self.hint, 0
        return hint


class WaitingRoom:
    """The waiters of one process for one lock that share an inbox record."""

    WATCHERS: ClassVar[int] = 3
    """How many in line re-check at the holder's deadline; and the first of each process, however many dead ones stand
    before it: their seats stay until they expire."""
    JITTER: ClassVar[float] = 0.1
    """Checks of many processes drift apart by up to this part of their interval."""
    AFTER_DEADLINE: ClassVar[float] = 0.002
    """Seconds after a deadline at which Redis has seen it pass: it counts in whole ms."""

    def __init__(self, events: Callable[[], bool], watch: ProcessWatch, on_empty: Callable[[], object]) -> None:
        self._events = events
        self._watch = watch
        self._on_empty = on_empty
        self._waiters: dict[str, Waiter] = {}
        self._places: list[tuple[int, str]] = []
        """A heap of (place, id); those who have left are dropped when they come up."""
        self._paces: Counter[Pace] = Counter()
        self._checks = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, waiter_id: str) -> bool:
        return waiter_id in self._waiters

    def add(self, waiter: Waiter) -> None:
        self._waiters[waiter.id] = waiter
        self._paces[waiter.pace] += 1
        if self._timer is not None and self._paces[waiter.pace] == 1:
            self._schedule()  # this one may want to look sooner than the others

    def discard(self, waiter: Waiter) -> None:
        if self._waiters.pop(waiter.id, None) is None:
            return
        waiter.cancel_timer()
        self._paces[waiter.pace] -= 1
        if not self._paces[waiter.pace]:
            del self._paces[waiter.pace]
        if not self._waiters:
            self.close()
            self._on_empty()
        elif (first := self._first()) is not None and first.reply is not None and first.reply.foreign:
            first.wake()  # those who polled for an older program's end may have left: it may have no timer

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._checks = 0
        self._places.clear()
        self._watch.discard(self._on_death)

    # what is told to Redis

    def mode(self) -> Literal["push", "poll"]:
        """push while messages can arrive, else poll."""
        return "push" if self._events() else "poll"

    def next_check_in(self) -> float:
        """Seconds until this process looks again without being told."""
        if self._timer is None:
            return self._interval() * (1 + self.JITTER)
        return max(0.0, self._timer.when() - asyncio.get_running_loop().time())

    def expires_in(self) -> float:
        """Seconds without any call after which this process's seats may be removed."""
        return max([30.0, *(3 * max(pace.fallback, pace.max_poll) for pace in self._paces)])

    # what comes from Redis

    def seated(self, waiter: Waiter, reply: Waiting) -> bool:
        """Note an answer; plan when to look next. Answers whether the holder is certainly dead."""
        if self._timer is None:
            self._schedule()
        forgotten = reply.enqueued and waiter.arrival_us != 0
        if waiter.arrival_us != reply.arrival_us:
            waiter.arrival_us = reply.arrival_us
            heapq.heappush(self._places, (waiter.place, waiter.id))
        waiter.reply = reply
        if forgotten:
            self._wake_others(waiter)  # Redis lost one seat, so it may have lost others
        if reply.position > self.WATCHERS and waiter is not self._first():
            return False
        if reply.foreign:  # those ahead may be dead: then nobody else looks
            poll = waiter.pace.poll * min(reply.position, self.WATCHERS + 1)
            recheck = poll if reply.recheck_in is None else min(reply.recheck_in, poll)
            waiter.wake_in(recheck + self.AFTER_DEADLINE)
        elif reply.recheck_in is not None:
            # Whoever has been granted the lock keeps its seat until the claim: it stands ahead, and may be frozen.
            ahead = max(0, reply.position - 1 - (reply.holder_phase == "granted"))
            late = min(ahead, self.WATCHERS) * waiter.claim_window
            waiter.wake_in(reply.recheck_in + late + self.AFTER_DEADLINE)
        process = _parse_process(reply.holder_process)
        return process is not None and self._watch.watch(process, self._on_death)

    def granted(self, message: Grant) -> bool:
        """Wake the waiter that a message names. Answers whether it waits here."""
        waiter = self._waiters.get(message.id)
        if waiter is None:
            return False
        waiter.hint = message.token
        waiter.wake()
        return True

    def found(self, holder_id: str) -> bool:
        """A check of one waiter showed who holds a grant. If it waits here, its message was lost: wake it."""
        waiter = self._waiters.get(holder_id)
        if waiter is not None:
            waiter.wake()
        return waiter is not None

    def next_in_line(self, message: Watch) -> None:
        """The first waiter of this process is the next one: it watches the holder."""
        waiter = self._first()
        if waiter is None:
            return
        waiter.wake_in(message.deadline_in / 1000 + self.AFTER_DEADLINE)
        process: ProcessInfo | None = message.process
        if process is not None and self._watch.watch(process, self._on_death):
            waiter.wake()

    def health_changed(self) -> None:
        """Messages can arrive again, so some may have been lost: look at once. Or they cannot: begin to poll."""
        if not self._waiters:
            return
        self._checks = 0
        self._schedule()
        if self._events():
            self._wake_some()

    def wake_first(self) -> None:
        waiter = self._first()
        if waiter is not None:
            waiter.wake()

    def wake_all(self) -> None:
        for waiter in self._waiters.values():
            waiter.wake()

    # timers

    def _first(self) -> Waiter | None:
        while self._places:
            place, waiter_id = self._places[0]
            waiter = self._waiters.get(waiter_id)
            if waiter is not None and waiter.place == place:
                return waiter
            heapq.heappop(self._places)
        return None

    def _interval(self) -> float:
        if self._events():
            return min(pace.fallback for pace in self._paces)
        first = self._first()
        first_in_line = first is not None and first.reply is not None and first.reply.position == 1
        return min(pace.polling(self._checks, first_in_line) for pace in self._paces)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = self._interval() * random.uniform(1 - self.JITTER, 1 + self.JITTER)  # noqa: S311 - jitter
        self._timer = asyncio.get_running_loop().call_later(delay, self._check)

    def _check(self) -> None:
        self._checks += 1
        self._schedule()
        self._wake_some()

    def _wake_some(self) -> None:
        """The first in line, and another in turn: so a single lost seat is found as well."""
        self.wake_first()
        if self._waiters:
            turn = next(iter(self._waiters))
            self._waiters[turn] = self._waiters.pop(turn)
            self._waiters[turn].wake()

    def _wake_others(self, waiter: Waiter) -> None:
        for other in self._waiters.values():
            if other is not waiter and other.arrival_us:
                other.wake()

    def _on_death(self) -> None:
        self.wake_first()
