"""Where this library's own time goes in an uncontended acquire and release: a sampling profile of the process."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import aiogpulock
from aiogpulock import GpuLockManager
from benchmarks.results import Column, Row, Table

PACKAGE = Path(aiogpulock.__file__).parent
TICK = 0.001
"""Seconds of CPU between samples, at least; most kernels count in 4 ms."""
PARTS = {
    "redis_client": "client: pack, send, read, deadlines",
    "scripts": "scripts: arguments and replies",
    "acquisition": "acquisition: request, limits",
    "waiting": "waiter and its room",
    "owners": "waiter and its room",
    "lease": "hold and lease",
    "heartbeat": "heartbeat and guard",
    "guard": "heartbeat and guard",
    "leaving": "isolated leaving",
    "lock": "entry, exit, task name",
    "body": "entry, exit, task name",
    "keys": "entry, exit, task name",
    "manager": "manager: is it usable, started, indexed",
    "parts": "manager: is it usable, started, indexed",
    "server_link": "manager: is it usable, started, indexed",
    "admission": "GPU: identity and memory",
    "caretaker": "GPU: identity and memory",
    "episode": "GPU: identity and memory",
    "verdicts": "GPU: identity and memory",
    "gpu": "GPU: identity and memory",
}
"""The module of the deepest frame of ours, and what it is there for. A frame of the loop alone is the event loop's."""


def python_costs(url: str, seconds: float) -> Table:
    """CPU of one acquire and release by what it is spent for; sampled for so many seconds."""
    samples: Counter[str] = Counter()
    cpu = asyncio.run(_acquire(url, seconds, samples))
    total = samples.total() or 1
    rows = [
        Row(part, [cpu * count / total, 100 * count / total])
        for part, count in samples.most_common()
        if count > total / 200
    ]
    rows.append(Row("all of acquire and release", [cpu, 100.0]))
    return Table("CPU of the client, by part", [Column("CPU", "s"), Column("share", "%")], rows, f"{total} samples.")


async def _acquire(url: str, seconds: float, samples: Counter[str]) -> float:
    """CPU seconds of one acquire and release."""
    async with GpuLockManager(url, max_wait_time=30) as manager:
        for _ in range(200):
            async with manager.lock("profile"):
                pass
        done, began, until = 0, time.process_time(), time.monotonic() + seconds
        with _sampling(samples):
            while time.monotonic() < until:
                async with manager.lock("profile"):
                    pass
                done += 1
        return (time.process_time() - began) / done


@contextmanager
def _sampling(samples: Counter[str]) -> Iterator[None]:
    def sample(signum: int, frame: FrameType | None) -> None:
        samples[_part(frame)] += 1

    before = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, TICK, TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _part(frame: FrameType | None) -> str:
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            return PARTS.get(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), "elsewhere in this library")
        frame = frame.f_back
    return "event loop and kernel"
