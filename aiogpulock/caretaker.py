"""Looks after a GPU's memory around each hold: what it was before, and whether it came back.

Under ``report`` nothing waits for that: the first look is begun before the lock is asked for, and the verdict comes
after the hand-off. A process that takes the lock again at once gets one verdict, after its last hold. Under the strict
policies the body waits for the first look, and the release for the verdict.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiogpulock import clock
from aiogpulock.config import GpuMemorySettings
from aiogpulock.errands import Errands
from aiogpulock.errors import GpuLockError, MemoryNotFreedError
from aiogpulock.foreign import named
from aiogpulock.gpu.footprint import Before, Footprint, footprint
from aiogpulock.gpu.memory import MemoryReport, Terms
from aiogpulock.gpu.obstacles import Demands, obstacles
from aiogpulock.gpu.quarantine import quarantine_for
from aiogpulock.gpu.reclaim import reclaim
from aiogpulock.gpu.records import Gpu, NvmlError
from aiogpulock.gpu.verify import Reader, Verification, nobody, own_pids, skipped, unverifiable
from aiogpulock.incidents import Incidents
from aiogpulock.lease import Hold
from aiogpulock.scripts import Scripts

logger = logging.getLogger(__name__)

VERDICT_AFTER = 0.010
"""Seconds after a release until its verdict is begun: a process that takes the lock again by then needs none."""
STALE = 0.050
"""Seconds after which a first look is taken anew: it may show the holder before."""
LAST_WORD = 0.25
"""Seconds that the verdicts under way are given when the manager is closed."""

STRICT = ("hold", "raise", "quarantine")
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


def complaint(hold: Hold) -> MemoryNotFreedError | None:
    """What the release raises under ``raise``."""
    report = hold.memory_report
    if hold.memory is None or hold.memory.policy != "raise" or report is None or report.status != "not_freed":
        return None
    return MemoryNotFreedError(
        f"{hold.keys.lock} was released, and the GPU's memory has not come back: {report.reason}. Free it in the body, "
        "or by a `cleanup`; a longer gpu_memory.settle_time waits longer",
        report,
    )


class Caretaker:
    """The memory of all holds of one manager."""

    def __init__(self, nvml: Reader, scripts: Scripts, errands: Errands, incidents: Incidents) -> None:
        self.nvml = nvml
        self._scripts = scripts
        self._errands = errands
        self._incidents = incidents
        self._cares: dict[str, Care] = {}
        self._owed: dict[str, Care] = {}
        """Holds that are over and not judged yet, by device: at most one each."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        """Verdicts to come, by device; looks for others, by hold."""
        self._known: set[tuple[int, float | None]] = set()
        """Foreign processes that were warned of."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """Verdicts under way, by device."""
        self._looks: set[asyncio.Task[None]] = set()
        self._judging: set[str] = set()
        """Ids of holds whose release waits for the verdict."""

    # a hold begins

    def expect(self, gpu: Gpu, settings: GpuMemorySettings) -> Before | None:
        """A hold is asked for: begin the first look. None: there is nothing to look at, or no need to."""
        if settings.policy != "report" or gpu.uuid is None or gpu.remote or self._unjudged(gpu.uuid):
            return None
        return self._look(gpu.uuid, settings)

    def begin(self, hold: Hold, settings: GpuMemorySettings, before: Before | None) -> None:
        """The hold begins now; `before` is what `expect` answered."""
        gpu, hold.memory = hold.gpu, settings
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
        if owed is not None and (owed.baseline is not None or not owed.looked.is_set()):
            before = owed
        elif before is None or clock.now() > before.asked_at + STALE:
            before = self._look(gpu.uuid, settings)
        before.held_at = min(before.held_at, hold.acquired_at)
        self._cares[hold.id] = care = Care(hold, settings, before, prints)
        if settings.on_busy == "warn":
            when = max(settings.settle_time, STALE)
            self._timers[hold.id] = asyncio.get_running_loop().call_later(when, self._look_at_others, care)

    def _look_at_others(self, care: Care) -> None:
        del self._timers[care.hold.id]
        self._start(self._look_for_others(care), "aiogpulock-others")

    async def begin_with_a_look(self, hold: Hold, settings: GpuMemorySettings) -> None:
        """The same for a hold whose body waits for the first look: what it allocates is known to be its own."""
        self.begin(hold, settings, None)
        care = self._cares.get(hold.id)
        if care is None:
            return
        await care.before.looked.wait()
        if care.before.asked_at >= hold.acquired_at:
            care.before.held_at = clock.now()

    async def _look_for_others(self, care: Care) -> None:
        """Warn of foreign processes, once of each. Not at once: the holder before may still be giving memory back."""
        with suppress(NvmlError):
            reading = await self.nvml.read(care.before.uuid)
            demands = Demands(tolerance=care.terms.tolerance, pids=care.before.pids, idle=True)
            found = [one for obstacle in obstacles(reading, demands) for one in named(obstacle.foreign)]
            new = [one for one in found if (one.pid, one.started) not in self._known]
            self._known.update((one.pid, one.started) for one in new)
            if new:
                holder, text = care.hold.task_name, ", ".join(map(str, new))
                logger.warning("%s is held by %s, and others use the GPU: %s", care.hold.keys.lock, holder, text)

    def _unjudged(self, uuid: str) -> Before | None:
        """The first look of the hold before, if that is not judged yet."""
        care = self._owed.get(uuid)
        return care.before if care is not None else footprint(uuid).owed

    def _look(self, uuid: str, settings: GpuMemorySettings) -> Before:
        before = Before(uuid, own_pids())
        self._start(before.look(self.nvml, settings.tolerance_bytes), "aiogpulock-first-look")
        return before

    def _start(self, look: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(look, name=name)
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    # a hold ends

    async def before_release(self, hold: Hold) -> None:
        """Caches are given back; under a strict policy the memory is waited for, while the heartbeat goes on."""
        if hold.memory is not None and hold.memory.cleanup:
            await self._reclaim(hold, hold.memory.cleanup)
        care = self._cares.get(hold.id)
        if care is None or care.settings.policy not in STRICT or hold.state != "held" or hold.id in self._judging:
            return
        self._judging.add(hold.id)
        try:
            await self._tell_draining(hold)
            hold.memory_report = report = await self._strict_verdict(care)
        finally:
            self._judging.discard(hold.id)
        if report.status == "not_freed" and care.settings.policy == "quarantine":
            self._quarantine(care, report)

    async def _reclaim(self, hold: Hold, names: Sequence[str]) -> None:
        for done in await reclaim(names):
            if done.outcome in ("failed", "late"):
                self._incidents.keep("cleanup_failures", hold.keys)

    async def _tell_draining(self, hold: Hold) -> None:
        """A lost answer harms nobody: others then see a holder as before."""
        sent_at = clock.now()
        try:
            beat = await self._scripts.drain(hold.keys, hold.id, hold.token, hold.terms.lease)
        except GpuLockError as error:
            logger.debug("could not tell that %s is draining: %s", hold.keys.lock, error)
            return
        if beat.status == "renewed":
            hold.confirm(sent_at)

    async def _strict_verdict(self, care: Care) -> MemoryReport:
        return await self._verdict(care, nobody, lambda: LOST if care.hold.lost_reason is not None else "")

    def _quarantine(self, care: Care, report: MemoryReport) -> None:
        hold, before = care.hold, care.before
        if before.baseline is not None:
            hold.quarantine = quarantine_for(
                report, before.baseline, care.terms, hold.task_name, before.uuid, before.pids
            )
        self._incidents.alert("gpu_quarantined", "critical", hold.keys, f"{hold.keys.lock}: {report.reason}")

    def end(self, hold: Hold, *, in_order: bool) -> None:
        """The hold is over. `in_order`: by its release, and not by a loss."""
        care = self._cares.pop(hold.id, None)
        if care is None:
            return
        care.prints.holding -= 1
        timer = self._timers.pop(hold.id, None)
        if timer is not None:
            timer.cancel()
        if not in_order:
            care.prints.owed = None
            hold.memory_report = skipped(hold.gpu.id, LOST)
        elif hold.memory_report is not None:
            self._tell(hold, hold.memory_report)
        else:
            self._judge_later(care)

    def _judge_later(self, care: Care) -> None:
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
            care.hold.memory_report = skipped(care.hold.gpu.id, care.prints.SAME_PROCESS)

    def _begin_verdict(self, uuid: str) -> None:
        self._timers.pop(uuid, None)
        task = asyncio.create_task(self._judge(self._owed[uuid]), name="aiogpulock-verdict")
        self._tasks[uuid] = task

    async def _judge(self, care: Care) -> None:
        """The verdict under ``report``."""
        uuid = care.before.uuid
        try:
            report = await self._verdict(care, partial(self._granted_since, care.hold), care.prints.again_held)
        except asyncio.CancelledError:
            if self._owed.get(uuid) is care:  # not by `_skip`
                del self._owed[uuid]
                care.prints.owed = None
                care.hold.memory_report = skipped(care.hold.gpu.id, "the program ended before a verdict")
            raise
        del self._owed[uuid], self._tasks[uuid]
        self._tell(care.hold, report)

    async def _verdict(
        self, care: Care, granted: Callable[[], Awaitable[bool]], ended: Callable[[], str]
    ) -> MemoryReport:
        hold, prints = care.hold, care.prints
        await care.before.looked.wait()
        baseline = care.before.judged(prints.idle, care.terms.tolerance)
        if baseline is None:
            return unverifiable(hold.gpu.id, care.before.trouble)
        verification = Verification(
            self.nvml,
            hold.gpu.id,
            care.before.uuid,
            care.before.pids,
            care.terms,
            granted=granted,
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
        for key, timer in list(self._timers.items()):
            timer.cancel()
            if key in self._owed:
                self._begin_verdict(key)
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=LAST_WORD)
        left = [*self._tasks.values(), *self._looks]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
