"""What it costs to watch many locks."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, NamedTuple

from aiogpulock import GpuLockManager, GpuLockMonitor
from aiogpulock.errors import ManagerClosedError
from benchmarks.results import Column, Result, Row, Table, at_most
from benchmarks.scenarios import Stage

TITLE = "A monitor over many locks"

SIZES = (1, 10, 100, 1000)
TARGET_LOCKS = 100


class Cost(NamedTuple):
    """Per round of the monitor."""

    locks: int
    commands: float
    """Those inside the scripts among them."""
    client: float
    """Seconds of CPU."""
    server: float
    seconds: float
    """How long a round takes."""


def run(stage: Stage) -> Result:
    """1 to 1,000 locks are held, each with a waiter behind it, and a monitor goes round.

    Shares are of one core, at the default interval.
    """
    interval = GpuLockMonitor(GpuLockManager(stage.arena.server.url)).settings.monitor_interval
    costs = asyncio.run(_measure(stage, stage.pick(20, 5)))
    rows = [
        Row(
            "1 lock" if cost.locks == 1 else f"{cost.locks:,} locks",
            [
                cost.commands,
                cost.commands / cost.locks,
                cost.seconds,
                cost.client,
                100 * cost.client / interval,
                100 * cost.server / interval,
            ],
        )
        for cost in costs
    ]
    columns = [
        Column("commands per round", "n"), Column("per lock", "n"), Column("a round takes", "s"),
        Column("CPU of the monitor", "s"), Column("its share of a core", "%"), Column("the server's", "%"),
    ]  # fmt: skip
    table = Table("one round", columns, rows, f"The interval is {interval:g} s.")
    target = next(cost for cost in costs if cost.locks == TARGET_LOCKS)
    share = 100 * target.client / interval
    return Result(
        "monitoring", TITLE, run.__doc__ or "", [table],
        [at_most(f"the monitor's share of a core with {TARGET_LOCKS} locks", share, 1.0, "%")],
    )  # fmt: skip


async def _measure(stage: Stage, rounds: int) -> list[Cost]:
    costs = []
    settings: dict[str, Any] = {"heartbeat": {"interval": 60, "timeout": 300}, "redis": {"namespace": "watched"}}
    async with GpuLockManager(stage.arena.server.url, max_wait_time=None, **settings) as manager:
        monitor = GpuLockMonitor(manager)
        for locks in SIZES:
            stage.say(f"{locks} locks")
            leases = [await manager.lock(f"{locks}-{number}").acquire() for number in range(locks)]
            waiters = [asyncio.create_task(_wait(manager, f"{locks}-{number}")) for number in range(locks)]
            while sum(lock.waiters for lock in await manager.status()) < locks:
                await asyncio.sleep(0.05)
            costs.append(await _cost(stage, monitor, locks, rounds))
            for lease in leases:
                await lease.release()
            await asyncio.gather(*waiters)
            _forget(stage)
    return costs


async def _wait(manager: GpuLockManager, name: str) -> None:
    with suppress(ManagerClosedError):  # interrupted
        async with manager.lock(name):
            pass


def _forget(stage: Stage) -> None:
    """The next size shall not look at the locks of the last one."""
    with stage.arena.server.client() as client:
        client.delete("{watched}:index")


async def _cost(stage: Stage, monitor: GpuLockMonitor, locks: int, rounds: int) -> Cost:
    await monitor.round()
    with stage.arena.server.client() as client:
        commands = _commands(client)
        usage, cpu, began = stage.arena.usage(), time.process_time(), time.monotonic()
        for _ in range(rounds):
            await monitor.round()
        cpu, seconds = time.process_time() - cpu, time.monotonic() - began
        server = stage.arena.usage().since(usage).cpu
        commands = _commands(client) - commands
    return Cost(locks, commands / rounds, cpu / rounds, server / rounds, seconds / rounds)


def _commands(client: Any) -> int:
    """Without those of who asks."""
    return sum(
        stats["calls"] for name, stats in client.info("commandstats").items() if not name.startswith("cmdstat_info")
    )
