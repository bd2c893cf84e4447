"""What this process does to a GPU's memory: before its holds, and over all of them."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from aiogpulock import clock
from aiogpulock.gpu.memory import Baseline, MemorySample, sample_of, steady
from aiogpulock.gpu.records import NvmlError
from aiogpulock.gpu.verify import Reader

SECOND_LOOK = 0.250
"""Seconds after the first look; it tells whether memory of others was draining then."""


class Before:
    """A GPU before a hold, or before the first of several that this process had without a verdict between them.

    The look is taken beside the acquisition, in NVML's thread: it may come after the body has begun.
    """

    def __init__(self, uuid: str, pids: frozenset[int] | None) -> None:
        self.uuid = uuid
        self.pids = pids
        self.asked_at = clock.now()
        self.held_at = float("inf")
        """When the body could begin to allocate."""
        self.baseline: Baseline | None = None
        self.trouble = "the first look was cut short"
        """Why there is no baseline, if there is none."""
        self.looked = asyncio.Event()
        """There is a baseline, or trouble."""

    async def look(self, nvml: Reader, tolerance: int) -> None:
        """Take the baseline. Never raises but for cancellation."""
        try:
            reading = await nvml.read(self.uuid, processes=self.pids is not None)
            self.baseline = Baseline(sample_of(reading, self.pids), reading.version, reading.total)
        except NvmlError as error:
            self.trouble = f"{error.status}: {error}"
        finally:
            self.looked.set()
        if self.baseline is not None and self.pids is None:
            await self._look_again(nvml, self.baseline, tolerance)

    async def _look_again(self, nvml: Reader, first: Baseline, tolerance: int) -> None:
        await asyncio.sleep(SECOND_LOOK)
        with suppress(NvmlError):
            reading = await nvml.read(self.uuid, processes=False, version=first.version)
            settled = steady(first.sample, sample_of(reading, None), tolerance)
            self.baseline = Baseline(first.sample, first.version, first.total, settled)

    def judged(self, idle: int | None, tolerance: int) -> Baseline | None:
        """The baseline, with a doubt if it may hold what the body had allocated by then.

        `idle`: bytes of this process when it last had no hold.
        """
        baseline = self.baseline
        if baseline is None or not self._is_late(baseline.sample, idle, tolerance):
            return baseline
        late = (baseline.sample.at - self.held_at) * 1000
        doubt = f"the first look came {late:.1f} ms after the hold began: what the body had by then is not known"
        return Baseline(baseline.sample, baseline.version, baseline.total, baseline.steady, doubt, idle or 0)

    def _is_late(self, sample: MemorySample, idle: int | None, tolerance: int) -> bool:
        if sample.at <= self.held_at or sample.own == 0:
            return False
        return sample.own is None or idle is None or sample.own > idle + tolerance


@dataclass
class Footprint:
    """This process on one GPU."""

    SAME_PROCESS: ClassVar[str] = "same process: it holds the lock again, and its memory is the new hold's too"

    holding: int = 0
    """Holds of this process now: while there is one, its memory is that hold's, and no verdict means anything."""
    owed: Before | None = None
    """Before the first hold that was not judged yet: the next one is judged by it too, so that no leak is missed
    because the process took the lock again at once."""
    idle: int | None = None
    """Bytes of this process when it last had no hold."""

    def enter(self) -> None:
        """A hold begins; maybe on another thread than the one that ends."""
        with _mutex:
            self.holding += 1

    def leave(self) -> None:
        """A hold is over."""
        with _mutex:
            self.holding -= 1

    def again_held(self) -> str:
        """Why no verdict means anything now; empty while this process has no hold."""
        return self.SAME_PROCESS if self.holding else ""


_mutex = threading.Lock()
_footprints: dict[str, Footprint] = {}
_pid = os.getpid()


def known_footprint(uuid: str) -> Footprint | None:
    """This process on that device, if it was ever looked at."""
    return _footprints.get(uuid) if _pid == os.getpid() else None


def footprint(uuid: str) -> Footprint:
    """This process on that device; a forked child begins anew."""
    global _pid, _mutex
    if _pid != os.getpid():
        _pid, _mutex = os.getpid(), threading.Lock()
        _footprints.clear()
    return _footprints.setdefault(uuid, Footprint())
