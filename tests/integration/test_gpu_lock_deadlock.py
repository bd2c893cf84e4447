"""Nothing that happens to a holder keeps the others out for ever."""

from __future__ import annotations

import asyncio

import pytest
import redis

from aiogpulock import GpuLockManager
from tests import tts
from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.register import RegisterProcess
from tests.servers import RealServer
from tests.tts import TtsWorker
from tests.workers import Crew

pytestmark = pytest.mark.integration


async def test_no_deadlock_on_task_crash(manager: GpuLockManager, redis_url: str, crew: Crew, lock: RawLock) -> None:
    """A body that raises, a task that is cancelled and a process that is killed: the next one gets the lock."""
    entered: list[int] = []

    async def crash(number: int) -> None:
        async with manager.lock(0):
            entered.append(number)
            if number % 3 == 0:
                raise RuntimeError("out of memory")
            if number % 3 == 1:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(1)

    results = await asyncio.gather(*(crash(number) for number in range(9)), return_exceptions=True)
    assert sorted(entered) == list(range(9))
    kinds = [RuntimeError, asyncio.CancelledError, type(None)]
    assert [type(result) for result in results] == kinds * 3

    killed = await asyncio.to_thread(crew.start, redis_url)
    killed.tell("acquire", name="killed")
    await asyncio.to_thread(killed.expect, "held")
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waiter = group.create_task(crash(2))
        await asyncio.to_thread(wait_until, lambda: lock.queue, description="one waiter")
        killed.kill()
        await waiter


async def test_concurrent_lock_acquisition(redis_url: str, redis_cleanup: redis.Redis, manager: GpuLockManager) -> None:
    """100 tasks of two managers: one at a time, each once, tokens strictly increasing."""
    inside = most = 0
    served: list[tuple[int, int]] = []

    async def work(which: GpuLockManager, number: int) -> None:
        nonlocal inside, most
        async with which.lock(0) as lease:
            inside += 1
            most = max(most, inside)
            served.append((lease.fencing_token, number))
            await asyncio.sleep(0)
            inside -= 1

    async with GpuLockManager(redis_url, restart_grace=1) as other:
        managers = (manager, other)
        await asyncio.gather(*(work(managers[number % 2], number) for number in range(100)))
    assert most == 1
    assert sorted(number for _, number in served) == list(range(100))
    tokens = [token for token, _ in served]
    assert tokens == sorted(set(tokens))


def test_two_processes_of_50_tasks_never_overlap(server: RealServer, crew: Crew, register: RegisterProcess) -> None:
    workers = [crew.start(server.url, register=register.path) for _ in range(2)]
    for worker in workers:
        worker.tell("crowd", count=50)
    served = [worker.expect("served")["served"] for worker in workers]
    assert [len(part) for part in served] == [50, 50]
    report = register.report()
    assert report["overlaps"] == []
    assert report["stale"] == 0
    assert report["tokens"] == sorted(token for part in served for token, _ in part)


def test_indextts_task_failure_integration(server: RealServer, redis_cleanup: redis.Redis) -> None:
    """A task of a real Celery worker fails on the GPU: the next task has it at once, and nothing is left."""
    with TtsWorker(server, "prefork") as worker, tts.client(server) as app:
        failed = app.send_task("indextts.generate", ("CUDA out of memory",), {"gpu_id": 0})
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            failed.get(timeout=30)
        spoken = app.send_task("indextts.generate", ("hello",), {"gpu_id": 0})
        assert spoken.get(timeout=30)["audio"] == "olleh"
        assert not redis_cleanup.exists("gpu_lock:0")
        events = redis_cleanup.xrange("{gpu_lock:0}:events")
        assert [event["reason"] for _, event in events] == ["task_failure", "normal"]
        assert "NameError" not in worker.log
