"""The lock as users write it."""

from __future__ import annotations

import asyncio

import pytest

from aiogpulock import GpuLockManager, NestedLockError


async def test_the_body_runs_under_the_lock_and_the_lock_is_free_afterwards(manager: GpuLockManager) -> None:
    async with manager.lock(0, task_name="asr") as lease:
        [lock] = await manager.status()
        assert lock.value == f"locked_by_asr:{lease.holder_id}"
        assert lock.fencing_token == lease.fencing_token
    [lock] = await manager.status()
    assert lock.value is None


async def test_nested_entry_of_the_same_task_fails_at_once(manager: GpuLockManager) -> None:
    async with manager.lock(0):
        with pytest.raises(NestedLockError, match="wait for itself"):
            async with manager.lock(0):
                pass


async def test_tasks_take_turns_in_order_of_arrival(manager: GpuLockManager) -> None:
    order: list[int] = []
    lock = manager.lock(0)

    async def work(number: int) -> None:
        async with lock:
            order.append(number)

    async with manager.lock(0):
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(work(number)))
            while (await manager.status())[0].waiters <= number:
                await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
