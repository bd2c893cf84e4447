"""What became of the memory of a hold: decided, mostly behind the hand-off, and told.

A process that takes the lock again at once gets one verdict, after its last hold: it is judged by the time before its
first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from aiogpulock.config import GpuMemorySettings
from aiogpulock.errands import Errands
from aiogpulock.errors import GpuLockError
from aiogpulock.gpu.footprint import Before, Footprint, footprint
from aiogpulock.gpu.memory import MemoryReport, Terms
from aiogpulock.gpu.verify import Reader, Verification, nobody, skipped, unverifiable
from aiogpulock.lease import Hold
from aiogpulock.scripts import Scripts

logger = logging.getLogger(__name__)

VERDICT_AFTER = 0.010
"""Seconds after a release until its verdict is begun: a process that takes the lock again by then needs none."""
LAST_WORD = 0.25
"""Seconds that the verdicts under way are given when the manager is closed."""
LOST = "the lease was lost: the memory is somebody else's affair"

_LEVELS = {"not_freed": logging.WARNING, "foreign": logging.WARNING, "unverifiable": logging.INFO}


@dataclass(frozen=True, slots=True)
class Care:
    """One hold's memory."""

    hold: Hold
    settings: GpuMemorySettings
    before: Before
    prints: Footprint

    @property
    def terms(self) -> Terms:
        return Terms(tolerance=self.settings.tolerance_bytes, settle_time=self.settings.settle_time)


class Verdicts:
    """The verdicts of one manager."""

    def __init__(self, nvml: Reader, scripts: Scripts, errands: Errands) -> None:
        self._nvml = nvml
        self._scripts = scripts
        self._errands = errands
        self._owed: dict[str, Care] = {}
        """Holds that are over and not judged yet, by device: at most one each."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def unjudged(self, uuid: str) -> Before | None:
        """Before the hold of this process that is not judged yet."""
        care = self._owed.get(uuid)
        return care.before if care is not None else footprint(uuid).owed

    def skip(self, uuid: str) -> None:
        """The process holds the lock again: no verdict means anything."""
        timer, task, care = self._timers.pop(uuid, None), self._tasks.pop(uuid, None), self._owed.pop(uuid, None)
        if timer is not None:
            timer.cancel()
        if task is not None:
            task.cancel()
        if care is not None:
            care.hold.memory_report = skipped(care.hold.gpu.id, care.prints.SAME_PROCESS)

    async def now(self, care: Care) -> MemoryReport:
        """The verdict while the lock is still held."""
        return await self._verdict(care, nobody, lambda: LOST if care.hold.lost_reason is not None else "")

    def later(self, care: Care) -> None:
        """Begin the verdict soon, behind the hand-off."""
        uuid = care.before.uuid
        self._owed[uuid] = care
        care.prints.owed = care.before if care.before.baseline is not None else None
        loop = asyncio.get_running_loop()
        self._timers[uuid] = loop.call_later(VERDICT_AFTER, self._begin, uuid)

    def _begin(self, uuid: str) -> None:
        del self._timers[uuid]
        self._tasks[uuid] = asyncio.create_task(self._judge(self._owed[uuid]), name="aiogpulock-verdict")

    async def _judge(self, care: Care) -> None:
        uuid = care.before.uuid
        try:
            report = await self._verdict(care, partial(self._granted_since, care.hold), care.prints.again_held)
        except asyncio.CancelledError:
            if self._owed.get(uuid) is care:  # not by `skip`
                del self._owed[uuid]
                care.prints.owed = None
                care.hold.memory_report = skipped(care.hold.gpu.id, "the program ended before a verdict")
            raise
        del self._owed[uuid], self._tasks[uuid]
        self.tell(care.hold, report)

    async def _verdict(
        self, care: Care, granted: Callable[[], Awaitable[bool]], ended: Callable[[], str]
    ) -> MemoryReport:
        before, prints, gpu = care.before, care.prints, care.hold.gpu.id
        await before.looked.wait()
        baseline = before.judged(prints.idle, care.terms.tolerance)
        if baseline is None:
            return unverifiable(gpu, before.trouble)
        verification = Verification(self._nvml, gpu, before.uuid, before.pids, care.terms, granted=granted, ended=ended)
        report = await verification.run(baseline)
        if report.status != "skipped":
            prints.owed, prints.idle = None, verification.last_own
        return report

    async def _granted_since(self, hold: Hold) -> bool:
        """Where Redis does not tell, somebody may have been."""
        try:
            return await self._scripts.granted_since(hold.keys, hold.token)
        except GpuLockError:
            return True

    def tell(self, hold: Hold, report: MemoryReport) -> None:
        """On the lease, in the log, and in the lock's history."""
        hold.memory_report = report
        level = _LEVELS.get(report.status, logging.DEBUG)
        logger.log(level, "memory of %s after %s: %s, %s", hold.keys.lock, hold.task_name, report.status, report.reason)
        if report.status != "skipped":
            note = partial(self._scripts.verdict, hold.keys, hold.id, hold.token, hold.task_name, report)
            self._errands.add(f"verdict on {hold.id}", note)

    async def close(self) -> None:
        """Give the verdicts under way a moment. They may have been cancelled before, as a program ends."""
        for uuid, timer in list(self._timers.items()):
            timer.cancel()
            self._begin(uuid)
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=LAST_WORD)
            for task in late:
                task.cancel()
            await asyncio.wait(tasks)
