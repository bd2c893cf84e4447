"""Cancelled at any await while the GPU is looked at or its memory waited for, nothing is left behind."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
import redis

from aiogpulock import DeviceBusyError, GpuLockManager
from aiogpulock.keys import lock_keys
from tests.cancellation import Cut, Moment, Scene, awaited, ended, moments, times
from tests.nvml_sim import GiB, Simulation, uuid
from tests.unit.support import eventually

policies = pytest.mark.parametrize("policy", ["report", "hold", "quarantine"])


def memory(policy: str, **more: Any) -> dict[str, Any]:
    return {"policy": policy, "settle_time": 0.02, **more}


@pytest.fixture
async def scene(gpu_manager: GpuLockManager, redis_cleanup: redis.Redis) -> Scene:
    async with gpu_manager.lock(0, gpu_memory={"policy": "off"}):
        pass  # everything that is started on first use is started
    return Scene(gpu_manager, redis_cleanup, uuid(0))


async def _no_care_left(scene: Scene) -> None:
    caretaker = scene.manager.caretaker
    await eventually(lambda: not caretaker._cares, description="no hold to be cared for")


@moments
@times
@policies
@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "after a crash"])
async def test_acquire(scene: Scene, moment: Moment, more: int, policy: str, dirty: bool) -> None:
    fence = lock_keys(uuid(0), "gpu_lock").fence
    for number in itertools.count(1):
        if dirty:
            scene.client.hset(fence, "dirty", "1")
        cut = Cut(number, moment, more=more)
        task = asyncio.create_task(awaited(cut(scene.manager.lock(0, gpu_memory=memory(policy)).acquire())))
        if not await ended(task, cut):
            await task.result().release()
            break
        await scene.left_nothing(f"await {number}")
        await _no_care_left(scene)
        if dirty:
            assert scene.client.hget(fence, "dirty") == "1", f"await {number}: nobody has looked to the end"
    assert number > 1
    assert not scene.client.hget(fence, "dirty"), "the last one did"


@moments
@times
@policies
async def test_leaving_with_memory_that_stays(
    scene: Scene, sim: Simulation, moment: Moment, more: int, policy: str
) -> None:
    for number in itertools.count(1):
        sim.use(0, 0)
        lease = await scene.manager.lock(0, gpu_memory=memory(policy)).acquire()
        sim.use(0, GiB)
        cut = Cut(number, moment, more=more)
        task = asyncio.create_task(awaited(cut(lease.release())))
        reached = await ended(task, cut)
        sim.use(0, 0)
        await scene.left_nothing(f"await {number}")
        await _no_care_left(scene)
        if not reached:
            break
    assert number > 1


@moments
async def test_acquire_of_a_gpu_that_others_use(scene: Scene, sim: Simulation, moment: Moment) -> None:
    sim.use(0, GiB, pid=1)
    for number in itertools.count(1):
        cut = Cut(number, moment)
        lock = scene.manager.lock(0, gpu_memory=memory("off", on_busy="raise"))
        task = asyncio.create_task(awaited(cut(lock.acquire())))
        await asyncio.wait([task])
        await scene.left_nothing(f"await {number}")
        await _no_care_left(scene)
        if not cut.fired:
            assert isinstance(task.exception(), DeviceBusyError)
            break
        assert task.cancelled()
    assert number > 1
