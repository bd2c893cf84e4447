"""Takes the samples for a verdict: reads the device until its memory is back, or the time is over."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Protocol

from aiogpulock import clock
from aiogpulock.gpu.memory import PASSES, final, look, settled
from aiogpulock.gpu.records import MemoryReading, NvmlError
from aiogpulock.gpu.report import Look, MemoryReport, report
from aiogpulock.gpu.samples import Baseline, MemorySample, Terms, sample_of

FIRST_PAUSE, GROWTH, LONGEST_PAUSE = 0.010, 1.6, 0.250
"""Seconds between looks: a reclaim takes milliseconds or minutes, and each look takes the driver's lock."""

LOOK_AT_LEAST = 5.0
"""Seconds that a look gets in any case: NVML may have to be started."""

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC


class Reader(Protocol):
    """What of `Nvml` is needed here."""

    async def read(self, uuid: str, *, processes: bool = True, version: int | None = None) -> MemoryReading: ...


def own_pids(companions: Iterable[int] = ()) -> frozenset[int] | None:
    """This process and its companions, as NVML numbers them; None inside a container: it shows the host's pids or none.

    ``AIOGPULOCK_NVML_PIDS=same`` says that NVML sees the pids that this program sees.
    """
    pid = os.getpid()
    if os.environ.get("AIOGPULOCK_NVML_PIDS") != "same" and not _in_the_initial_namespace(pid):
        return None
    return frozenset({pid, *companions})


@cache
def _in_the_initial_namespace(_pid: int) -> bool:
    """Of the process of that pid, which is this one: a fork may be in another."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
    except OSError:
        return False


def unverifiable(gpu: str, reason: str) -> MemoryReport:
    """The report where nobody could look."""
    return MemoryReport(gpu=gpu, status="unverifiable", reason=reason)


def skipped(gpu: str, reason: str) -> MemoryReport:
    """The report where a look would mean nothing: ``same process`` took the lock again, for one."""
    return MemoryReport(gpu=gpu, status="skipped", reason=reason)


class Pauses:
    """The time between looks."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE

    async def next(self) -> None:
        """Sleep, longer each time."""
        await asyncio.sleep(self._pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
        self._pause = min(self._pause * GROWTH, LONGEST_PAUSE)


def no_kin(_reading: MemoryReading) -> frozenset[int]:
    """The holder's processes started no others."""
    return frozenset()


def as_before(baseline: Baseline, _sample: MemorySample) -> tuple[Baseline, bool]:
    """Every look is judged by the time before the hold."""
    return baseline, False


async def nobody() -> bool:
    """Nobody was granted the lock."""
    return False


class Verification:
    """Looks at a device until its memory is back, twice in a row, or `terms.settle_time` is over.

    A driver that does not answer is asked again: it is a look like one that finds the memory in use.

    `kin` answers which of the listed processes the holder's started.
    `granted` answers whether the lock has been granted to anybody since; it is asked only if a look is not good.
    `ended` gives the reason why a verdict means nothing any more, or an empty text: this process holds the lock again,
    for one.
    `judge_by` answers by what a look is judged, what came since the look before it was loaded without the lock; and
    whether earlier looks count no more.
    """

    def __init__(
        self,
        nvml: Reader,
        gpu: str,
        uuid: str,
        pids: frozenset[int] | None,
        terms: Terms,
        *,
        kin: Callable[[MemoryReading], frozenset[int]] = no_kin,
        granted: Callable[[], Awaitable[bool]] = nobody,
        ended: Callable[[], str] = str,
        judge_by: Callable[[Baseline, MemorySample], tuple[Baseline, bool]] = as_before,
    ) -> None:
        self._nvml = nvml
        self._gpu = gpu
        self._uuid = uuid
        self._pids = pids
        self._terms = terms
        self._kin = kin
        self._granted = granted
        self._ended = ended
        self._judge_by = judge_by
        self._next_holder = False
        self._samples: list[MemorySample] = []
        self._looks: list[Look] = []
        self._hangs = False
        self.unanswered = False
        """The driver did not answer when it was asked last, and may do so later."""

    @property
    def last(self) -> MemorySample | None:
        """The last look."""
        return self._samples[-1] if self._samples else None

    async def run(self, baseline: Baseline) -> MemoryReport:
        """The verdict. Never raises but for cancellation."""
        begun = clock.now()
        looks = self._looks
        pauses = Pauses()
        while True:
            if reason := self._ended():
                return skipped(self._gpu, reason)
            looks.append(await self._try_to_look(baseline, begun + self._terms.settle_time))
            verdict = looks[-1] if self._hangs else settled(looks)
            if verdict is None and len(looks) >= PASSES and clock.now() - begun >= self._terms.settle_time:
                verdict = final(looks)
            if verdict is not None:
                return report(self._gpu, verdict, self._samples, self._terms, begun)
            await pauses.next()

    async def glance(self, baseline: Baseline) -> MemoryReport:
        """What one look says."""
        begun = clock.now()
        found = await self._try_to_look(baseline, begun)
        return report(self._gpu, found, self._samples, self._terms, begun)

    async def _try_to_look(self, baseline: Baseline, until: float) -> Look:
        begun = clock.now()
        try:
            async with asyncio.timeout(max(until - begun, LOOK_AT_LEAST)):
                found = await self._look(baseline)
        except TimeoutError:
            self.unanswered = self._hangs = True
            reason = f"timeout: the NVIDIA driver has not answered for {clock.now() - begun:.1f} s"
            return Look("unverifiable", reason, None, None, None)
        except NvmlError as error:
            self.unanswered = not error.lasts
            return Look("unverifiable", f"{error.status}: {error}", None, None, None, for_good=error.lasts)
        self.unanswered = False
        return found

    async def _look(self, baseline: Baseline) -> Look:
        reading = await self._nvml.read(self._uuid, processes=self._pids is not None, version=baseline.version)
        kin = self._kin(reading)
        sample = sample_of(reading, self._pids, kin=kin, next_holder=self._next_holder)
        baseline, anew = self._judge_by(baseline, sample)
        if anew:
            self._looks.clear()
        found = look(baseline, sample, self._terms, self._samples)
        if not found.is_back and not self._next_holder and await self._granted():
            self._next_holder = True  # asked after the reading: whoever allocated before it was granted by now
            sample = sample_of(reading, self._pids, kin=kin, next_holder=True)
            found = look(baseline, sample, self._terms, self._samples)
        self._samples.append(sample)
        return found
