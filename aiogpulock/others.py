"""Warns of foreign processes on the GPUs that one manager holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from aiogpulock.config import GpuMemorySettings
from aiogpulock.foreign import family, named
from aiogpulock.gpu.nvml import Nvml
from aiogpulock.gpu.obstacles import Demands, obstacles
from aiogpulock.gpu.records import NvmlError
from aiogpulock.lease import Hold

logger = logging.getLogger(__name__)

AT_LEAST = 0.050
"""Seconds: the holder before may still be giving memory back."""


class Others:
    """Looks once during each hold. `pids`: the holder's, as NVML numbers them."""

    def __init__(self, nvml: Nvml, pids: Callable[[], frozenset[int] | None]) -> None:
        self._nvml = nvml
        self._pids = pids
        self._timers: dict[str, asyncio.TimerHandle] = {}
        """By hold."""
        self._looks: set[asyncio.Task[None]] = set()
        self._known: dict[str, set[tuple[int, float | None]]] = {}
        """Whom each lock's holders were warned of, by pid and start time."""

    def watch(self, hold: Hold, uuid: str, settings: GpuMemorySettings) -> None:
        """Look after the time in which the holder before may give memory back."""
        when = max(settings.settle_time, AT_LEAST)
        self._timers[hold.id] = asyncio.get_running_loop().call_later(when, self._begin, hold, uuid, settings)

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
            demands = Demands(tolerance=settings.tolerance_bytes, pids=family(self._pids(), reading), idle=True)
            found = [one for obstacle in obstacles(reading, demands) for one in named(obstacle.foreign)]
            there = {process.pid for process in reading.processes or ()}
            known = {one for one in self._known.get(uuid, ()) if one[0] in there}
            new = [one for one in found if (one.pid, one.started) not in known]
            self._known[uuid] = known | {(one.pid, one.started) for one in new}
            if new:
                text = ", ".join(map(str, new))
                logger.warning("%s is held by %s, and others use the GPU: %s", hold.keys.lock, hold.task_name, text)

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        looks = list(self._looks)
        for look in looks:
            look.cancel()
        if looks:
            await asyncio.wait(looks)
