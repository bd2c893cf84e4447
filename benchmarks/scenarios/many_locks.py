"""What it costs to keep many locks alive."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection

from aiogpulock import GpuLockManager
from aiogpulock.scripts import Scripts
from benchmarks.results import Column, Result, Row, Table, at_most
from benchmarks.scenarios import Stage

TITLE = "Many locks in one process"

INTERVAL = 1.0
"""Seconds between beats here; the default is 10."""
SIZES = (1, 10, 100, 300, 1000)


class Cost(NamedTuple):
    """Per beat of all locks together."""

    locks: int
    writes: float
    """Of the client to its sockets."""
    reads: float
    """Of the server."""
    client: float
    """Seconds of CPU, the guard thread's included."""
    server: float


def run(stage: Stage) -> Result:
    """One process holds 1 to 1,000 locks and beats once a second. The cost of an idle manager is taken off."""
    costs = asyncio.run(_measure(stage, stage.pick(8, 2)))
    rows = []
    for cost in costs:
        name = "1 lock" if cost.locks == 1 else f"{cost.locks:,} locks"
        rows.append(Row(name, [cost.writes, cost.reads, cost.client, cost.client / cost.locks, cost.server,
                               cost.server / cost.locks]))  # fmt: skip
    columns = [
        Column("pipelines per beat", "n"), Column("reads of the server", "n"),
        Column("CPU of the client", "s"), Column("client, per lock", "s"),
        Column("CPU of the server", "s"), Column("server, per lock", "s"),
    ]  # fmt: skip
    table = Table("one beat of all locks", columns, rows, NOTE)
    most = costs[-1]
    target = at_most(f"pipelines per beat, with {most.locks:,} locks", most.writes, 1.0, "n")
    return Result("many_locks", TITLE, run.__doc__ or "", [table], [target])


NOTE = "The server reads a pipeline in pieces of 16 KiB."


async def _measure(stage: Stage, beats: int) -> list[Cost]:
    costs = []
    settings: dict[str, Any] = {"heartbeat": {"interval": INTERVAL, "timeout": 30}, "redis": {"namespace": "many"}}
    async with GpuLockManager(stage.arena.server.url, max_wait_time=30, **settings) as manager:
        async with manager.lock("warm"):
            pass
        await asyncio.sleep(1.5 * INTERVAL)
        idle = await _spent(stage, beats)
        for locks in stage.pick(SIZES, SIZES[::2]):
            stage.say(f"{locks} locks")
            leases = [await manager.lock(f"{locks}-{number}").acquire() for number in range(locks)]
            await asyncio.sleep(1.5 * INTERVAL)
            spent = await _spent(stage, beats)
            costs.append(
                Cost(
                    locks, *((now - then) / max(1, spent.beats) for now, then in zip(spent[1:], idle[1:], strict=True))
                )
            )
            for lease in leases:
                await lease.release()
    return costs


class Spent(NamedTuple):
    """Over some beats."""

    beats: int
    writes: int
    """In beats only."""
    reads: float
    client: float
    server: float


async def _spent(stage: Stage, beats: int) -> Spent:
    with _counted_beats() as counted:
        usage, cpu = stage.arena.usage(), time.process_time()
        await asyncio.sleep(beats * INTERVAL)
        cpu, after = time.process_time() - cpu, stage.arena.usage().since(usage)
        return Spent(counted["beats"], counted["writes"], after.requests, cpu, after.cpu)


@contextmanager
def _counted_beats() -> Iterator[Counter[str]]:
    """How many beats there were, and how often they wrote to a connection."""
    counted: Counter[str] = Counter()
    beating = ContextVar("beating", default=False)
    beat, send = Scripts.beat, AbstractConnection.send_packed_command

    async def counted_beat(self: Scripts, beats: Any) -> Any:
        counted["beats"] += 1
        token = beating.set(True)
        try:
            return await beat(self, beats)
        finally:
            beating.reset(token)

    async def counted_send(self: AbstractConnection, *arguments: Any, **options: Any) -> None:
        counted["writes"] += beating.get()
        await send(self, *arguments, **options)

    Scripts.beat, AbstractConnection.send_packed_command = counted_beat, counted_send  # type: ignore[method-assign]
    try:
        yield counted
    finally:
        Scripts.beat, AbstractConnection.send_packed_command = beat, send  # type: ignore[method-assign]
