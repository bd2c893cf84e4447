"""Cancelled at any await, acquire and release leave nothing behind: no lock, no seat, no task, no connection."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

import pytest
import redis

from aiogpulock import GpuLockManager, LockTimeoutError, ManagerClosedError, clock
from tests.cancellation import Cut, Moment, Scene, awaited, ended, keys_of_use, moments, nothing, times
from tests.raw_scripts import RawLock
from tests.servers import RealServer
from tests.unit.support import eventually, waiters

KEYS = keys_of_use("0")


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[GpuLockManager]:
    """Another program, as far as Redis can tell."""
    async with GpuLockManager(redis_url, restart_grace=0) as manager:
        yield manager


@pytest.fixture
async def scene(manager: GpuLockManager, other: GpuLockManager, redis_cleanup: redis.Redis) -> Scene:
    async with manager.lock(0):
        pass  # everything that is started on first use is started
    await (await other.lock(0).acquire()).release()
    return Scene(manager, redis_cleanup)


@moments
@times
async def test_acquire_of_a_free_lock(scene: Scene, moment: Moment, more: int) -> None:
    for number in itertools.count(1):
        cut = Cut(number, moment, more=more)
        task = asyncio.create_task(awaited(cut(scene.manager.lock(0).acquire())))
        if not await ended(task, cut):
            await task.result().release()
            break
        await scene.left_nothing(f"await {number}")
    assert number > 1


@moments
@times
async def test_acquire_of_a_held_lock_whose_grant_comes_at_that_moment(
    scene: Scene, other: GpuLockManager, moment: Moment, more: int
) -> None:
    for number in itertools.count(1):
        lease = await other.lock(0).acquire()
        cut = Cut(number, moment, more=more, meanwhile=scene.hand_over(lease))
        task = asyncio.create_task(awaited(cut(scene.manager.lock(0).acquire())))
        await eventually(lambda cut=cut: cut.fired or _waits(scene.manager), description="the cut, or a seat")
        reached = cut.fired
        if not reached:
            task.cancel()  # it waits, and has no further await
        await asyncio.wait([task])
        assert task.cancelled()
        await lease.release()
        await scene.left_nothing(f"await {number}")
        if not reached:
            break

    assert number > 2


@moments
@times
async def test_acquire_of_a_held_lock_that_is_handed_on(
    scene: Scene, other: GpuLockManager, moment: Moment, more: int
) -> None:
    for number in itertools.count(1):
        lease = await other.lock(0).acquire()
        cut = Cut(number, moment, more=more)
        task = asyncio.create_task(awaited(cut(scene.manager.lock(0).acquire())))
        await eventually(lambda task=task: task.done() or _waits(scene.manager), description="the cut, or a seat")
        await lease.release()
        if not await ended(task, cut):
            await task.result().release()
            break
        await scene.left_nothing(f"await {number}")
    assert number > 3


@moments
@times
@pytest.mark.parametrize("granted", [False, True], ids=["still held", "granted just then"])
async def test_giving_up_after_max_wait_time(
    scene: Scene, other: GpuLockManager, moment: Moment, more: int, granted: bool
) -> None:
    for number in itertools.count(1):
        lease = await other.lock(0).acquire()
        hand_over = scene.hand_over(lease) if granted else nothing
        scene.go_cold()
        # A cut of the wait itself would be one of the tests above: the grant comes while it gives up.
        cut = Cut(number, moment, more=more, meanwhile=hand_over)
        task = asyncio.create_task(awaited(cut(scene.manager.lock(0, max_wait_time=0.03).acquire())))
        await asyncio.wait([task])
        assert task.cancelled() == cut.fired or isinstance(task.exception(), LockTimeoutError)
        await lease.release()
        await scene.left_nothing(f"await {number}")
        if not cut.fired:
            break
    assert number > 3


@moments
@times
@pytest.mark.parametrize("waiting", [False, True], ids=["nobody waits", "somebody waits"])
@pytest.mark.parametrize("cold", [False, True], ids=["connected", "not connected"])
async def test_leaving_the_body(
    scene: Scene, other: GpuLockManager, moment: Moment, more: int, waiting: bool, cold: bool
) -> None:
    async def enter_and_leave(cut: Cut) -> None:
        lock = scene.manager.lock(0)
        await lock.__aenter__()
        entered.set()
        await go.wait()
        await cut(lock.__aexit__(None, None, None))

    for number in itertools.count(1):
        entered, go, cut = asyncio.Event(), asyncio.Event(), Cut(number, moment, more=more)
        task = asyncio.create_task(enter_and_leave(cut))
        await entered.wait()
        if waiting:
            waiter = asyncio.create_task(other.lock(0).acquire())
            await waiters(other, 1)
        if cold:
            scene.go_cold()
        go.set()
        reached = await ended(task, cut)
        if waiting:
            await (await waiter).release()
        await scene.left_nothing(f"await {number}")
        if not reached:
            await task
            break
    assert number > 1
    assert scene.manager.exception_stats.ownership_violations == 0


@moments
@times
async def test_a_beat_of_the_heartbeat(scene: Scene, moment: Moment, more: int) -> None:
    for number in itertools.count(1):
        lease = await scene.manager.lock(0).acquire()
        cut = Cut(number, moment, more=more)
        task = asyncio.create_task(awaited(cut(scene.manager.parts.heartbeat._beat())))
        reached = await ended(task, cut)
        lease.check()
        await lease.release()
        await scene.left_nothing(f"await {number}")
        if not reached:
            break
    assert number > 1


@moments
@times
async def test_a_beat_that_must_re_assert(scene: Scene, moment: Moment, more: int) -> None:
    for number in itertools.count(1):
        lease = await scene.manager.lock(0).acquire()
        scene.client.delete(*KEYS)
        cut = Cut(number, moment, more=more)
        task = asyncio.create_task(awaited(cut(scene.manager.parts.heartbeat._beat())))
        reached = await ended(task, cut)
        assert await scene.manager.parts.heartbeat._beat(), "the next beat settles it"
        assert scene.client.get("gpu_lock:0") == f"locked_by_{lease.task_name}:{lease.holder_id}"
        lease.check()
        await lease.release()
        await scene.left_nothing(f"await {number}")
        if not reached:
            break

    assert number > 2


@moments
@pytest.mark.parametrize("trouble", ["no trouble", "forgotten", "refused"])
async def test_the_heartbeat_itself(scene: Scene, moment: Moment, trouble: str) -> None:
    """Cut at its beat, its re-assertion, its pause after a failure and its sleep; the next lease starts it anew."""
    heartbeat, client = scene.manager.parts.heartbeat, scene.client

    def ended_or_sleeps(cut: Cut) -> bool:
        if "errorstat_NOREPLICAS" in client.info("errorstats"):
            client.config_set("min-replicas-to-write", 0)  # one failure is enough
        return cut.fired or bool(heartbeat._wake._waiters)

    for number in itertools.count(1):
        lease = await scene.manager.lock(0).acquire()
        await _cancelled(heartbeat._task)
        if trouble == "forgotten":
            client.delete(*KEYS)
        client.config_resetstat()
        client.config_set("min-replicas-to-write", int(trouble == "refused"))
        try:
            cut = Cut(number, moment)
            heartbeat.beat_now()
            heartbeat._task = asyncio.create_task(awaited(cut(heartbeat._run())))
            await eventually(lambda cut=cut: ended_or_sleeps(cut), description="the cut, or its sleep")
        finally:
            client.config_set("min-replicas-to-write", 0)
        if reached := cut.fired:
            await asyncio.wait([heartbeat._task])
            assert heartbeat._task.cancelled()
        again_at = clock.now()
        async with scene.manager.lock(1):
            assert not heartbeat._task.done(), f"cut at await {number}, and not started again"
            heartbeat.beat_now()
            await eventually(lambda at=again_at, one=lease: one._hold.beat_at >= at, description="a beat for the first")
        assert scene.client.get("gpu_lock:0") == f"locked_by_{lease.task_name}:{lease.holder_id}"
        lease.check()
        await lease.release()
        await _cancelled(heartbeat._task)  # it would sleep on
        await scene.left_nothing(f"await {number}")
        if not reached:
            break

    assert number > 2


@moments
async def test_the_start_of_a_manager(own_server: RealServer, moment: Moment) -> None:
    with own_server.client() as client:
        for number in itertools.count(1):
            manager = GpuLockManager(own_server.url, restart_grace=0)
            cut = Cut(number, moment)
            task = asyncio.create_task(awaited(cut(manager.started())))
            reached = await ended(task, cut)
            if reached:
                async with manager.lock(0):  # a later start is not harmed
                    pass
            await manager.close()
            await _nobody_connected(client)
            if not reached:
                break

    assert number > 2


@moments
@times
async def test_the_close_of_a_manager_that_holds_waits_and_beats(
    own_server: RealServer, moment: Moment, more: int
) -> None:
    before = set(asyncio.all_tasks())
    with own_server.client() as client:
        for number in itertools.count(1):
            manager = GpuLockManager(own_server.url, restart_grace=0)
            leases = [await manager.lock(gpu).acquire_for("somebody") for gpu in range(3)]
            cut = Cut(number, moment, more=more)
            task = asyncio.create_task(awaited(cut(manager.close())))
            reached = await ended(task, cut)
            assert asyncio.all_tasks() <= before, f"a task is left after await {number}"
            assert not client.keys("gpu_lock:*")
            await _nobody_connected(client)
            for lease in leases:
                with suppress(Exception):
                    await lease.release()
            if not reached:
                break

    assert number > 2


@moments
@times
@pytest.mark.parametrize("granted", [False, True], ids=["still held", "granted just then"])
async def test_the_close_of_a_manager_with_waiters(
    own_server: RealServer, moment: Moment, more: int, granted: bool
) -> None:
    before = set(asyncio.all_tasks())
    with own_server.client() as client:
        lock = RawLock(client)
        for number in itertools.count(1):
            holder = f"holder {number}"
            hand_over = partial(lock.release, holder, lock.hold(holder))
            manager = GpuLockManager(own_server.url, restart_grace=0)
            await manager.started()
            waiting = [asyncio.create_task(manager.lock(0).acquire()) for _ in range(2)]
            await eventually(lambda manager=manager: _waits(manager), description="a waiter in its seat")
            cut = Cut(number, moment, more=more, meanwhile=hand_over if granted else nothing)
            task = asyncio.create_task(awaited(cut(manager.close())))
            reached = await ended(task, cut)
            await asyncio.wait(waiting)
            assert {type(waiter.exception()) for waiter in waiting} == {ManagerClosedError}
            assert asyncio.all_tasks() <= before, f"a task is left after await {number}"
            hand_over()
            assert [key for key in KEYS if client.exists(key)] == [], f"left after await {number}"
            await _nobody_connected(client)
            if not reached:
                break

    assert number > 2


async def test_a_thousand_acquires_cancelled_at_random_moments_leave_nothing(
    scene: Scene, other: GpuLockManager
) -> None:
    random_moment = random.Random(2)
    lock, held = scene.manager.lock(0, max_wait_time=None), 0

    async def work() -> None:
        nonlocal held
        async with lock:
            held += 1
            await asyncio.sleep(random_moment.uniform(0, 0.003))

    for _ in range(10):
        tasks = [asyncio.create_task(work()) for _ in range(100)]
        for task in random_moment.sample(tasks, len(tasks)):
            if random_moment.random() < 0.7:
                await asyncio.sleep(random_moment.uniform(0, 0.004))
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
    await scene.left_nothing("1,000 cancellations")
    assert held > 0, "some must have been cancelled inside the body"
    async with other.lock(0, max_wait_time=0):
        pass


def _waits(manager: GpuLockManager) -> bool:
    """Whether a waiter has its seat and sleeps."""
    return any(
        waiter.reply is not None and waiter._woken._waiters
        for room in manager.parts.rooms.values()
        for waiter in room._waiters.values()
    )


async def _cancelled(task: asyncio.Task[None] | None) -> None:
    assert task is not None
    task.cancel()
    await asyncio.wait([task])


async def _nobody_connected(client: redis.Redis) -> None:
    def nobody() -> bool:
        return not [one for one in client.client_list() if one["name"].startswith("aiogpulock")]

    await eventually(nobody, description="every connection to be closed")
