"""Which alerts a round of the monitor is worth: what happened, and what is the case."""

from __future__ import annotations

from collections.abc import Iterator

from aiogpulock.config import AlertSettings, MonitorSettings
from aiogpulock.models import Alert, LockSnapshot
from aiogpulock.monitor.plan import Repair, level
from aiogpulock.monitor.round import FailedRepair, Round
from aiogpulock.rates import ExceptionRates
from aiogpulock.zombies import Zombie

HIGH_EMERGENCY_RELEASE_RATE = 0.05
HIGH_TIMEOUT_RATE = 0.1


def cleaned(repair: Repair) -> Alert:
    """This monitor has repaired something. What another one did is in the lock's history, see `elsewhere`."""
    text = f"{repair.key}: {repair.action}, {repair.detail}"
    return Alert("zombie_lock_cleaned", "warning", repair.key, text, repair.value or "", repair.holder or "")


def events(seen: Round, settings: MonitorSettings) -> Iterator[Alert]:
    """What happened: each is told once, and again after `repeat_after` only if it happens again."""
    yield from seen.told
    yield from (_given_up(failure) for failure in seen.failed if failure.given_up and not _is_here(failure.repair))
    for lock in seen.locks:
        yield from _held_long(lock, settings)


def own_events(seen: Round) -> Iterator[Alert]:
    """What happened, and this host alone can know."""
    yield from (_given_up(failure) for failure in seen.failed if failure.given_up and _is_here(failure.repair))


def conditions(seen: Round, monitor: MonitorSettings, alerts: AlertSettings) -> Iterator[Alert]:
    """What is the case now; nothing without a look at Redis."""
    yield from (_zombie(zombie) for zombie in _left(seen) if not _is_here(zombie))
    for lock in seen.locks:
        yield from _silent(lock, monitor.heartbeat.timeout)
        if lock.quarantine:
            yield Alert("gpu_quarantined", "warning", lock.key, f"{lock.key}: {lock.quarantine}")
    for key, text in seen.unreadable.items():
        yield Alert("lock_unreadable", "warning", key, text)
    if seen.rates is not None:
        yield from _rates(seen.rates, alerts.min_samples)


def own_conditions(seen: Round) -> Iterator[Alert]:
    """What this host alone can see is the case."""
    if seen.error:
        yield Alert("redis_disconnected", "critical", "", seen.error)
    yield from (_zombie(zombie) for zombie in _left(seen) if _is_here(zombie))
    if seen.audit_error:
        yield Alert("audit_log_unwritable", "warning", "", seen.audit_error)
    yield from seen.idle


def _is_here(dead: Zombie | Repair) -> bool:
    """Only the host of a process can tell that it has ended."""
    if isinstance(dead, Zombie):
        return dead.kind == "process_gone" or bool(dead.waiters)
    return dead.cause == "process_gone" or bool(dead.gone)


def _given_up(failure: FailedRepair) -> Alert:
    repair = failure.repair
    text = f"{repair.key} cannot be repaired ({repair.detail}), {failure.failures} attempts: {failure.error}"
    return Alert("zombie_cleanup_failed", "critical", repair.key, text, repair.value or "", repair.holder or "")


def _held_long(lock: LockSnapshot, settings: MonitorSettings) -> Iterator[Alert]:
    reached = level(lock, settings)
    if reached is None:
        return
    silent = f", its last beat was {lock.silent_for:.0f} s ago" if lock.silent_for is not None else ""
    waiting = f"; waiting: {lock.waiters}" if lock.waiters else ""
    text = f"{lock.key} has been held by {lock.task_name} for {lock.age:.0f} s{silent}{waiting}"
    yield Alert(f"lock_{reached}", "warning", lock.key, text, lock.holder_id or "", lock.task_name or "")


def _left(seen: Round) -> list[Zombie]:
    repaired = {(repair.key, repair.cause) for repair in seen.repaired}
    return [zombie for zombie in seen.zombies if (zombie.key, zombie.kind) not in repaired]


def _zombie(zombie: Zombie) -> Alert:
    text = f"{zombie.key}: {zombie.detail}"
    if zombie.kind == "dead_waiters":  # whoever holds the lock is another thing, which must not be muted by this one
        return Alert("zombie_locks_detected", "warning", zombie.key, text, zombie.kind)
    whose = zombie.value or zombie.kind
    return Alert("zombie_locks_detected", "critical", zombie.key, text, whose, zombie.holder or "")


def _silent(lock: LockSnapshot, limit: float) -> Iterator[Alert]:
    """A lease longer than the limit hides a dead holder for longer. A holder without a heartbeat is not silent."""
    silent = lock.silent_for
    if silent is not None and silent >= limit and lock.beats:
        text = (
            f"{lock.key}: no beat of {lock.task_name} for {silent:.0f} s; its lease has {lock.deadline_in:.0f} s left"
        )
        yield Alert("holder_silent", "warning", lock.key, text, lock.holder_id or "", lock.task_name or "")


def _rates(rates: ExceptionRates, min_samples: int) -> Iterator[Alert]:
    if rates.window is None:
        return  # all there ever was is not what happens now
    over = f"in the last {rates.window:.0f} s"
    if rates.recent.release_script_errors > 0:
        text = f"{rates.recent.release_script_errors} release scripts failed {over}"
        yield Alert("lua_script_errors", "critical", "", text)
    if rates.recent.ownership_violations > 0:
        text = f"{rates.recent.ownership_violations} releases found another owner {over}"
        yield Alert("ownership_violations", "warning", "", text)
    if rates.samples >= min_samples and rates.emergency_release_rate > HIGH_EMERGENCY_RELEASE_RATE:
        text = f"{rates.emergency_release_rate:.1%} of {rates.samples} locks were released in emergency {over}"
        yield Alert("high_emergency_release_rate", "critical", "", text)
    if rates.attempts >= min_samples and rates.timeout_rate > HIGH_TIMEOUT_RATE:
        text = f"{rates.timeout_rate:.1%} of {rates.attempts} requests timed out {over}"
        yield Alert("high_timeout_rate", "warning", "", text)
