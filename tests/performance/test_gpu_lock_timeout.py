"""How fast dead locks are free again, and that a long job keeps its own; times are scaled down by configuration."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
import redis

from aiogpulock import GpuLockManager, GpuLockMonitor, LeaseLostError
from aiogpulock.monitor import Round
from tests.servers import RealServer
from tests.unit.support import eventually
from tests.workers import Crew

pytestmark = pytest.mark.performance

INTERVAL = 0.5
LEASE = 2.0
SLACK = 1.0
"""Seconds beyond the interval that the repair of a zombie may take."""


async def freed_after_kill(server: RealServer, crew: Crew, client: redis.Redis, *, boot: str) -> float:
    """Seconds from the SIGKILL of a holder that nobody waits behind until its lock is free."""
    worker = crew.start(server.url, boot=boot, heartbeat={"interval": 0.5, "timeout": LEASE})
    worker.tell("acquire", name="victim")
    await asyncio.to_thread(worker.expect, "held")
    async with (
        GpuLockManager(server.url, restart_grace=0) as manager,
        GpuLockMonitor(manager, monitor_interval=INTERVAL),
    ):
        await asyncio.sleep(2 * INTERVAL)
        assert client.exists("gpu_lock:0"), "alive"
        worker.kill()
        began = time.monotonic()
        await eventually(lambda: not client.exists("gpu_lock:0"), description="the lock to be free")
        took = time.monotonic() - began
        [event] = await manager.history(0)
    assert event.actor.startswith("monitor ")
    return took


async def test_lock_timeout_recovery_time(server: RealServer, crew: Crew, redis_cleanup: redis.Redis) -> None:
    """On its own host within one interval of the monitor; elsewhere within its lease and one interval."""
    here = await freed_after_kill(server, crew, redis_cleanup, boot="")
    redis_cleanup.flushall()
    elsewhere = await freed_after_kill(server, crew, redis_cleanup, boot="another-host")

    print(f"freed {here:.2f} s after the kill on this host, {elsewhere:.2f} s on another one (lease {LEASE:g} s)")
    assert here < INTERVAL + SLACK
    assert LEASE / 2 < elsewhere < LEASE + INTERVAL + SLACK


async def test_long_task_not_killed(server: RealServer, crew: Crew, redis_cleanup: redis.Redis) -> None:
    """A job twenty times as long as `hard_timeout`, in its own process, with a heartbeat and a waiter behind it."""
    hard_timeout = 0.25
    levels = {"warning": hard_timeout / 3, "soft_timeout": hard_timeout / 2, "hard_timeout": hard_timeout}
    worker = crew.start(server.url, heartbeat={"interval": 0.3, "timeout": 3})
    worker.tell("acquire", name="long job")
    held = await asyncio.to_thread(worker.expect, "held")
    rounds: list[Round] = []
    async with (
        GpuLockManager(server.url, restart_grace=0) as manager,
        GpuLockMonitor(manager, timeout_levels=levels, monitor_interval=0.1, on_round=rounds.append),
    ):
        waiter = asyncio.create_task(manager.lock(0, max_wait_time=None).acquire())
        await asyncio.sleep(20 * hard_timeout)
        [lock] = await manager.status()
        assert lock.fencing_token == held["token"], "the same lease all the time"
        worker.tell("release", name="long job")
        await asyncio.to_thread(worker.expect, "left")
        await (await waiter).release()
        events = await manager.history(0)

    assert [event.reason for event in events] == ["normal", "normal"]
    assert events[1].hold >= 20 * hard_timeout
    assert len(rounds) > 20
    assert not [repair for seen in rounds for repair in seen.repaired]
    assert not [zombie for seen in rounds for zombie in seen.zombies]


async def test_under_contention_nobody_is_ended_before_its_time(redis_url: str, redis_cleanup: redis.Redis) -> None:
    """Two monitors take live locks after `hard_timeout`, in the very moment in which holders change."""
    hard_timeout, lost, served = 0.1, set(), 0
    levels = {"warning": 0.02, "soft_timeout": 0.05, "hard_timeout": hard_timeout}
    options: dict[str, Any] = {"timeout_levels": levels, "hard_timeout_action": "release", "monitor_interval": 0.002}
    end = time.monotonic() + 3

    async def work(manager: GpuLockManager) -> None:
        nonlocal served
        while time.monotonic() < end:
            try:
                async with manager.lock(0, max_wait_time=None):
                    await asyncio.sleep(random.choice([0, 0.09, 0.1, 0.101, 0.11, 0.3]))
                served += 1
            except LeaseLostError as error:
                lost.add(error.fencing_token)

    async with GpuLockManager(redis_url, restart_grace=0) as one, GpuLockManager(redis_url, restart_grace=0) as other:
        async with GpuLockMonitor(one, **options), GpuLockMonitor(other, **options):
            await asyncio.gather(*(work(manager) for manager in (one, other) for _ in range(4)))
        events = await one.history(0, limit=1000)

    forced = {event.fencing_token: event for event in events if event.event != "released"}
    assert served
    assert lost
    assert lost <= forced.keys()
    assert {event.reason for event in forced.values()} == {"forced_by_monitor"}
    assert min(event.hold for event in forced.values()) >= hard_timeout
