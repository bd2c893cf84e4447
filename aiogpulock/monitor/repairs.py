"""Carrying a repair out. Each script compares what was seen, so of several monitors exactly one succeeds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

from aiogpulock import clock
from aiogpulock.audit import AuditLog
from aiogpulock.config import CleanupSettings, MonitorSettings
from aiogpulock.keys import lock_keys
from aiogpulock.manager import GpuLockManager
from aiogpulock.monitor.plan import Repair
from aiogpulock.scripts import Scripts

logger = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["done", "not_now"]
"""not_now: what was seen is no longer there, or has not stood for long enough."""


MISSED_ROUNDS, SLOW_ROUND = 2, 1.0
"""A foreign value that was not seen for so many intervals, and seconds, may be another one of the same text."""


class Repairer:
    """Repairs locks in the name of one monitor, and writes down what it did."""

    def __init__(self, manager: GpuLockManager, audit: AuditLog, settings: Callable[[], MonitorSettings]) -> None:
        self._manager = manager
        self._audit = audit
        self._settings = settings
        self.actor = f"monitor {manager.actor}"

    async def repair(self, repair: Repair) -> Outcome:
        """Raises `RedisUnavailableError`, `AuthenticationError`, `ProtocolError`."""
        parts = await self._manager.started()
        scripts = parts.overview.scripts
        match repair.action:
            case "sweep":
                details = await self._sweep(scripts, repair)
            case "end_foreign":
                details = await self._end_foreign(scripts, repair)
            case _:
                details = await self._reap(scripts, repair)
        if details is None:
            return "not_now"
        logger.info("%s: %s (%s): %s", repair.key, repair.action, repair.reason, details)
        self._audit.record(
            repair.action,
            repair.key,
            repair.value,
            holder=repair.holder,
            reason=repair.reason,
            actor=self.actor,
            details=details,
        )
        return "done"

    async def _reap(self, scripts: Scripts, repair: Repair) -> str | None:
        keys, terms = lock_keys(repair.gpu_id, self._manager.namespace), self._manager.script_terms()
        outcome = "forced" if repair.action == "force_release" else "reaped"
        ended, more = await scripts.reap(keys, terms, repair.value or "", outcome, repair.reason, self.actor)
        if more:
            await self._manager.resume(keys, terms)
        return repair.detail if ended else None

    async def _end_foreign(self, scripts: Scripts, repair: Repair) -> str | None:
        keys, terms = lock_keys(repair.gpu_id, self._manager.namespace), self._manager.script_terms()
        ended, more = await scripts.end_foreign(
            keys,
            terms,
            repair.value or "",
            repair.stands_for,
            alive=await self._beats(keys.lock),
            next_look=MISSED_ROUNDS * self._settings().monitor_interval + SLOW_ROUND,
            reason=repair.reason,
            actor=self.actor,
        )
        if more:
            await self._manager.resume(keys, terms)
        return f"{repair.detail}, and shows no sign of life" if ended else None

    async def _beats(self, lock: str) -> bool:
        """Older programs keep the epoch seconds of their last beat beside the lock."""
        parts = await self._manager.started()
        beat = await parts.overview.client.execute("GET", f"{lock}:heartbeat")
        try:
            age = time.time() - float(beat or b"nan")
        except ValueError:
            return False
        return abs(age) < self._settings().heartbeat.timeout  # a beat far in the future would protect for ever

    async def _sweep(self, scripts: Scripts, repair: Repair) -> str | None:
        keys, terms = lock_keys(repair.gpu_id, self._manager.namespace), self._manager.script_terms()
        seats, changed, more = 0, False, True
        while more:
            swept = await scripts.sweep(keys, terms, self.actor, repair.gone)
            seats, changed, more = seats + swept.seats, changed or swept.changed, swept.more
        return f"{seats} dead waiters lost their seats" if changed else None


class Retries:
    """Which failed repairs are due again: `max_retry` times, `retry_delay` seconds apart; again after a pause."""

    GIVEN_UP = 600.0
    """Seconds: a server may be well again that refused all writes for some minutes."""

    def __init__(self) -> None:
        self._failed: dict[tuple[str, str, str | None], tuple[int, float]] = {}

    def is_due(self, repair: Repair, settings: CleanupSettings) -> bool:
        failures, failed_at = self._failed.get(_target(repair), (0, 0.0))
        if failures > settings.max_retry and clock.now() - failed_at >= self.GIVEN_UP:
            self.succeeded(repair)
            return True
        return not failures or (failures <= settings.max_retry and clock.now() - failed_at >= settings.retry_delay)

    def failed(self, repair: Repair) -> int:
        """Answers how many times it has failed by now."""
        failures, _ = self._failed.get(_target(repair), (0, 0.0))
        self._failed[_target(repair)] = failures + 1, clock.now()
        return failures + 1

    def succeeded(self, repair: Repair) -> None:
        """Its failures are forgotten."""
        self._failed.pop(_target(repair), None)

    def keep_only(self, repairs: list[Repair]) -> None:
        """What needs no repair any more has no failures either."""
        wanted = {_target(repair) for repair in repairs}
        self._failed = {target: failure for target, failure in self._failed.items() if target in wanted}


def _target(repair: Repair) -> tuple[str, str, str | None]:
    return repair.key, repair.cause, repair.value
