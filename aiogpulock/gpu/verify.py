"""Takes the samples for a verdict: reads the device until its memory is back, or the time is over."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from aiogpulock import clock
from aiogpulock.gpu.memory import (
    PASSES,
    Baseline,
    Look,
    MemoryReport,
    MemorySample,
    Terms,
    final,
    look,
    report,
    sample_of,
    settled,
    steady,
)
from aiogpulock.gpu.records import MemoryReading, NvmlError

FIRST_PAUSE, GROWTH, LONGEST_PAUSE = 0.010, 1.6, 0.250
"""Seconds between looks: a reclaim takes milliseconds or minutes, and each look takes the driver's lock."""

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC


class Reader(Protocol):
    """What of `Nvml` is needed here."""

    async def read(self, uuid: str, *, processes: bool = True, version: int | None = None) -> MemoryReading: ...


def own_pids() -> frozenset[int] | None:
    """This process as NVML numbers it; None inside a container, where NVML shows the host's pids or none."""
    try:
        if Path("/proc/self/ns/pid").stat().st_ino != _INITIAL_PID_NAMESPACE:
            return None
    except OSError:
        return None
    return frozenset({os.getpid()})


async def take_baseline(nvml: Reader, uuid: str, pids: frozenset[int] | None) -> Baseline:
    """Look at the device as the lease begins. Raises `NvmlError`."""
    reading = await nvml.read(uuid)
    return Baseline(sample_of(reading, pids), reading.version, reading.total)


async def watch_baseline(
    nvml: Reader, uuid: str, pids: frozenset[int] | None, baseline: Baseline, tolerance: int, *, pause: float = 0.25
) -> Baseline:
    """Look once more `pause` seconds later: was somebody's memory draining when the lease began? Never raises."""
    await asyncio.sleep(pause)
    try:
        later = sample_of(await nvml.read(uuid, version=baseline.version), pids)
    except NvmlError:
        return baseline
    verdict = steady(baseline.sample, later, tolerance)
    return Baseline(baseline.sample, baseline.version, baseline.total, verdict)


def unverifiable(gpu: str, reason: str) -> MemoryReport:
    """The report where nobody could look."""
    return MemoryReport(gpu=gpu, status="unverifiable", reason=reason)


def skipped(gpu: str, reason: str) -> MemoryReport:
    """The report where a look would mean nothing: ``same process`` took the lock again, for one."""
    return MemoryReport(gpu=gpu, status="skipped", reason=reason)


async def verify(
    nvml: Reader,
    gpu: str,
    uuid: str,
    pids: frozenset[int] | None,
    baseline: Baseline,
    terms: Terms,
    *,
    next_holder: Callable[[], bool] = lambda: False,
    same_process: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> MemoryReport:
    """Look until the memory is back, twice in a row, or `terms.settle_time` is over. Never raises but for cancellation.

    `next_holder` answers whether the lock has been granted again, `same_process` whether to this process: its memory
    then is the new hold's as well.
    """
    released_at = clock.now()
    samples: list[MemorySample] = []
    looks: list[Look] = []
    pause = FIRST_PAUSE
    while True:
        if same_process():
            return skipped(gpu, "same process: it holds the lock again, and its memory is the new hold's too")
        try:
            reading = await nvml.read(uuid, version=baseline.version)
        except NvmlError as error:
            return unverifiable(gpu, f"{error.status}: {error}")
        sample = sample_of(reading, pids, next_holder=next_holder())
        samples.append(sample)
        looks.append(look(baseline, sample, terms))
        verdict = settled(looks)
        if verdict is None and len(looks) >= PASSES and clock.now() - released_at >= terms.settle_time:
            verdict = final(looks)
        if verdict is not None:
            return report(gpu, verdict, samples, terms, released_at)
        await sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
        pause = min(pause * GROWTH, LONGEST_PAUSE)
