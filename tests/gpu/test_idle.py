"""A lock whose GPU has nothing to do is told of; one that computes, or that cannot be read, is not."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pynvml
import redis

from aiogpulock import GpuLockManager, GpuLockMonitor
from aiogpulock.liveness import this_process
from aiogpulock.monitor import Round
from tests.nvml_sim import Simulation, uuid
from tests.raw_scripts import RawLock
from tests.unit.support import eventually

LEVELS: dict[str, Any] = {"warning": 0.2, "soft_timeout": 10, "hard_timeout": 20}


async def test_an_idle_holder_is_told_of_until_it_computes(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    monitor = GpuLockMonitor(gpu_manager, timeout_levels=LEVELS)

    async def idle() -> Round | None:
        seen = await monitor.round()
        return seen if seen.idle else None

    async with gpu_manager.lock(0, task_name="sleeper"):
        assert (await monitor.round()).idle == ()  # not for long
        seen = await eventually(idle, description="the holder to be found idle")
        assert [(alert.type, alert.task_name) for alert in seen.idle] == [("holder_idle", "sleeper")]

        sim.device(0).utilization = 35
        assert (await monitor.round()).idle == ()
        sim.device(0).utilization = 0
        assert (await monitor.round()).idle == ()  # its time begins anew
    assert (await monitor.round()).idle == ()


async def test_a_gpu_that_cannot_be_read_is_not_idle(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    monitor = GpuLockMonitor(gpu_manager, timeout_levels=LEVELS)
    sim.call("utilization").error = pynvml.NVML_ERROR_NOT_SUPPORTED
    async with gpu_manager.lock(0):
        await monitor.round()
        await asyncio.sleep(LEVELS["warning"])
        seen = await monitor.round()
    assert (seen.idle, seen.error) == ((), "")


async def test_where_nvml_is_switched_off_it_is_not_asked(
    redis_url: str, redis_cleanup: redis.Redis, sim: Simulation
) -> None:
    async with GpuLockManager(redis_url, gpu_memory={"nvml": "off"}, restart_grace=0) as manager, manager.lock(0):
        await GpuLockMonitor(manager).round()
    assert sim.call("utilization").count == 0


async def test_the_gpu_of_another_host_is_not_judged_by_one_of_the_same_name_here(
    gpu_manager: GpuLockManager, sim: Simulation, redis_cleanup: redis.Redis
) -> None:
    elsewhere = msgspec.json.encode(msgspec.structs.replace(this_process(), boot="another")).decode()
    lock = RawLock(redis_cleanup, uuid(0))
    token = lock.hold("h", process=elsewhere)
    monitor = GpuLockMonitor(gpu_manager, timeout_levels=LEVELS)
    await monitor.round()
    await asyncio.sleep(LEVELS["warning"])
    assert (await monitor.round()).idle == ()
    lock.release("h", token)
