"""The lock as users write it."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from typing import Any

import pytest
import redis

from aiogpulock import (
    ConfigError,
    GpuLockError,
    GpuLockManager,
    InvalidGpuError,
    LockTimeoutError,
    NestedLockError,
    QueueFullError,
    gpu_lock,
)
from aiogpulock.gpu.records import Gpu
from tests.servers import RealServer
from tests.unit.support import current, eventually, held_elsewhere, waiters


async def test_the_body_runs_under_the_lock_and_the_lock_is_free_afterwards(manager: GpuLockManager) -> None:
    async with manager.lock(0, task_name="asr") as lease:
        [lock] = await manager.status()
        assert lock.value == f"locked_by_asr:{lease.holder_id}"
        assert lock.fencing_token == lease.fencing_token
    [lock] = await manager.status()
    assert lock.value is None


async def test_acquire_and_release_are_a_pair(manager: GpuLockManager) -> None:
    lease = await manager.lock("cuda:0", task_name="pair").acquire()
    assert await current(manager) == f"locked_by_pair:{lease.holder_id}"
    assert (lease.gpu, lease.key, lease.task_name) == (Gpu("0", index=0), "gpu_lock:0", "pair")
    assert not lease.lost.is_set()
    assert lease.lost_reason is None
    lease.check()
    assert lease.env() == Gpu("0", index=0).env() | {
        "AIOGPULOCK_GPU": "0",
        "AIOGPULOCK_TOKEN": str(lease.fencing_token),
        "AIOGPULOCK_WITHIN": lease.holder_id,
    }
    await lease.release()
    assert await current(manager) is None


async def test_a_second_release_does_nothing_also_not_to_the_next_holder(manager: GpuLockManager) -> None:
    first = await manager.lock(0).acquire()
    await first.release()
    async with manager.lock(0, task_name="next") as second:
        await first.release()
        assert await current(manager) == f"locked_by_next:{second.holder_id}"
    assert manager.exception_stats.ownership_violations == 0


async def test_a_manager_forgets_the_locks_that_nobody_waits_for(
    manager: GpuLockManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiogpulock.index.MOST_REMEMBERED", 3)
    async with held_elsewhere(manager):
        with pytest.raises(LockTimeoutError):
            await manager.lock(0, max_wait_time=0.05).acquire()
    for gpu in range(1, 6):
        async with manager.lock(gpu):
            pass
    assert manager.parts.rooms == {}
    assert list(manager.parts.index._added) == ["3", "4", "5"]
    assert len(await manager.status()) == 6, "Redis still knows them"


async def test_the_index_forgets_ids_that_were_unused_for_a_month(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    index = "{gpu_lock}:index"
    redis_cleanup.zadd(index, {"long ago": time.time() - 31 * 24 * 3600, "of late": time.time() - 29 * 24 * 3600})
    async with manager.lock(0):
        assert redis_cleanup.zrange(index, 0, -1) == ["of late", "0"]


async def test_two_releases_at_once_are_one(manager: GpuLockManager) -> None:
    lease = await manager.lock(0).acquire()
    await asyncio.gather(*(lease.release() for _ in range(5)))
    assert await current(manager) is None
    assert manager.exception_stats.ownership_violations == 0


async def test_the_body_may_release_early(manager: GpuLockManager) -> None:
    async with manager.lock(0) as lease:
        await lease.release()
        assert await current(manager) is None


async def test_the_body_s_exception_comes_out_and_the_lock_is_free(manager: GpuLockManager) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with manager.lock(0):
            raise ZeroDivisionError
    assert not hasattr(caught.value, "__notes__")
    assert await current(manager) is None


async def test_each_holder_has_a_larger_token_and_a_fresh_id(manager: GpuLockManager) -> None:
    tokens, ids = [], set()
    for _ in range(20):
        async with manager.lock(0) as lease:
            tokens.append(lease.fencing_token)
            ids.add(lease.holder_id)
    assert tokens == sorted(set(tokens))
    assert len(ids) == 20


# one object, many tasks


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
            await waiters(manager, number + 1)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_one_object_serves_many_tasks_one_at_a_time(manager: GpuLockManager) -> None:
    lock = manager.lock(0)
    inside = most = 0

    async def work() -> int:
        nonlocal inside, most
        async with lock as lease:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            return lease.fencing_token

    tokens = await asyncio.gather(*(work() for _ in range(50)))
    assert most == 1
    assert len(set(tokens)) == 50


async def test_a_higher_priority_is_served_first_and_arrival_counts_within_one(manager: GpuLockManager) -> None:
    order: list[str] = []

    async def work(name: str, priority: int) -> None:
        async with manager.lock(0, priority=priority):
            order.append(name)

    async with manager.lock(0):
        tasks = []
        for name, priority in [("low", -1), ("first", 0), ("second", 0), ("high", 100)]:
            tasks.append(asyncio.create_task(work(name, priority)))
            await waiters(manager, len(tasks))
    await asyncio.gather(*tasks)
    assert order == ["high", "first", "second", "low"]


# nested entry


async def test_nested_entry_of_the_same_task_fails_at_once(manager: GpuLockManager) -> None:
    async with manager.lock(0) as lease:
        with pytest.raises(NestedLockError, match="wait for itself"):
            async with manager.lock(0):
                pass
        lease.check()
        assert await current(manager) == f"locked_by_{lease.task_name}:{lease.holder_id}"


async def test_nested_entry_fails_for_decorator_and_pair_too(manager: GpuLockManager) -> None:
    lock = manager.lock(0)

    @lock
    async def decorated() -> None: ...

    async with lock:
        with pytest.raises(NestedLockError):
            await decorated()
        with pytest.raises(NestedLockError):
            await lock.acquire()
    lease = await lock.acquire()
    with pytest.raises(NestedLockError):
        await decorated()
    await lease.release()
    await decorated()


async def test_another_gpu_is_not_nested(manager: GpuLockManager) -> None:
    async with manager.lock(0), manager.lock(1):
        assert {lock.gpu_id for lock in await manager.status() if lock.value} == {"0", "1"}


async def test_a_child_task_is_another_task_and_waits(manager: GpuLockManager) -> None:
    async def child() -> int:
        async with manager.lock(0) as lease:
            return lease.fencing_token

    async with manager.lock(0) as lease:
        task = asyncio.create_task(child())
        await waiters(manager, 1)
    assert await task > lease.fencing_token


# waiting and giving up


async def test_max_wait_time_over_names_position_holder_and_time_waited(manager: GpuLockManager) -> None:
    async with held_elsewhere(manager, task_name="asr:batch 7"):
        with pytest.raises(LockTimeoutError) as caught:
            await manager.lock(0, max_wait_time=0.3).acquire()
        [lock] = await manager.status()
    text = str(caught.value)
    assert text.startswith("GPU_LOCK_TIMEOUT: gpu_lock:0 not acquired within 0.")
    assert "max_wait_time 0.3 s" in text
    assert "position 1 of 1, held by 'asr:batch 7' on " in text
    assert re.search(r"pid \d+$", text)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, GpuLockError)
    assert lock.waiters == 0
    assert lock.stats["timeouts"] == 1


async def test_max_wait_time_zero_tries_once_and_says_who_holds_it(manager: GpuLockManager) -> None:
    lock = manager.lock(0, max_wait_time=0)
    async with held_elsewhere(manager, task_name="asr"):
        with pytest.raises(LockTimeoutError) as caught:
            await lock.acquire()
        [seen] = await manager.status()
        assert seen.waiters == 0
    assert str(caught.value) == (
        "GPU_LOCK_TIMEOUT: gpu_lock:0 is held by 'asr', 0 wait; max_wait_time=0 does not queue"
    )
    async with lock:
        pass


async def test_max_wait_time_none_waits_for_ever(manager: GpuLockManager) -> None:
    async with held_elsewhere(manager):
        task = asyncio.create_task(manager.lock(0, max_wait_time=None).acquire())
        await waiters(manager, 1)
    await (await task).release()


async def test_a_full_queue_refuses_the_next_waiter_and_only_that(manager: GpuLockManager) -> None:
    lock = manager.lock(0, max_waiters=2)

    async def work() -> None:
        async with lock:
            pass

    async with held_elsewhere(manager):
        tasks = [asyncio.create_task(work()) for _ in range(2)]
        await waiters(manager, 2)
        with pytest.raises(QueueFullError, match="2 wait, max_waiters is 2"):
            await lock.acquire()
        [seen] = await manager.status()
        assert seen.waiters == 2
    await asyncio.gather(*tasks)


# what is refused, and what is forgotten


@pytest.mark.parametrize(
    "gpu_id", [-1, "-1", True, "", "x" * 129, "two words", "line\n", 1.5, None, b"0", "gpu_lock:0"]
)
def test_a_bad_gpu_id_is_refused_before_any_connection(gpu_id: Any) -> None:
    with pytest.raises(InvalidGpuError, match="gpu_id"):
        gpu_lock(gpu_id)


async def test_the_key_of_a_lock_is_no_name_for_a_gpu(own_server: RealServer) -> None:
    for namespace, gpu_id in (("node", "node:0"), ("gpu_lock", "gpu_lock:0")):
        async with GpuLockManager(own_server.url, redis={"namespace": namespace}) as manager:
            with pytest.raises(InvalidGpuError, match=rf"'{gpu_id}' is a lock's key in Redis: .* gpu_lock\('0'\)"):
                await manager.lock(gpu_id).acquire()
    async with GpuLockManager(own_server.url, redis={"namespace": "cuda"}) as manager, manager.lock("cuda:0"):
        pass  # a device, whatever the namespace is called


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"priority": 101}, "from -100 to 100"),
        ({"priority": True}, "from -100 to 100"),
        ({"priority": 1.5}, "from -100 to 100"),
        ({"max_wait": 5}, "max_wait"),
        ({"max_wait_time": -1}, "max_wait_time"),
        ({"poll_interval": "2"}, "poll_interval"),
        ({"heartbeat": {"intervall": 1}}, "intervall"),
    ],
)
def test_a_bad_keyword_is_refused_before_any_connection(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        gpu_lock(0, **keywords)
    assert isinstance(caught.value, ValueError)


async def test_a_task_name_of_control_characters_reaches_nobody(manager: GpuLockManager) -> None:
    async with manager.lock(0, task_name="a\x1b[31m\nb" + "ü" * 300) as lease:
        assert "\x1b" not in lease.task_name
        assert "\n" not in lease.task_name
        assert len(lease.task_name.encode()) <= 256


async def test_a_forgotten_lease_is_released_as_leaked_with_a_warning(manager: GpuLockManager) -> None:
    with pytest.warns(ResourceWarning, match="'forgetful' was never released"):
        lease = await manager.lock(0, task_name="forgetful").acquire_for("nobody")
        del lease
        gc.collect()

    async def free() -> bool:
        return await current(manager) is None

    await eventually(free, description="the leaked lease to be released")
    assert manager.exception_stats.ownership_violations == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer can raise to nobody
async def test_a_forgotten_lease_is_released_also_where_warnings_are_errors(manager: GpuLockManager) -> None:
    lease = await manager.lock(0, task_name="forgetful").acquire_for("nobody")
    del lease
    gc.collect()

    async def free() -> bool:
        return await current(manager) is None

    await eventually(free, description="the leaked lease to be released")


@pytest.mark.parametrize("option", [{"task_name": 5}, {"cleanup": 5}, {"on_lost": "x"}, {"manager": 5}])
def test_an_option_of_the_wrong_type_is_refused_at_once(option: dict[str, Any]) -> None:
    [(name, value)] = option.items()
    with pytest.raises(ConfigError, match=re.escape(f"gpu_lock({name}={value!r}): must be ")):
        gpu_lock(0, **option)


async def test_a_lock_that_cannot_be_read_hides_no_other_from_status(
    manager: GpuLockManager, redis_cleanup: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with manager.lock(0):
        pass
    async with manager.lock(1):
        redis_cleanup.rpush("gpu_lock:0", "no lock")
        assert [lock.gpu_id for lock in await manager.status()] == ["1"]
        redis_cleanup.delete("gpu_lock:0")
    assert "gpu_lock:0 cannot be read" in caplog.text


async def test_status_finds_a_value_that_somebody_set_by_hand(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    [lock] = await manager.status()
    assert (lock.gpu_id, lock.value, lock.foreign) == ("7", "locked_by_x", True)
    redis_cleanup.delete("gpu_lock:7")


@pytest.mark.parametrize("blocked", [False, True])
async def test_a_holder_that_puts_its_lock_back_makes_it_known_again(
    manager: GpuLockManager, redis_cleanup: redis.Redis, blocked: bool
) -> None:
    async with manager.lock(0):
        await asyncio.sleep(0.1)
        redis_cleanup.flushall()  # and the connections stay
        if blocked:  # the guard thread puts it back
            while not redis_cleanup.exists("gpu_lock:0"):
                time.sleep(0.05)  # noqa: ASYNC251 - the loop is to be blocked
        await eventually(
            lambda: redis_cleanup.zrange("{gpu_lock}:index", 0, -1) == ["0"], description="it is known again"
        )


async def test_a_lock_in_use_is_made_known_again_each_minute(
    manager: GpuLockManager, redis_cleanup: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with manager.lock(0):
        pass
    redis_cleanup.flushall()
    later = time.time() + 61
    monkeypatch.setattr("aiogpulock.index.time.time", lambda: later)
    async with manager.lock(0):
        pass
    assert redis_cleanup.zrange("{gpu_lock}:index", 0, -1) == ["0"]
