"""Looks after a GPU's memory around each hold: what it was before, and whether it came back.

Under ``report`` nothing waits for that: the first look is begun before the lock is asked for, and the verdict comes
after the hand-off. A process that takes the lock again at once gets one verdict, after its last hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from aiogpulock import clock
from aiogpulock.config import GpuMemorySettings
from aiogpulock.errands import Errands
from aiogpulock.errors import GpuLockError
from aiogpulock.gpu.footprint import Before, Footprint, footprint
from aiogpulock.gpu.memory import MemoryReport, Terms
from aiogpulock.gpu.records import Gpu
from aiogpulock.gpu.verify import Reader, Verification, own_pids, skipped, unverifiable
from aiogpulock.lease import Hold
from aiogpulock.scripts import Scripts

logger = logging.getLogger(__name__)

VERDICT_AFTER = 0.010
"""Seconds after a release until its verdict is begun: a process that takes the lock again by then needs none."""
STALE = 0.050
"""Seconds after which a first look is taken anew: it may show the holder before."""
LAST_WORD = 0.25
"""Seconds that the verdicts under way are given when the manager is closed."""

SAME_PROCESS = "same process: it holds the lock again, and its memory is the new hold's too"
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


class Caretaker:
    """The memory of all holds of one manager."""

    def __init__(self, nvml: Reader, scripts: Scripts, errands: Errands) -> None:
        self._nvml = nvml
        self._scripts = scripts
        self._errands = errands
        self._cares: dict[str, Care] = {}
        self._owed: dict[str, Care] = {}
        """Holds that are over and not judged yet, by device: at most one each."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """Verdicts under way, by device."""
        self._looks: set[asyncio.Task[None]] = set()

    # a hold begins

    def expect(self, gpu: Gpu, settings: GpuMemorySettings) -> Before | None:
        """A hold is asked for: begin the first look. None: there is nothing to look at, or no need to."""
        if gpu.uuid is None or settings.policy == "off" or gpu.remote or self._unjudged(gpu.uuid):
            return None
        return self._look(gpu.uuid, settings)

    def begin(self, hold: Hold, settings: GpuMemorySettings, before: Before | None) -> None:
        """The hold begins now; `before` is what `expect` answered."""
        gpu = hold.gpu
        if settings.policy == "off":
            return
        if gpu.uuid is None or gpu.remote:
            reason = "remote: the GPU of another host" if gpu.remote else "no NVML here, or the id names no device"
            hold.memory_report = unverifiable(gpu.id, reason)
            return
        prints = footprint(gpu.uuid)
        prints.holding += 1
        owed = self._unjudged(gpu.uuid)
        self._skip(gpu.uuid)
        if owed is not None and not owed.trouble:
            before = owed
        elif before is None or clock.now() > before.asked_at + STALE:
            before = self._look(gpu.uuid, settings)
        before.held_at = min(before.held_at, hold.acquired_at)
        self._cares[hold.id] = Care(hold, settings, before, prints)

    def _unjudged(self, uuid: str) -> Before | None:
        """The first look of the hold before, if that is not judged yet."""
        care = self._owed.get(uuid)
        return care.before if care is not None else footprint(uuid).owed

    def _look(self, uuid: str, settings: GpuMemorySettings) -> Before:
        before = Before(uuid, own_pids())
        task = asyncio.create_task(before.look(self._nvml, settings.tolerance_bytes), name="aiogpulock-first-look")
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)
        return before

    # a hold ends

    def end(self, hold: Hold, *, in_order: bool) -> None:
        """The hold is over. `in_order`: by its release, and not by a loss."""
        care = self._cares.pop(hold.id, None)
        if care is None:
            return
        care.prints.holding -= 1
        if not in_order:
            hold.memory_report = skipped(hold.gpu.id, "the lease was lost: the memory is somebody else's affair")
            return
        uuid = care.before.uuid
        self._owed[uuid] = care
        care.prints.owed = care.before if care.before.baseline is not None else None
        loop = asyncio.get_running_loop()
        self._timers[uuid] = loop.call_later(VERDICT_AFTER, self._begin_verdict, uuid)

    def _skip(self, uuid: str) -> None:
        """The process holds the lock again."""
        timer, task, care = self._timers.pop(uuid, None), self._tasks.pop(uuid, None), self._owed.pop(uuid, None)
        if timer is not None:
            timer.cancel()
        if task is not None:
            task.cancel()
        if care is not None:
            care.hold.memory_report = skipped(care.hold.gpu.id, SAME_PROCESS)

    def _begin_verdict(self, uuid: str) -> None:
        self._timers.pop(uuid, None)
        task = asyncio.create_task(self._judge(self._owed[uuid]), name="aiogpulock-verdict")
        self._tasks[uuid] = task

    async def _judge(self, care: Care) -> None:
        """The verdict under ``report``."""
        uuid = care.before.uuid
        try:
            report = await self._verdict(care, lambda: SAME_PROCESS if care.prints.holding else "")
        except asyncio.CancelledError:
            if self._owed.get(uuid) is care:  # not by `_skip`
                del self._owed[uuid]
                care.hold.memory_report = skipped(care.hold.gpu.id, "the program ended before a verdict")
            raise
        del self._owed[uuid], self._tasks[uuid]
        self._tell(care.hold, report)

    async def _verdict(self, care: Care, ended: Callable[[], str]) -> MemoryReport:
        hold, prints = care.hold, care.prints
        while care.before.baseline is None and not care.before.trouble:
            await asyncio.sleep(VERDICT_AFTER)
        baseline = care.before.judged(prints.idle, care.terms.tolerance)
        if baseline is None:
            return unverifiable(hold.gpu.id, care.before.trouble)
        verification = Verification(
            self._nvml,
            hold.gpu.id,
            care.before.uuid,
            care.before.pids,
            care.terms,
            granted=partial(self._granted_since, hold),
            ended=ended,
        )
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

    # what is told

    def _tell(self, hold: Hold, report: MemoryReport) -> None:
        hold.memory_report = report
        logger.log(
            _LEVELS.get(report.status, logging.DEBUG),
            "memory of %s after %s: %s, %s",
            hold.keys.lock,
            hold.task_name,
            report.status,
            report.reason,
        )
        if report.status != "skipped":
            note = partial(self._scripts.verdict, hold.keys, hold.id, hold.token, hold.task_name, report)
            self._errands.add(f"verdict on {hold.id}", note)

    # the end

    async def close(self) -> None:
        """Give the verdicts under way a moment. They may have been cancelled before, as a program ends."""
        for uuid, timer in list(self._timers.items()):
            timer.cancel()
            self._begin_verdict(uuid)
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=LAST_WORD)
        left = [*self._tasks.values(), *self._looks]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
