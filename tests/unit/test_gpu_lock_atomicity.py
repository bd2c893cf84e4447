"""Release is one step that compares, deletes and hands on: it frees its own lease, once, or changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis

from aiogpulock import GpuLockManager, LeaseLostError, ProtocolError
from tests.unit.support import current, eventually, waiters


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[GpuLockManager]:
    """Another program, as far as Redis can tell."""
    async with GpuLockManager(redis_url, restart_grace=0) as manager:
        yield manager


async def test_release_lock_ownership_verification(
    manager: GpuLockManager, other: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    async with manager.lock(0) as lease:
        hold, scripts = lease._hold, other.scripts

        def record() -> tuple[dict[str, str], str | None]:
            holder = redis_cleanup.hgetall("{gpu_lock:0}:holder")
            return {name: holder[name] for name in holder if name != "deadline"}, redis_cleanup.get("gpu_lock:0")

        before = record()
        for holder_id, token in [
            ("0" * 32, hold.token),
            ("0" * 32, hold.token - 1_000_000),
            (hold.id, hold.token - 1),
        ]:
            released = await scripts.release(hold.keys, hold.terms.script, holder_id, token, "normal")
            assert not released.ok
            assert released.detail == before[1], "the answer names the holder"
            assert record() == before
        lease.check()
    assert await current(manager) is None


async def test_a_release_after_the_loss_leaves_the_successor_alone(
    manager: GpuLockManager, other: GpuLockManager
) -> None:
    late = await manager.lock(0).acquire()
    assert await other.force_release(0)
    async with other.lock(0, task_name="successor") as lease:
        with pytest.raises(LeaseLostError) as caught:
            await late.release()
        assert caught.value.reason == "forced"
        assert await current(other) == f"locked_by_successor:{lease.holder_id}"
        lease.check()


async def test_a_live_holder_is_ended_by_force_also_where_its_key_was_deleted_by_hand(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    lease = await manager.lock(0).acquire()
    redis_cleanup.delete(lease.key)  # its record still keeps everybody out
    assert not await manager.force_release(0, holder_id="somebody else")
    assert await manager.force_release(0, holder_id=lease.holder_id)
    assert not await manager.force_release(0)
    with pytest.raises(LeaseLostError) as caught:
        await lease.release()
    assert caught.value.reason == "forced"


async def test_not_the_owner_at_release_is_a_loss_and_no_emergency(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    lease = await manager.lock(0, heartbeat={"interval": 10, "timeout": 60}).acquire()
    redis_cleanup.set("gpu_lock:0", "an older program", px=60_000)
    with pytest.raises(LeaseLostError) as caught:
        await lease.release()
    assert caught.value.reason == "not_owner"
    assert redis_cleanup.get("gpu_lock:0") == "an older program"
    stats = manager.exception_stats
    assert (stats.ownership_violations, stats.normal_release_failures, stats.emergency_releases) == (1, 0, 0)
    redis_cleanup.delete("gpu_lock:0", "{gpu_lock:0}:holder", "{gpu_lock:0}:heartbeat")


async def test_concurrent_release_no_race_condition(
    manager: GpuLockManager, other: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    for _ in range(30):
        lease = await manager.lock(0).acquire()
        waiting = [asyncio.create_task(other.lock(0).acquire()) for _ in range(2)]
        await waiters(other, 2)
        hold = lease._hold
        answers = await asyncio.gather(
            *(
                client.scripts.release(hold.keys, hold.terms.script, hold.id, hold.token, "normal")
                for client in (manager, other) * 10
            ),
            lease.release(),
        )
        assert all(answer.ok for answer in answers if answer is not None), "a repeated release is no failure"
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [task.done() for task in waiting] == [True, False], "one lock was freed, so one waiter was granted"
        for task in waiting:
            await (await task).release()
    events = redis_cleanup.xrange("{gpu_lock:0}:events")
    assert len(events) == 30 * 3, "each hold ended once"
    assert manager.exception_stats.ownership_violations == 0


async def test_a_release_and_an_expiry_at_once_free_the_lock_once(
    manager: GpuLockManager, other: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    lost = 0
    for _ in range(30):
        lease = await manager.lock(0, task_name="first").acquire()
        value = f"locked_by_first:{lease.holder_id}"
        keys, terms = lease._hold.keys, lease._hold.terms.script
        waiting = asyncio.create_task(other.lock(0).acquire())
        await waiters(other, 1)
        results = await asyncio.gather(
            other.scripts.reap(keys, terms, value, "reaped", "lease_expired", "a test"),
            lease.release(),
            return_exceptions=True,
        )
        ended, _ = results[0]  # type: ignore[misc]
        assert ended == isinstance(results[1], LeaseLostError), "exactly one of them ended it"
        lost += ended
        await (await waiting).release()
    assert len(redis_cleanup.xrange("{gpu_lock:0}:events")) == 60
    assert manager.exception_stats.ownership_violations <= lost


async def test_lua_script_error_handling(
    manager: GpuLockManager, redis_cleanup: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    manager.emergency_seconds = 0.2
    with pytest.raises(ZeroDivisionError) as caught:
        async with manager.lock(0) as lease:
            held = redis_cleanup.hgetall("{gpu_lock:0}:holder")
            fence = redis_cleanup.hgetall("{gpu_lock:0}:fence")
            redis_cleanup.set("{gpu_lock:0}:fence", "not a hash", px=60_000)
            raise ZeroDivisionError
    assert not hasattr(caught.value, "__notes__"), "the body's exception comes out as it was"
    stats = manager.exception_stats
    assert (stats.release_script_errors, stats.normal_release_failures, stats.emergency_releases) == (1, 1, 0)
    assert "WRONGTYPE" in caplog.text
    assert redis_cleanup.get("gpu_lock:0") == f"locked_by_{lease.task_name}:{lease.holder_id}", "all or nothing"
    assert redis_cleanup.hgetall("{gpu_lock:0}:holder")["id"] == held["id"]
    with pytest.raises(ProtocolError, match="WRONGTYPE"):
        await manager.force_release(0)
    redis_cleanup.delete("{gpu_lock:0}:fence")
    redis_cleanup.hset("{gpu_lock:0}:fence", mapping=fence)
    redis_cleanup.expire("{gpu_lock:0}:fence", 60)
    assert await manager.force_release(0)


async def test_a_server_that_forgot_the_scripts_is_told_them_again(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    async with manager.lock(0, heartbeat={"interval": 0.1, "timeout": 5}) as lease:
        redis_cleanup.script_flush()
        beat_at = lease._hold.beat_at
        await eventually(lambda: lease._hold.beat_at > beat_at, description="a beat")
        redis_cleanup.script_flush()
    assert await current(manager) is None
    assert manager.exception_stats.normal_release_failures == 0
