"""Looks after a GPU's memory around each hold: what it was before, and whether it came back.

Under ``report`` nothing waits for that: the first look is taken beside the acquisition or the body, the verdict after
the hand-off. Under the strict policies the body waits for the first look, and the release for the verdict.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from aiogpulock import clock
from aiogpulock.config import GpuMemorySettings
from aiogpulock.errors import GpuLockError, MemoryNotFreedError
from aiogpulock.foreign import family, named
from aiogpulock.gpu.footprint import Before, Footprint, footprint, known_footprint
from aiogpulock.gpu.memory import MemoryReport
from aiogpulock.gpu.obstacles import Demands, obstacles
from aiogpulock.gpu.quarantine import quarantine_for
from aiogpulock.gpu.reclaim import reclaim
from aiogpulock.gpu.records import Gpu, NvmlError
from aiogpulock.gpu.verify import Reader, own_pids, skipped, unverifiable
from aiogpulock.incidents import Incidents
from aiogpulock.lease import Hold
from aiogpulock.scripts import Scripts
from aiogpulock.verdicts import LOST, Care, Verdicts

logger = logging.getLogger(__name__)

STALE = 0.050
"""Seconds after which a first look is taken anew: it may show the holder before."""
STRICT = ("hold", "raise", "quarantine")


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


def _visible(gpu: Gpu, settings: GpuMemorySettings) -> str | None:
    """The UUID of a device that NVML may be asked about."""
    return None if gpu.remote or settings.nvml == "off" else gpu.uuid


class Caretaker:
    """The memory of all holds of one manager. `companions`: pids that work under its leases beside this process."""

    def __init__(
        self, nvml: Reader, urgent: Scripts, verdicts: Verdicts, incidents: Incidents, companions: Sequence[int] = ()
    ) -> None:
        self.nvml = nvml
        self._urgent = urgent
        self._incidents = incidents
        self._companions = companions
        self._verdicts = verdicts
        self._cares: dict[str, Care] = {}
        self._unseen: dict[str, Footprint] = {}
        """Holds under ``off`` of a process that has others under another policy."""
        self._looks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        """Looks for others to come, by hold."""
        self._known: set[tuple[int, float | None]] = set()
        """Foreign processes that were warned of."""

    def pids(self) -> frozenset[int] | None:
        """Those of the holder, as NVML numbers them; None: its numbers are not ours."""
        return own_pids(self._companions)

    # a hold begins

    def expect(self, gpu: Gpu, settings: GpuMemorySettings) -> Before | None:
        """A hold is asked for: begin the first look, if it may be over before the hold begins. Else None.

        The memory of the whole device is read in some us, the process list takes some ms.
        """
        uuid = _visible(gpu, settings)
        if settings.policy != "report" or uuid is None or self.pids() is not None:
            return None
        return self._look(uuid, settings) if self._verdicts.unjudged(uuid) is None else None

    def begin(self, hold: Hold, settings: GpuMemorySettings, before: Before | None) -> None:
        """The hold begins now; `before` is what `expect` answered."""
        hold.memory = settings
        uuid = _visible(hold.gpu, settings)
        if uuid is not None and settings.policy != "off":
            self._care_for(hold, uuid, settings, before)
        elif settings.policy != "off":
            reason = "remote: the GPU of another host" if hold.gpu.remote else "no NVML here, or the id names no device"
            hold.memory_report = unverifiable(hold.gpu.id, reason)
        elif uuid is not None and (prints := known_footprint(uuid)) is not None:
            self._verdicts.skip(uuid)  # nobody looks at this hold, and it must not be taken for the one before
            prints.enter()
            self._unseen[hold.id] = prints

    def _care_for(self, hold: Hold, uuid: str, settings: GpuMemorySettings, before: Before | None) -> None:
        prints = footprint(uuid)
        prints.enter()
        owed = self._verdicts.unjudged(uuid)
        self._verdicts.skip(uuid)
        if owed is not None and (owed.baseline is not None or not owed.looked.is_set()):
            before = owed
        elif before is None or clock.now() > before.asked_at + STALE:
            before = self._look(uuid, settings)
        before.held_at = min(before.held_at, hold.acquired_at)
        self._cares[hold.id] = care = Care(hold, settings, before, prints)
        if settings.on_busy == "warn":
            when = max(settings.settle_time, STALE)
            self._timers[hold.id] = asyncio.get_running_loop().call_later(when, self._look_at_others, care)

    async def begin_with_a_look(self, hold: Hold, settings: GpuMemorySettings) -> None:
        """The same for a hold whose body waits for the first look: what it allocates is known to be its own."""
        self.begin(hold, settings, None)
        care = self._cares.get(hold.id)
        if care is None:
            return
        await care.before.looked.wait()
        if care.before.asked_at >= hold.acquired_at:
            care.before.held_at = clock.now()

    def _look(self, uuid: str, settings: GpuMemorySettings) -> Before:
        before = Before(uuid, self.pids())
        self._start(before.look(self.nvml, settings.tolerance_bytes), "aiogpulock-first-look")
        return before

    def _start(self, look: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(look, name=name)
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    # others

    def _look_at_others(self, care: Care) -> None:
        del self._timers[care.hold.id]
        self._start(self._look_for_others(care), "aiogpulock-others")

    async def _look_for_others(self, care: Care) -> None:
        """Warn of foreign processes, once of each. Not at once: the holder before may still be giving memory back."""
        with suppress(NvmlError):
            reading = await self.nvml.read(care.before.uuid)
            demands = Demands(tolerance=care.terms.tolerance, pids=family(self.pids(), reading), idle=True)
            found = [one for obstacle in obstacles(reading, demands) for one in named(obstacle.foreign)]
            new = [one for one in found if (one.pid, one.started) not in self._known]
            self._known.update((one.pid, one.started) for one in new)
            if new:
                holder, text = care.hold.task_name, ", ".join(map(str, new))
                logger.warning("%s is held by %s, and others use the GPU: %s", care.hold.keys.lock, holder, text)

    # a hold ends

    async def before_release(self, hold: Hold) -> None:
        """Caches are given back; under a strict policy the memory is waited for, while the heartbeat goes on."""
        if hold.memory is not None and hold.memory.cleanup:
            await self._reclaim(hold, hold.memory.cleanup)
        care = self._cares.get(hold.id)
        if care is None or care.settings.policy not in STRICT or hold.state != "held":
            return
        await self._tell_draining(hold)
        hold.memory_report = report = await self._verdicts.now(care)
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
            beat = await self._urgent.drain(hold.keys, hold.id, hold.token, hold.terms.lease)
        except GpuLockError as error:
            logger.debug("could not tell that %s is draining: %s", hold.keys.lock, error)
            return
        if beat.status == "renewed":
            hold.confirm(sent_at)

    def _quarantine(self, care: Care, report: MemoryReport) -> None:
        hold, before = care.hold, care.before
        if before.baseline is not None:
            hold.quarantine = quarantine_for(
                report, before.baseline, care.terms, hold.task_name, before.uuid, before.pids
            )

    def end(self, hold: Hold, *, in_order: bool) -> None:
        """The hold is over. `in_order`: by its release, and not by a loss."""
        care, unseen = self._cares.pop(hold.id, None), self._unseen.pop(hold.id, None)
        if unseen is not None:
            unseen.leave()
        if care is None:
            return
        care.prints.leave()
        timer = self._timers.pop(hold.id, None)
        if timer is not None:
            timer.cancel()
        if not in_order:
            care.prints.owed = None
            hold.memory_report = skipped(hold.gpu.id, LOST)
        elif hold.memory_report is not None:
            self._verdicts.tell(hold, hold.memory_report)
        else:
            self._verdicts.later(care)

    async def close(self) -> None:
        """Give the verdicts under way a moment, and end everything."""
        await self._verdicts.close()
        looks = list(self._looks)
        for look in looks:
            look.cancel()
        if looks:
            await asyncio.wait(looks)
