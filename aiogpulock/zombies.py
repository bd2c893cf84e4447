"""What is dead in a lock: judged from its state in Redis and by the kernel of this host, never by a lock's age."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from aiogpulock.liveness import certainly_dead
from aiogpulock.models import LockSnapshot, WaiterSnapshot

ZombieKind: TypeAlias = Literal["no_expiry", "heartbeat_stale", "process_gone", "leftover", "dead_waiters"]
"""no_expiry: a foreign value that never expires · heartbeat_stale: no beat for a whole lease · process_gone: every
process of the holder has ended on this host · leftover: records without a lock · dead_waiters: seats of programs that
are gone."""


class Zombie(msgspec.Struct, frozen=True, kw_only=True):
    """Something dead that keeps a lock, or a place in its queue."""

    key: str
    value: str | None
    ttl: float
    """Seconds until the key expires; as Redis tells it: -1 never, -2 there is no key."""
    kind: ZombieKind
    holder: str | None
    """Task name of the holder."""
    detail: str
    waiters: tuple[str, ...] = ()
    """dead_waiters: the ids of those whose program has ended on this host."""


def find_zombies(lock: LockSnapshot) -> list[Zombie]:
    """What is dead in this lock: at most its holder, and the seats of its queue."""
    gone = gone_waiters(lock)
    found = (_dead_holder(lock), _dead_queue(lock, len(gone)))
    return [
        Zombie(
            key=lock.key,
            value=lock.value,
            ttl=_ttl(lock),
            kind=kind,
            holder=lock.task_name,
            detail=detail,
            waiters=gone if kind == "dead_waiters" else (),
        )
        for kind, detail in filter(None, found)
    ]


def gone_waiters(lock: LockSnapshot) -> tuple[str, ...]:
    """The ids of those whose program has ended on this host.

    The kernel is asked once per process: many waiters may be of one.
    """
    processes = {waiter.process for waiter in lock.queue if waiter.process}
    dead = {process for process in processes if certainly_dead(process)}
    return tuple(waiter.waiter_id for waiter in lock.queue if waiter.process in dead)


def in_line(lock: LockSnapshot) -> list[WaiterSnapshot]:
    """Those who will be granted the lock, in their order: not those who would not hear of it, nor whoever has it."""
    gone = gone_waiters(lock)
    return [
        waiter
        for waiter in lock.queue
        if not waiter.deaf and waiter.waiter_id not in gone and waiter.waiter_id != lock.holder_id
    ]


def waits(lock: LockSnapshot) -> int:
    """How many will be granted the lock; those whom the snapshot does not list are taken for alive."""
    return lock.waiters - lock.dead_waiters - len(lock.queue) + len(in_line(lock))


def _dead_holder(lock: LockSnapshot) -> tuple[ZombieKind, str] | None:
    if lock.foreign:
        if lock.expires_in is not None:
            return None  # its expiry ends it
        known = f", seen for {lock.foreign_for:.0f} s" if lock.foreign_for is not None else ""
        return "no_expiry", f"a value of another program that never expires{known}"
    if lock.holder_id is None:
        return ("leftover", "records of waiters without a queue") if lock.stray_waiters else None
    if lock.process is not None and certainly_dead(lock.process):
        return "process_gone", f"process {lock.pid} on {lock.host} has ended"
    if lock.deadline_in is not None and lock.deadline_in > 0:
        return None  # a live lease, whatever its age
    if lock.value is None:
        return "leftover", "a holder's record without its lock"
    if lock.deadline_in is None:
        return "heartbeat_stale", "the holder's record has no deadline"
    return "heartbeat_stale", f"no beat in time: the lease ended {-lock.deadline_in:.1f} s ago"


def _dead_queue(lock: LockSnapshot, gone: int) -> tuple[ZombieKind, str] | None:
    dead = lock.dead_waiters + gone
    return ("dead_waiters", f"{dead} of {lock.waiters} waiters are gone") if dead else None


def _ttl(lock: LockSnapshot) -> float:
    if lock.value is None:
        return -2
    return -1 if lock.expires_in is None else lock.expires_in
