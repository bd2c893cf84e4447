"""The monitor: each interval it looks at all locks by their state in Redis, repairs what is dead, and tells."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from types import TracebackType
from typing import Self, TypeVar

from aiogpulock import clock
from aiogpulock.alerts import Alerts
from aiogpulock.audit import AuditLog
from aiogpulock.census import Census
from aiogpulock.config import MonitorSettings, override_monitor
from aiogpulock.errors import ConfigError, GpuLockError, ManagerClosedError, ProtocolError
from aiogpulock.gpu.nvml import shared
from aiogpulock.incidents import AlertHook, log_alert
from aiogpulock.keys import index_key
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import Alert, LockSnapshot
from aiogpulock.monitor.conditions import cleaned, conditions, events, own_conditions, own_events
from aiogpulock.monitor.elsewhere import Elsewhere
from aiogpulock.monitor.idle import IdleWatch
from aiogpulock.monitor.plan import Repair, plan
from aiogpulock.monitor.repairs import Outcome, Repairer, Retries
from aiogpulock.monitor.round import Deeds, FailedRepair, Round
from aiogpulock.monitor.speaker import Speaker, Turn
from aiogpulock.rates import RateWindow, Totals
from aiogpulock.zombies import Zombie, find_zombies

logger = logging.getLogger(__name__)

T = TypeVar("T")

HANGS = 1.0
"""Seconds that no refusal takes."""
SCAN_PAGES, SCAN_SECONDS = 10, 1.0
"""Per round, of `census.PAGE` keys each; the next round goes on from there."""


class GpuLockMonitor:
    """Watches all locks of a server: ``async with GpuLockMonitor(redis_url=…):``, or ``await monitor.run()``.

    It frees what is dead: a holder that has not beaten for its whole lease or whose process has ended on this host,
    leftovers, dead waiters, and a foreign value that never expires once it has stood for ``hard_timeout``. A live
    heartbeat protects a job of any length, unless ``hard_timeout_action`` is ``release``. ``auto_recovery: false``
    only reports. Several monitors may run at once: the scripts let one of them succeed, and of those with the same
    alert URLs one tells people.

    `manager`: whose server to watch; by default one of its own, made with `redis_url` and `config` as `GpuLockManager`
    does. `alerts` gets what people should know, of all processes; by default one with the settings of
    ``gpu_lock_alerts``, whose every notice goes to `alert_log` as well. `on_round` gets each `Round`. Further keywords
    override keys of the ``gpu_lock_monitor`` section.

    Raises `ConfigError`, also for an alert URL that cannot be used, and without Apprise if there are any.
    """

    def __init__(
        self,
        manager: GpuLockManager | None = None,
        *,
        redis_url: str | None = None,
        config: str | os.PathLike[str] | None = None,
        alerts: Alerts | None = None,
        alert_log: AlertHook = log_alert,
        on_round: Callable[[Round], None] | None = None,
        **overrides: object,
    ) -> None:
        if manager is not None and (redis_url is not None or config is not None):
            raise ConfigError("GpuLockMonitor(manager, redis_url=…, config=…): the manager has a server and settings")
        self._owns_manager = manager is None
        self.manager = GpuLockManager(redis_url, config) if manager is None else manager
        self._overrides: Mapping[str, object] = overrides
        self._read = self.manager.settings
        self._settings = override_monitor(self._read, overrides)
        self._owns_alerts = alerts is None
        self._alerts = Alerts(self.manager.settings.gpu_lock_alerts, log=alert_log) if alerts is None else alerts
        self._on_round = on_round
        self._audit = AuditLog(lambda: self._settings.audit_log)
        self._repairer = Repairer(self.manager, self._audit, lambda: self._settings)
        self._retries = Retries()
        self._rates = RateWindow(self.manager.settings.gpu_lock_alerts.window)
        self._speaker = Speaker(self.manager.namespace, self._alerts.audience)
        self._elsewhere = Elsewhere(self._repairer.actor)
        self._idle = IdleWatch(shared())
        self._turn: Turn | None = None
        self._told: Turn | None = None
        """People know what this turn has found, and Redis does not know that they do."""
        self._census: Census | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def settings(self) -> MonitorSettings:
        """As the last round used them."""
        return self._settings

    # running

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._go_round(), name="aiogpulock-monitor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop, and close the manager if it is the monitor's own. Idempotent.

        Raises `ManagerClosedError` if the rounds have ended because the manager was closed before.
        """
        task, self._task = self._task, None
        try:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled() and (failure := task.exception()) is not None:
                    raise failure
        finally:
            await self._resign()
            if self._owns_alerts:
                await self._alerts.close()
            if self._owns_manager:
                await self.manager.close()

    async def _resign(self) -> None:
        if not self.manager.unusable:
            with suppress(ManagerClosedError):  # it was never started
                await self._has_told()
                await self._speaker.resign(self.manager.parts.overview.client)

    async def run(self) -> None:
        """Go round until cancelled, then close. Raises `ManagerClosedError` when its manager is closed."""
        try:
            await self._go_round()
        finally:
            await self.close()

    async def _go_round(self) -> None:
        while True:
            began = clock.now()
            await self.round()
            await asyncio.sleep(max(0.0, self._settings.monitor_interval - (clock.now() - began)))

    async def round(self) -> Round:
        """Look at all locks once and do what is to be done. Raises `ManagerClosedError`, nothing else."""
        self._read_settings()
        began, deeds = clock.now(), Deeds()
        try:
            seen = await self._look(began, deeds)
        except ManagerClosedError:
            raise
        except GpuLockError as error:
            seen = _cut_short(str(error), began, deeds)
        except Exception as error:  # whatever it is: the monitor must be there when it matters
            logger.exception("a round of the monitor failed")
            seen = _cut_short(f"{type(error).__name__}: {error}", began, deeds)
        self._tell(self._alert, seen)
        if not seen.error:
            self._told = self._turn
            await self._has_told()
        if self._on_round is not None:
            self._tell(self._on_round, seen)
        return seen

    async def _has_told(self) -> None:
        if self._told is not None:
            client, interval = self.manager.parts.overview.client, self._settings.monitor_interval
            await self._speaker.has_told(client, self._told, interval)
            self._told = None

    # one round

    def decide(self, lock: LockSnapshot, zombies: Sequence[Zombie]) -> list[Repair]:
        """What is to be done about a lock of which `find_zombies` says this, by the settings of the last round."""
        return plan(lock, zombies, self._settings)

    async def act(self, repair: Repair) -> Outcome:
        """Do it, if what was seen is still so. Raises `RedisUnavailableError`, `AuthenticationError`."""
        return await self._repairer.repair(repair)

    def _read_settings(self) -> None:
        """The file may have changed, to what the keywords do not go with, or to alert URLs that nobody knows."""
        settings = self.manager.settings
        if settings is self._read:
            return
        self._read = settings
        try:
            self._settings = override_monitor(settings, self._overrides)
            if self._owns_alerts and settings.gpu_lock_alerts != self._alerts.settings:
                self._alerts.reconfigure(settings.gpu_lock_alerts)
                self._speaker = Speaker(self.manager.namespace, self._alerts.audience)
        except ConfigError as error:
            logger.error("the monitor's settings stay as they were: %s", error)

    async def _look(self, began: float, deeds: Deeds) -> Round:
        parts = await self.manager.started()
        client, namespace = parts.overview.client, self.manager.namespace
        turn = self._turn = await self._speaker.turn(client, self._settings.monitor_interval)
        if self._census is None:
            self._census = Census(client, namespace)
        keys, complete = await self._census.locks(SCAN_PAGES, SCAN_SECONDS)
        found = await parts.overview.scripts.snapshots(keys)
        locks = [lock for lock in found if isinstance(lock, LockSnapshot)]
        unreadable = {
            at.lock: str(error) for at, error in zip(keys, found, strict=True) if isinstance(error, ProtocolError)
        }
        if self._census.index_error:
            unreadable[index_key(namespace)] = self._census.index_error
        zombies = [find_zombies(lock) for lock in locks]
        repairs = [repair for lock, dead in zip(locks, zombies, strict=True) for repair in self.decide(lock, dead)]
        await self._repair(repairs, deeds, tell=turn.speaks)
        told = await self._elsewhere.alerts(client, namespace, locks, turn)
        return Round(
            at=time.time(),
            speaks=turn.speaks,
            spoken_until=turn.spoken_until,
            locks=tuple(locks),
            unreadable=unreadable,
            zombies=tuple(chain.from_iterable(zombies)),
            repaired=tuple(deeds.repaired),
            failed=tuple(deeds.failed),
            rates=self._rates.rates(began, {lock.key: Totals.of(lock) for lock in locks}),
            told=tuple(told),
            idle=tuple(await self._look_for_idle(locks)),
            audit_error=self._audit.check(),
            complete=complete,
            seconds=clock.now() - began,
        )

    async def _look_for_idle(self, locks: list[LockSnapshot]) -> list[Alert]:
        if self.manager.settings.gpu_lock.gpu_memory.nvml == "off":
            return []
        return await self._idle.alerts(locks, self._settings.timeout_levels.warning)

    async def _repair(self, repairs: list[Repair], deeds: Deeds, *, tell: bool) -> None:
        self._retries.keep_only(repairs)
        cleanup = self._settings.cleanup
        for repair in repairs:
            if not self._retries.is_due(repair, cleanup):
                continue
            tried = clock.now()
            try:
                if await self.act(repair) == "done":
                    deeds.repaired.append(repair)
                    if tell:
                        self._tell(self._alerts, cleaned(repair))  # now: the round may hang, or be cancelled
                        self._elsewhere.has_told(repair)
                self._retries.succeeded(repair)
            except GpuLockError as error:
                failures = self._retries.failed(repair)
                logger.error("%s could not be repaired (%s): %s", repair.key, repair.detail, error)
                deeds.failed.append(FailedRepair(repair, str(error), failures, failures > cleanup.max_retry))
                if clock.now() - tried > HANGS:
                    raise  # a server that hangs would hang for each of them

    def _tell(self, listener: Callable[[T], None], what: T) -> None:
        try:
            listener(what)
        except Exception:
            logger.exception("a listener of the monitor failed")

    def _alert(self, seen: Round) -> None:
        spoken_until = None if seen.speaks else seen.spoken_until
        for alert in events(seen, self._settings):
            self._alerts(alert, spoken_until=spoken_until)
        for alert in own_events(seen):
            self._alerts(alert)
        active = conditions(seen, self._settings, self._alerts.settings)
        own = own_conditions(seen)
        self._alerts.conditions(active, own=own, complete=not seen.error, spoken_until=spoken_until)


def _cut_short(error: str, began: float, deeds: Deeds) -> Round:
    return Round(
        at=time.time(),
        error=error,
        repaired=tuple(deeds.repaired),
        failed=tuple(deeds.failed),
        seconds=clock.now() - began,
    )
