"""What it costs to keep many locks alive."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from aiogpulock import GpuLockManager
from benchmarks.arena import Usage
from benchmarks.results import Column, Result, Row, Table, Target
from benchmarks.scenarios import Stage

TITLE = "Many locks in one process"

INTERVAL = 1.0
"""Seconds between beats here; the default is 10."""
SIZES = (1, 10, 100, 300, 1000)


class Cost(NamedTuple):
    """Per beat of all locks together."""

    locks: int
    requests: float
    client: float
    """Seconds of CPU, the guard thread's included."""
    server: float


def run(stage: Stage) -> Result:
    """One process holds 1 to 1,000 locks and beats once a second. The cost of an idle manager is taken off."""
    costs = asyncio.run(_measure(stage, stage.pick(8, 1)))
    rows = [
        Row(f"{cost.locks:,} locks", [cost.requests, cost.client, cost.client / cost.locks, cost.server,
                                      cost.server / cost.locks])
        for cost in costs
    ]  # fmt: skip
    columns = [
        Column("requests per beat", "n"), Column("CPU of the client", "s"), Column("per lock", "s"),
        Column("CPU of the server", "s"), Column("per lock", "s"),
    ]  # fmt: skip
    table = Table("one beat of all locks", columns, rows, NOTE)
    most = costs[-1]
    pieces = most.locks * BEAT_BYTES / READ_BYTES
    target = Target(
        f"one pipeline per beat, with {most.locks:,} locks",
        f"about {pieces:.0f} reads of 16 KiB", f"{most.requests:.1f} reads", most.requests < 2 * pieces + 3,
    )  # fmt: skip
    return Result("many_locks", TITLE, run.__doc__ or "", [table], [target])


BEAT_BYTES, READ_BYTES = 420, 16_384
NOTE = "The server reads a pipeline in pieces of 16 KiB; each piece counts as a request."


async def _measure(stage: Stage, beats: int) -> list[Cost]:
    costs = []
    settings = {"heartbeat": {"interval": INTERVAL, "timeout": 30}, "redis": {"namespace": "many"}}
    async with GpuLockManager(stage.arena.server.url, max_wait_time=30, **settings) as manager:
        async with manager.lock("warm"):
            pass
        idle = await _spent(stage, beats)
        for locks in stage.pick(SIZES, SIZES[::2]):
            stage.say(f"{locks} locks")
            leases = [await manager.lock(f"{locks}-{number}").acquire() for number in range(locks)]
            await asyncio.sleep(1.5 * INTERVAL)
            client, usage = await _spent(stage, beats)
            costs.append(
                Cost(
                    locks,
                    (usage.requests - idle[1].requests) / beats,
                    (client - idle[0]) / beats,
                    (usage.cpu - idle[1].cpu) / beats,
                )
            )
            for lease in leases:
                await lease.release()
    return costs


async def _spent(stage: Stage, beats: int) -> tuple[float, Usage]:
    """CPU seconds of this process, and the server's usage, over so many beats."""
    usage, cpu = stage.arena.usage(), time.process_time()
    await asyncio.sleep(beats * INTERVAL)
    return time.process_time() - cpu, stage.arena.usage().since(usage)
