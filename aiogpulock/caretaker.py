"""Looks after a GPU's memory around each hold: what it was before, and whether it came back.

Under ``report`` nothing waits for that: the first look is taken beside the acquisition or the body, the verdict after
the hand-off. Under the strict policies the body waits for the first look, and the release for the verdict.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aiogpulock import clock
from aiogpulock.config import GpuMemorySettings
from aiogpulock.episode import Before, episode_on, known_episode
from aiogpulock.errors import GpuLockError, MemoryNotFreedError
from aiogpulock.foreign import Family
from aiogpulock.gpu.nvml import Nvml
from aiogpulock.gpu.quarantine import quarantine_for
from aiogpulock.gpu.reclaim import reclaim
from aiogpulock.gpu.records import Gpu
from aiogpulock.gpu.report import MemoryReport
from aiogpulock.gpu.verify import own_pids, skipped, unverifiable
from aiogpulock.incidents import Incidents
from aiogpulock.lease import Hold
from aiogpulock.others import Others
from aiogpulock.scripts import Scripts
from aiogpulock.verdicts import LOST, Care, Found, Verdicts

STRICT = ("hold", "raise", "quarantine")

logger = logging.getLogger(__name__)


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
        self, nvml: Nvml, urgent: Scripts, verdicts: Verdicts, incidents: Incidents, companions: Sequence[int] = ()
    ) -> None:
        self.nvml = nvml
        self._urgent = urgent
        self._incidents = incidents
        self._companions = companions
        self._verdicts = verdicts
        self._others = Others(nvml, self.pids)
        self._cares: dict[str, Care] = {}

    def pids(self) -> frozenset[int] | None:
        """Those of the holder, as NVML numbers them; None: its numbers are not ours."""
        return own_pids(self._companions)

    # a hold begins

    def expect(self, gpu: Gpu, settings: GpuMemorySettings) -> None:
        """A hold is asked for: what this process has before it is begun to be found out."""
        uuid = _visible(gpu, settings)
        if settings.policy == "report" and uuid is not None:
            episode_on(uuid).expect(partial(self._look, uuid))

    def begin(self, hold: Hold, settings: GpuMemorySettings) -> None:
        """The hold begins now."""
        hold.memory = settings
        uuid = _visible(hold.gpu, settings)
        if uuid is not None and settings.policy != "off":
            self._care_for(hold, uuid, settings)
        elif settings.policy != "off":
            reason = "remote: the GPU of another host" if hold.gpu.remote else "no NVML here, or the id names no device"
            hold.memory_report = unverifiable(hold.gpu.id, reason)
        elif uuid is not None and (episode := known_episode(uuid)) is not None:
            episode.begin_unseen(hold)
        if uuid is not None and settings.on_busy == "warn":
            self._others.watch(hold, uuid, settings)

    def _care_for(self, hold: Hold, uuid: str, settings: GpuMemorySettings) -> None:
        episode = episode_on(uuid)
        before = episode.begin(hold, partial(self._look, uuid))
        self._cares[hold.id] = Care(hold, settings, before, episode)

    async def begin_with_a_look(self, hold: Hold, settings: GpuMemorySettings) -> None:
        """The same for a hold whose body waits for the first look: what it allocates is known to be its own."""
        self.begin(hold, settings)
        care = self._cares.get(hold.id)
        if care is not None:
            strict, alone = settings.policy in STRICT, care.before.held_at >= hold.acquired_at
            await care.before.seen(twice=strict, patience=settings.settle_time if strict and alone else 0.0)
            if care.before.asked_at >= hold.acquired_at:
                care.before.held_at, care.before.apart = clock.now(), strict and care.before.sample is not None

    def _look(self, uuid: str) -> Before:
        return Before(self.nvml, uuid, Family(self.pids()))

    # a hold ends

    async def before_release(self, hold: Hold) -> None:
        """Caches are given back; under a strict policy the memory is waited for, while the heartbeat goes on."""
        if hold.memory is not None and hold.memory.cleanup:
            await self._reclaim(hold, hold.memory.cleanup)
        care = self._strict(hold)
        if care is None:
            return
        found = await self._verdicts.now(care, self._told_once(hold))
        hold.memory_report = found.report
        self._tell_the_next(care, found)

    async def cut_short(self, hold: Hold) -> None:
        """Nobody waits for the memory any more. What is not back now is told to the next holders all the same."""
        care = self._strict(hold)
        if care is None or hold.memory_report is not None:
            return
        found = await self._verdicts.at_a_glance(care)
        self._tell_the_next(care, found)
        if found.report.status == "not_freed" and not hold.quarantine:
            hold.dirty = True  # by one look: the verdict comes behind the hand-off

    def _tell_the_next(self, care: Care, found: Found) -> None:
        hold = care.hold
        if found.report.status == "not_freed" and care.settings.policy == "quarantine" and not hold.quarantine:
            self._quarantine(care, found.report)
        if found.report.status == "unverifiable" and found.unanswered:
            hold.dirty = True

    def _strict(self, hold: Hold) -> Care | None:
        care = self._cares.get(hold.id)
        return care if care is not None and care.settings.policy in STRICT and hold.state == "held" else None

    async def _reclaim(self, hold: Hold, names: Sequence[str]) -> None:
        for done in await reclaim(names):
            if done.outcome in ("failed", "late"):
                self._incidents.keep("cleanup_failures", hold.keys)

    def _told_once(self, hold: Hold) -> Callable[[], Awaitable[bool]]:
        """Others are told that the hold is draining when its memory is found not to be back; nobody is granted."""
        told = False

        async def tell() -> bool:
            nonlocal told
            if not told:
                told = True
                await self._tell_draining(hold)
            return False

        return tell

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
        hold, before, baseline = care.hold, care.before, care.before.told(care.terms.tolerance)
        if baseline is not None:
            who = before.family.everybody
            hold.quarantine = quarantine_for(report, baseline, care.terms, hold.task_name, before.uuid, who)

    def end(self, hold: Hold, *, in_order: bool) -> None:
        """The hold is over. `in_order`: by its release, and not by a loss."""
        self._others.leave(hold)
        care, report = self._cares.pop(hold.id, None), hold.memory_report
        if care is not None and in_order and report is None:
            self._verdicts.later(care)
            return
        episode = known_episode(hold.gpu.uuid) if hold.gpu.uuid is not None else None
        if episode is not None:
            episode.end(hold, None)
        if care is not None and not in_order:
            hold.memory_report = skipped(hold.gpu.id, LOST)
        elif care is not None and report is not None:
            self._verdicts.tell(hold, report)

    async def close(self) -> None:
        """Give the verdicts under way a moment, and end everything."""
        await self._verdicts.close()
        await self._others.close()
