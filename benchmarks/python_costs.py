"""Where the time of this library's clients goes: a sampling profile of this process."""

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
    "wakeups": "messages: read, checked, handed on",
    "incoming": "messages: read, checked, handed on",
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


def acquire_costs(url: str, seconds: float) -> Table:
    """CPU of one acquire and release by what it is spent for; sampled for so many seconds."""
    return _table("CPU of the client, by part", "all of acquire and release", asyncio.run(_acquire(url, seconds)))


def handoff_costs(url: str, waiters: int, seconds: float) -> Table:
    """The same of one hand-off while so many wait: its release and its claim, both in this process."""
    title = f"CPU of the clients for a hand-off, by part, {waiters:,} waiters"
    return _table(title, "all of a hand-off", asyncio.run(_hand_over(url, waiters, seconds)))


class Profile:
    """CPU of something done again and again, and where samples found it."""

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()
        self.times = 0
        self._cpu = 0.0

    @property
    def cpu(self) -> float:
        """Seconds each time."""
        return self._cpu / self.times

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While it is being done."""
        began = time.process_time()
        with _sampling(self.samples):
            yield
        self._cpu += time.process_time() - began


def _table(title: str, whole: str, profile: Profile) -> Table:
    total = profile.samples.total() or 1
    rows = [
        Row(part, [profile.cpu * count / total, 100 * count / total])
        for part, count in profile.samples.most_common()
        if count > total / 200
    ]
    rows.append(Row(whole, [profile.cpu, 100.0]))
    return Table(title, [Column("CPU", "s"), Column("share", "%")], rows, f"{total:,} samples.")


async def _acquire(url: str, seconds: float) -> Profile:
    profile = Profile()
    async with GpuLockManager(url, max_wait_time=30) as manager:
        for _ in range(200):
            await _hold(manager)
        until = time.monotonic() + seconds
        with profile.taken():
            while time.monotonic() < until:
                await _hold(manager)
                profile.times += 1
    return profile


async def _hand_over(url: str, waiters: int, seconds: float) -> Profile:
    """Taking the seats is not counted."""
    profile, until = Profile(), time.monotonic() + seconds
    async with GpuLockManager(url, max_wait_time=None, redis={"namespace": "profile"}) as manager:
        while not profile.times or time.monotonic() < until:
            lease = await manager.lock("profile").acquire()
            crowd = asyncio.gather(*(_hold(manager) for _ in range(waiters)))
            while (await manager.status())[0].waiters < waiters:
                await asyncio.sleep(0.05)
            with profile.taken():
                await lease.release()
                await crowd
            profile.times += waiters
    return profile


async def _hold(manager: GpuLockManager) -> None:
    async with manager.lock("profile"):
        pass


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
