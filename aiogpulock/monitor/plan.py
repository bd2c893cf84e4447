"""What is to be done about one lock: decided from its snapshot alone, and compared again by the script that does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

from aiogpulock.audit import AuditAction
from aiogpulock.config import MonitorSettings
from aiogpulock.models import LockSnapshot
from aiogpulock.zombies import Zombie, ZombieKind

Cause: TypeAlias = ZombieKind | Literal["hard_timeout", "free_lock"]
"""Beside the zombies: hard_timeout: a live holder that `hard_timeout_action: release` gives no more time · free_lock:
waiters before a lock that nobody holds."""
Level: TypeAlias = Literal["warning", "soft_timeout", "hard_timeout"]


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do about one lock."""

    gpu_id: str
    key: str
    action: AuditAction
    cause: Cause
    value: str | None
    """What must still be there for anything to happen."""
    holder: str | None
    reason: str
    """The release reason that the holder and the history see."""
    detail: str
    gone: tuple[str, ...] = ()
    """Ids of waiters whose program has ended."""
    stands_for: float | None = None
    """end_foreign: only after so many seconds; None: only note since when it stands."""


def plan(lock: LockSnapshot, zombies: Sequence[Zombie], settings: MonitorSettings) -> list[Repair]:
    """The repairs that this lock needs now, its holder first: a repair may give the lock away.

    `zombies`: what `find_zombies` says of it.
    """
    repairs = list(_repairs(lock, zombies, settings))
    if settings.auto_recovery:
        return repairs
    return [msgspec.structs.replace(repair, stands_for=None) for repair in repairs if repair.action == "end_foreign"]


def level(lock: LockSnapshot, settings: MonitorSettings) -> Level | None:
    """How long a lease is held, in words; None: not for long, or by nobody."""
    if lock.phase in (None, "granted") or lock.age is None:
        return None
    limits = settings.timeout_levels
    if lock.age >= limits.hard_timeout:
        return "hard_timeout"
    if lock.age >= limits.soft_timeout:
        return "soft_timeout"
    return "warning" if lock.age >= limits.warning else None


def _repairs(lock: LockSnapshot, zombies: Sequence[Zombie], settings: MonitorSettings) -> Iterator[Repair]:
    for zombie in zombies:
        yield _against(zombie, lock, settings)
    holder_is_dead = any(zombie.kind != "dead_waiters" for zombie in zombies)
    if not holder_is_dead and settings.hard_timeout_action == "release" and level(lock, settings) == "hard_timeout":
        detail = f"held for {lock.age:.0f} s, longer than hard_timeout"
        yield _repair(lock, "force_release", "hard_timeout", "forced_by_monitor", detail)
    if not zombies and lock.waiters and lock.value is None and lock.holder_id is None:
        yield _repair(lock, "sweep", "free_lock", "dead_waiters", "a free lock with waiters")


def _against(zombie: Zombie, lock: LockSnapshot, settings: MonitorSettings) -> Repair:
    match zombie.kind:
        case "no_expiry":
            limit = settings.timeout_levels.hard_timeout
            return _repair(lock, "end_foreign", zombie.kind, "forced_by_monitor", zombie.detail, stands_for=limit)
        case "process_gone":
            return _repair(lock, "reap", zombie.kind, "process_gone", zombie.detail)
        case "leftover" | "heartbeat_stale" if lock.holder_id is not None:
            return _repair(lock, "reap", zombie.kind, "lease_expired", zombie.detail)
        case _:
            return _repair(lock, "sweep", zombie.kind, "dead_waiters", zombie.detail, gone=zombie.waiters)


def _repair(
    lock: LockSnapshot,
    action: AuditAction,
    cause: Cause,
    reason: str,
    detail: str,
    gone: tuple[str, ...] = (),
    stands_for: float | None = None,
) -> Repair:
    return Repair(
        gpu_id=lock.gpu_id,
        key=lock.key,
        action=action,
        cause=cause,
        value=lock.ownership,
        holder=lock.task_name,
        reason=reason,
        detail=detail,
        gone=gone,
        stands_for=stands_for,
    )
