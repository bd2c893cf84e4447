"""A lost lease beside the cancellations of others: timeouts, scopes, task groups. Each gets what is its own."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from aiogpulock import GpuLockManager, Lease, LeaseLostError
from tests.unit.support import FOREVER, current, force


async def test_an_outside_cancellation_wins(manager: GpuLockManager) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with manager.lock(0) as lease:
            inside.set()
            try:
                await lease.lost.wait()
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                task.cancel("from outside")
                raise

    task = asyncio.create_task(work())
    await inside.wait()
    await force(manager)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_an_outside_cancellation_wins_also_when_both_come_as_one(manager: GpuLockManager) -> None:
    inside = asyncio.Event()
    leases: list[Lease] = []

    async def work() -> None:
        async with manager.lock(0) as lease:
            leases.append(lease)
            inside.set()
            await asyncio.sleep(FOREVER)

    task = asyncio.create_task(work())
    await inside.wait()
    leases[0]._hold.lose("forced")
    task.cancel("from outside")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_an_outside_cancellation_alone_is_no_loss(manager: GpuLockManager) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with manager.lock(0):
            inside.set()
            await asyncio.sleep(FOREVER)

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await current(manager) is None


@pytest.mark.parametrize("lost", [False, True])
async def test_asyncio_timeout_around_and_inside_the_lock_behaves_as_without_us(
    manager: GpuLockManager, lost: bool
) -> None:
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(LeaseLostError if lost else TimeoutError):
        async with asyncio.timeout(FOREVER if lost else 0.2), manager.lock(0):
            if lost:
                await force(manager)
            await asyncio.sleep(FOREVER)
    assert task.cancelling() == 0
    with pytest.raises(LeaseLostError if lost else TimeoutError):
        async with manager.lock(0), asyncio.timeout(FOREVER if lost else 0.2):
            if lost:
                await force(manager)
            await asyncio.sleep(FOREVER)
    assert task.cancelling() == 0
    assert await current(manager) is None


@pytest.mark.parametrize("lost", [False, True])
async def test_anyio_scopes_around_and_inside_the_lock_behave_as_without_us(
    manager: GpuLockManager, lost: bool
) -> None:
    async def body() -> None:
        if lost:
            await force(manager)
        await anyio.sleep(FOREVER)

    async def around() -> None:
        with anyio.fail_after(FOREVER if lost else 0.2):
            async with manager.lock(0):
                await body()

    async def inside() -> None:
        async with manager.lock(0):
            with anyio.fail_after(FOREVER if lost else 0.2):
                await body()

    task = asyncio.current_task()
    assert task is not None
    for work in (around, inside):
        with pytest.raises(LeaseLostError if lost else TimeoutError):
            await work()
        assert task.cancelling() == 0
        assert await current(manager) is None
    with anyio.move_on_after(0.2) as scope:
        async with manager.lock(0):
            await anyio.sleep(FOREVER)
    assert scope.cancelled_caught
    assert await current(manager) is None


@pytest.mark.parametrize("group", ["asyncio", "anyio"])
async def test_a_loss_ends_a_task_group_inside_the_body(manager: GpuLockManager, group: str) -> None:
    ended = []

    async def child() -> None:
        try:
            await asyncio.sleep(FOREVER)
        finally:
            ended.append(True)

    with pytest.raises(LeaseLostError):
        async with manager.lock(0):
            if group == "asyncio":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(child())
                    await force(manager)
            else:
                async with anyio.create_task_group() as scopes:
                    scopes.start_soon(child)
                    await force(manager)
    assert ended == [True]


async def test_a_loss_in_one_task_of_a_group_is_that_task_s_error(manager: GpuLockManager) -> None:
    async def work() -> None:
        async with manager.lock(0):
            await force(manager)
            await asyncio.sleep(FOREVER)

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(work())
            tasks.create_task(asyncio.sleep(FOREVER))
    assert [type(error) for error in caught.value.exceptions] == [LeaseLostError]
