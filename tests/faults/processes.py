"""Faults of processes: killed, frozen, blocked, forked."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

from aiogpulock import clock
from tests.faults.arena import Arena, Stuck
from tests.faults.fault import CLAIM_WINDOW, LEASE, LONG_LEASE, SLACK, Fault
from tests.faults.zygote import ForkedWorker


class KillHolder(Fault):
    name, what = "kill-holder", "SIGKILL of the holder, waiters on the same host"

    settings: ClassVar[dict[str, Any]] = LONG_LEASE

    def cycle(self, arena: Arena) -> float:
        victim, _ = arena.capture()
        if arena.random.random() < 0.5:
            arena.await_waiters(2)  # else some of them may just be on their way
        arena.pause(0.02)
        killed_at = victim.kill()
        entered = arena.next(killed_at, bound=self.bound, not_by=victim)
        arena.bury(victim)
        arena.fill()
        return float(entered["at"] - killed_at)


class KillHolderElsewhere(KillHolder):
    name, what = "kill-holder-elsewhere", "SIGKILL of the holder, waiters on other hosts"
    bound: ClassVar[float] = LEASE + SLACK
    settings: ClassVar[dict[str, Any]] = {}

    def begin(self, arena: Arena) -> None:
        arena.boots = (f"host {number}" for number in itertools.count())


class KillWaiter(Fault):
    name, what = "kill-waiter", "SIGKILL of a waiter, first in line or not"
    bound: ClassVar[float] = CLAIM_WINDOW + SLACK
    settings: ClassVar[dict[str, Any]] = LONG_LEASE

    def cycle(self, arena: Arena) -> float:
        holder, entry = arena.capture()
        victim = arena.workers[arena.random.choice(arena.await_waiters(2))]
        arena.pause(0.02)
        victim.kill()
        arena.pause(0.005)
        recovered = self.hand_over(arena, holder, entry)
        arena.bury(victim)
        arena.fill()
        return recovered


class KillHolderAndWaiter(Fault):
    """Only the first few in line look at a crash that nobody announces: the dead must not count among them."""

    name, what = (
        "kill-holder-and-waiter",
        "SIGKILL of the holder and of the first three in line, whose seats stay behind",
    )
    settings: ClassVar[dict[str, Any]] = LONG_LEASE
    dead: ClassVar[int] = 3
    workers = 1 + dead + 2

    def cycle(self, arena: Arena) -> float:
        holder, _ = arena.capture()
        waiters = [arena.workers[pid] for pid in arena.await_waiters(self.workers - 1)[: self.dead]]
        arena.pause(0.02)
        for waiter in waiters:
            waiter.kill()
        killed_at = holder.kill()
        entered = arena.next(killed_at, bound=self.bound)
        for gone in (*waiters, holder):
            arena.bury(gone)
        arena.fill()
        return float(entered["at"] - killed_at)


class KillGrantee(Fault):
    name, what = "kill-grantee", "SIGKILL of the first in line as it is granted"
    bound: ClassVar[float] = CLAIM_WINDOW + SLACK
    settings: ClassVar[dict[str, Any]] = LONG_LEASE

    def cycle(self, arena: Arena) -> float:
        holder, entry = arena.capture()
        victim = arena.workers[arena.await_waiters(2)[0]]
        holder.tell("stop_looping")  # it does not come back and look: the third must have been told to
        freed_at = arena.judge.free(entry["holder"])
        arena.pause(0.002)
        killed_at = victim.kill()
        entered = arena.next(freed_at, bound=self.bound, not_by=victim)
        arena.bury(victim)
        arena.retire(holder)
        arena.fill()
        return max(0.0, float(entered["at"] - killed_at))


class StopHolder(Fault):
    name, what = "stop-holder", "SIGSTOP of the holder past its lease, then SIGCONT"
    bound: ClassVar[float] = LEASE + SLACK
    must_bite = "stale"

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture()
        arena.pause(0.1)
        stopped_at = clock.now()
        victim.stop()
        entered = arena.next(stopped_at, bound=self.bound, not_by=victim)
        arena.pause(0.02)
        victim.cont()
        victim.tell("write", name="blind", holder=entry["holder"], token=entry["token"])
        if victim.find("lost", timeout=SLACK, token=entry["token"]) is None:
            arena.violated(f"no loss: token {entry['token']} of pid {victim.pid} woke up past its lease")
            arena.judge.free(entry["holder"])
        return float(entered["at"] - stopped_at)


class StopLoneHolder(Fault):
    name, what = "stop-lone-holder", "SIGSTOP past the lease while nobody waits: it must not be taken up again"
    bound: ClassVar[float] = LEASE + SLACK
    workers = 1

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture()
        arena.pause(0.1)
        victim.stop()
        arena.pause(LEASE + 0.1, least=LEASE)
        continued_at = clock.now()
        victim.cont()
        if victim.find("lost", timeout=SLACK, token=entry["token"]) is None:
            arena.violated(f"no loss: token {entry['token']} of pid {victim.pid} woke up past its lease")
            arena.judge.free(entry["holder"])
        return float(arena.next(continued_at, bound=self.bound)["at"] - continued_at)


class Overstay(Fault):
    """The holder cannot notice the end of its lease. Its stale writes are rejected, and it is told when it can be."""

    must_bite = "stale"
    seconds: ClassVar[float] = LEASE + 0.7

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture()
        arena.await_waiters(1)
        arena.pause(0.1)
        stuck_at = clock.now()
        self.stick(victim)
        entered = arena.next(stuck_at, bound=self.bound, not_by=victim)
        victim.tell("write", name="blind", holder=entry["holder"], token=entry["token"])
        if victim.find("lost", timeout=SLACK + self.seconds, token=entry["token"]) is None:
            arena.violated(f"no loss: token {entry['token']} of pid {victim.pid} was stuck past its lease")
            arena.judge.free(entry["holder"])
        return float(entered["at"] - stuck_at)

    def stick(self, victim: ForkedWorker) -> None:
        raise NotImplementedError


class KeepGil(Overstay):
    name, what = (
        "keep-gil",
        "a native call keeps the GIL past the lease: declared out of the promise, and shown to overlap",
    )
    bound: ClassVar[float] = LEASE + SLACK

    def stick(self, victim: ForkedWorker) -> None:
        victim.tell("keep_gil", seconds=self.seconds)


class BlockedTooLong(Overstay):
    name, what = "blocked-too-long", "the loop blocked beyond max_stall: the guard gives up, and the next one is let in"
    max_stall: ClassVar[float] = 0.6
    seconds: ClassVar[float] = max_stall + LEASE + 0.7
    bound: ClassVar[float] = max_stall + LEASE + SLACK
    settings: ClassVar[dict[str, Any]] = {"heartbeat": {"interval": 0.25, "timeout": LEASE, "max_stall": max_stall}}

    def stick(self, victim: ForkedWorker) -> None:
        victim.tell("block", seconds=self.seconds)


class StopWaiter(Fault):
    name, what = "stop-waiter", "SIGSTOP of the first in line; it costs one claim window, and keeps its place"
    bound: ClassVar[float] = CLAIM_WINDOW + SLACK
    settings: ClassVar[dict[str, Any]] = LONG_LEASE

    def cycle(self, arena: Arena) -> float:
        holder, entry = arena.capture()
        victim = arena.workers[arena.await_waiters(2)[0]]
        victim.stop()
        try:
            recovered = self.hand_over(arena, holder, entry)
            arena.pause(0.05)
        finally:
            victim.cont()
        own = arena.judge.capture(victim.pid, timeout=self.bound)
        if not own:
            raise Stuck(f"waiter {victim.pid} was never served after SIGCONT")
        arena.judge.free(own["holder"])
        return recovered


class BlockedLoop(Fault):
    name, what = "blocked-loop", "the holder's event loop blocked past its lease: the guard thread beats"
    lease: ClassVar[float] = 2.4  # a guard that must wait for its turn is in time
    seconds: ClassVar[float] = lease + 0.5
    settings: ClassVar[dict[str, Any]] = {"heartbeat": {"interval": 0.25, "timeout": lease}}

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture()
        blocked_at = clock.now()
        victim.tell("block", seconds=self.seconds)
        during = arena.judge.next(blocked_at, victim.pid, timeout=self.seconds - 0.1)
        if during:
            arena.violated(f"overlap: {during['token']} entered while {entry['token']} ran a blocking call")
        victim.said_since("unblocked", blocked_at)
        recovered = self.hand_over(arena, victim, entry)
        self.check_kept(arena, victim, entry)
        return recovered


class Fork(Fault):
    name, what = "fork", "the holder forks: the child is refused its manager, the parent goes on"
    settings: ClassVar[dict[str, Any]] = LONG_LEASE

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture()
        arena.pause(0.01)
        forked_at = clock.now()
        victim.tell("fork")
        child = victim.said_since("forked", forked_at)["child"]
        if victim.find("child refused", pid=child) is None:
            arena.violated(f"the forked child {child} could use its parent's manager")
        arena.pause(0.05)
        recovered = self.hand_over(arena, victim, entry)
        self.check_kept(arena, victim, entry)
        return recovered


class Repeated(Fault):
    name, what = "repeated-calls", "every script call sent twice, and old ones again"
    settings: ClassVar[dict[str, Any]] = LONG_LEASE
    config: ClassVar[dict[str, Any]] = {**Fault.config, "repeating": True}

    def cycle(self, arena: Arena) -> float:
        victim, entry = arena.capture()
        arena.pause(0.3)
        recovered = self.hand_over(arena, victim, entry)
        self.check_kept(arena, victim, entry)
        arena.pause(0.05)
        return recovered
