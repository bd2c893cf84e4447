"""A lost lease reaches the body, and nothing else is changed by it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import redis

from aiogpulock import GpuLockManager, Lease, LeaseLostError
from tests.servers import RealServer
from tests.unit.support import FOREVER, current, eventually, force


async def test_a_forced_release_cancels_the_body(manager: GpuLockManager) -> None:
    cancelled = []
    with pytest.raises(LeaseLostError) as caught:
        async with manager.lock(0) as lease:
            try:
                await force(manager)
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError as error:
                cancelled.append(str(error))
                raise
    assert cancelled == ["GPU lease lost: forced"]
    assert (caught.value.reason, caught.value.fencing_token) == ("forced", lease.fencing_token)
    assert lease.lost.is_set()
    assert lease.lost_reason == "forced"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # nothing of the cancellation is left to come


async def test_another_s_value_under_the_key_ends_the_lease_and_stays(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    with pytest.raises(LeaseLostError) as caught:
        async with manager.lock(0):
            redis_cleanup.set("gpu_lock:0", "an older program", px=60_000)
            await asyncio.sleep(FOREVER)
    assert caught.value.reason == "not_owner"
    assert redis_cleanup.get("gpu_lock:0") == "an older program"
    redis_cleanup.delete("gpu_lock:0")  # nothing of ours is left beside it


async def test_a_server_that_stops_answering_ends_the_lease_at_its_local_deadline(own_server: RealServer) -> None:
    times = {"heartbeat": {"interval": 0.2, "timeout": 1.5}, "restart_grace": 0, "redis": {"connect_timeout": 0.5}}
    async with GpuLockManager(own_server.url, **times) as manager:
        loop = asyncio.get_running_loop()
        with pytest.raises(LeaseLostError) as caught:
            async with manager.lock(0):
                own_server.pause()
                started = loop.time()
                try:
                    await asyncio.sleep(FOREVER)
                finally:
                    took = loop.time() - started
                    own_server.resume()
        assert caught.value.reason == "lease_expired"
        assert took < 1.5, "the holder must stop before the server hands the lock on"


async def test_the_deadline_counts_without_a_heartbeat_too(own_server: RealServer) -> None:
    times = {"heartbeat": {"enabled": False}, "lock_timeout": 0.6, "restart_grace": 0}
    async with GpuLockManager(own_server.url, **times) as manager:
        with pytest.raises(LeaseLostError) as caught:
            async with manager.lock(0):
                await asyncio.sleep(FOREVER)
        assert caught.value.reason == "lease_expired"


async def test_the_body_s_own_exception_comes_out_with_the_loss_as_a_note(manager: GpuLockManager) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with manager.lock(0):
            try:
                await force(manager)  # the loss may arrive before this has ended
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                raise ZeroDivisionError from None
    [note] = caught.value.__notes__
    assert note.startswith("LeaseLostError: the lease on gpu_lock:0 ")
    assert "(forced, fencing token " in note


async def test_a_body_that_checks_gets_its_own_error_without_a_second_text(manager: GpuLockManager) -> None:
    with pytest.raises(LeaseLostError) as caught:
        async with manager.lock(0) as lease:
            try:
                await force(manager)  # the loss may arrive before this has ended
                await lease.lost.wait()
            except asyncio.CancelledError:
                lease.check()
    assert not hasattr(caught.value, "__notes__")


async def test_a_body_that_ends_normally_gives_the_loss(manager: GpuLockManager) -> None:
    with pytest.raises(LeaseLostError) as caught:
        async with manager.lock(0) as lease:
            try:
                await force(manager)  # the loss may arrive before this has ended
                await lease.lost.wait()
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                pass
    assert caught.value.reason == "forced"


async def test_a_loss_that_only_the_release_finds_is_told_as_well(
    own_server: RealServer,
) -> None:
    async with GpuLockManager(own_server.url, restart_grace=0, use_event_driven=False) as manager:
        with pytest.raises(LeaseLostError) as caught:
            async with manager.lock(0):
                await force(manager)  # no message arrives, and no beat is due: nothing cancels the body
        assert caught.value.reason == "forced"
        with own_server.client() as client, pytest.raises(LeaseLostError) as caught:
            async with manager.lock(0):
                client.set("gpu_lock:0", "an older program", px=60_000)
        assert caught.value.reason == "not_owner"


async def test_a_loss_just_before_the_body_ends_leaves_no_cancellation_behind(manager: GpuLockManager) -> None:
    task = asyncio.current_task()
    assert task is not None
    for _ in range(3):
        with pytest.raises(LeaseLostError):
            async with manager.lock(0) as lease:
                lease._hold.lose("forced")  # the body ends without another await
        assert task.cancelling() == 0
        await asyncio.sleep(0)


# what tells of a loss


async def test_the_pair_cancels_nothing_and_tells_by_lost_check_and_on_lost(manager: GpuLockManager) -> None:
    told: list[str] = []
    lease = await manager.lock(0, on_lost=told.append).acquire()
    await force(manager)
    await lease.lost.wait()
    assert told == ["forced"]
    assert lease.lost.is_set()
    assert lease.lost_reason == "forced"
    with pytest.raises(LeaseLostError) as caught:
        lease.check()
    assert caught.value.fencing_token == lease.fencing_token
    with pytest.raises(LeaseLostError):
        await lease.release()
    assert manager.exception_stats.ownership_violations == 0


async def test_a_release_that_is_the_first_to_hear_of_a_force_is_no_violation(
    manager: GpuLockManager, redis_url: str
) -> None:
    """As after a call that blocked the loop: the message is there, and nobody has read it."""

    async def force_from_outside() -> None:
        async with GpuLockManager(redis_url=redis_url) as operator:
            await force(operator)

    lease = await manager.lock(0).acquire()
    other = threading.Thread(target=lambda: asyncio.run(force_from_outside()))
    other.start()
    other.join()
    assert not lease.lost.is_set()
    with pytest.raises(LeaseLostError, match="forced"):
        await lease.release()
    assert manager.exception_stats.ownership_violations == 0


async def test_an_on_lost_that_raises_harms_nothing(manager: GpuLockManager, caplog: pytest.LogCaptureFixture) -> None:
    def fail(reason: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(LeaseLostError):
        async with manager.lock(0, on_lost=fail):
            await force(manager)
            await asyncio.sleep(FOREVER)
    assert "a listener failed at the loss of gpu_lock:0" in caplog.text


async def test_check_tells_another_thread(manager: GpuLockManager) -> None:
    async with manager.lock(1):
        lease = await manager.lock(0).acquire()
        seen: list[Callable[[], None] | LeaseLostError] = []
        go = threading.Event()

        def compute() -> None:
            lease.check()
            seen.append(lease.check)
            go.wait()
            try:
                lease.check()
            except LeaseLostError as error:
                seen.append(error)

        thread = threading.Thread(target=compute)
        thread.start()
        await eventually(lambda: seen, description="the thread to check once")
        await force(manager)
        await lease.lost.wait()
        go.set()
        await asyncio.to_thread(thread.join)
        assert [type(one) for one in seen[1:]] == [LeaseLostError]
        with pytest.raises(LeaseLostError):
            await lease.release()


# enter and exit in different tasks


async def lock_fixture(manager: GpuLockManager) -> AsyncIterator[Lease]:
    async with manager.lock(0) as lease:
        yield lease


async def test_enter_and_exit_may_run_in_different_tasks(manager: GpuLockManager) -> None:
    fixture = lock_fixture(manager)
    lease = await asyncio.create_task(anext(fixture))  # type: ignore[arg-type]
    assert await current(manager) == f"locked_by_{lease.task_name}:{lease.holder_id}"
    with pytest.raises(StopAsyncIteration):
        await asyncio.create_task(anext(fixture))  # type: ignore[arg-type]
    assert await current(manager) is None


async def test_a_loss_between_two_tasks_cancels_nobody_and_comes_out_at_exit(manager: GpuLockManager) -> None:
    fixture = lock_fixture(manager)
    lease = await asyncio.create_task(anext(fixture))  # type: ignore[arg-type]
    await force(manager)
    await lease.lost.wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with pytest.raises(LeaseLostError):
        await asyncio.create_task(anext(fixture))  # type: ignore[arg-type]


@pytest.fixture
async def gpu(manager: GpuLockManager) -> AsyncIterator[Lease]:
    async with manager.lock(0, task_name="fixture") as lease:
        yield lease


@pytest.mark.parametrize("round", [1, 2])
async def test_a_pytest_fixture_holds_the_lock_for_its_test(gpu: Lease, manager: GpuLockManager, round: int) -> None:
    assert await current(manager) == f"locked_by_fixture:{gpu.holder_id}"
    gpu.check()
