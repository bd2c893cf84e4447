"""Warns of foreign processes on the GPUs that one manager holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

from aiogpulock import clock
from aiogpulock.config import GpuMemorySettings
from aiogpulock.foreign import family, named
from aiogpulock.gpu.nvml import Nvml
from aiogpulock.gpu.obstacles import Demands, obstacles
from aiogpulock.gpu.records import GpuProcess, NvmlError
from aiogpulock.lease import Hold

logger = logging.getLogger(__name__)

AT_LEAST = 0.050
"""Seconds: the holder before may still be giving memory back."""

Who: TypeAlias = tuple[int, float | None]
"""A process, by pid and start time."""


class Others:
    """Warns of whoever is seen `settle_time` after a hold began, or in two holds that long apart: most may be short.

    `pids`: the holder's, as NVML numbers them.
    """

    def __init__(self, nvml: Nvml, pids: Callable[[], frozenset[int] | None]) -> None:
        self._nvml = nvml
        self._pids = pids
        self._timers: dict[str, asyncio.TimerHandle] = {}
        """By hold."""
        self._looks: set[asyncio.Task[None]] = set()
        self._look_from: dict[str, float] = {}
        """When the next hold of each device is looked at as it begins, by `clock.now`."""
        self._seen: dict[str, dict[Who, float]] = {}
        """Who was there at every look at each device since, by `clock.now`."""
        self._known: dict[str, set[Who]] = {}
        """Whom the holders of each device were warned of."""

    def watch(self, hold: Hold, uuid: str, settings: GpuMemorySettings) -> None:
        """Look after the time in which the holder before may give memory back; in some holds at once, too."""
        when = max(settings.settle_time, AT_LEAST)
        self._timers[hold.id] = asyncio.get_running_loop().call_later(when, self._begin, hold, uuid, settings)
        if clock.now() >= self._look_from.get(uuid, 0.0):
            self._look_from[uuid] = clock.now() + when
            self._begin(hold, uuid, settings)

    def leave(self, hold: Hold) -> None:
        """The hold is over."""
        timer = self._timers.pop(hold.id, None)
        if timer is not None:
            timer.cancel()

    def _begin(self, hold: Hold, uuid: str, settings: GpuMemorySettings) -> None:
        look = asyncio.create_task(self._look(hold, uuid, settings), name="aiogpulock-others")
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _look(self, hold: Hold, uuid: str, settings: GpuMemorySettings) -> None:
        with suppress(NvmlError):
            reading = await self._nvml.read(uuid)
            if hold.id not in self._timers:
                return  # it is over by now: whoever came may be the next holder
            pids, context = family(self._pids(), reading), settings.context_bytes
            demands = Demands(tolerance=settings.tolerance_bytes, context=context, pids=pids, idle=True)
            found = [one for obstacle in obstacles(reading, demands) for one in named(obstacle.foreign)]
            staying = self._staying(hold, uuid, found, max(settings.settle_time, AT_LEAST))
            there = {process.pid for process in reading.processes or ()}
            known = {one for one in self._known.get(uuid, ()) if one[0] in there}
            new = [one for one in staying if (one.pid, one.started) not in known]
            self._known[uuid] = known | {(one.pid, one.started) for one in new}
            if new:
                text = ", ".join(map(str, new))
                logger.warning("%s is held by %s, and others use the GPU: %s", hold.keys.lock, hold.task_name, text)

    def _staying(self, hold: Hold, uuid: str, found: Sequence[GpuProcess], settle: float) -> list[GpuProcess]:
        """Those that are no holder who is still giving memory back."""
        now, before = clock.now(), self._seen.get(uuid, {})
        seen = {(one.pid, one.started): before.get((one.pid, one.started), now) for one in found}
        self._seen[uuid] = seen
        since = hold.acquired_at
        return [one for one in found if now - min(since, seen[one.pid, one.started]) >= settle]

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        looks = list(self._looks)
        for look in looks:
            look.cancel()
        if looks:
            await asyncio.wait(looks)
