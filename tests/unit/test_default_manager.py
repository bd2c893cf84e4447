"""`gpu_lock(0)` without a manager: one per event loop, made on first use and gone with the loop."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import uvloop

from aiogpulock import GpuLockManager, ManagerClosedError, gpu_lock
from aiogpulock.default import default_manager
from tests.helpers import wait_until
from tests.servers import RealServer
from tests.unit.support import waiters

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _url(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> Iterator[None]:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("AIOGPULOCK_RESTART_GRACE", "0")
    yield
    gc.collect()  # what was not closed warns in its own test


def run(program: str, *options: str) -> str:
    """What `program` prints, under every warning that Python has; it must say nothing else."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *options, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


async def enter() -> int:
    async with gpu_lock(0) as lease:
        return lease.fencing_token


USE = """
import asyncio
from aiogpulock import gpu_lock
async def main():
    async with gpu_lock(0):
        print("in")
"""


def test_asyncio_run_ends_without_a_word(redis_cleanup: redis.Redis) -> None:
    assert run(USE + "asyncio.run(main())") == "in\n"

    def nobody_is_connected() -> bool:
        return not [one for one in redis_cleanup.client_list() if one["name"].startswith("aiogpulock")]

    wait_until(nobody_is_connected, description="the server to notice that the program has ended")


def test_two_runs_in_a_row_end_without_a_word(redis_cleanup: redis.Redis) -> None:
    assert run(USE + "asyncio.run(main())\nasyncio.run(main())") == "in\nin\n"


def test_uvloop_ends_without_a_word(redis_cleanup: redis.Redis) -> None:
    # uvloop itself warns in development mode of what asyncio deprecates.
    program = USE.replace("import asyncio", "import asyncio, uvloop") + (
        "with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:\n    runner.run(main())"
    )
    assert run(program) == "in\n"


def test_waiters_and_holders_of_an_ending_loop_leave_nothing(redis_cleanup: redis.Redis) -> None:
    program = """
import asyncio
from aiogpulock import gpu_lock
async def hold():
    async with gpu_lock(0):
        await asyncio.sleep(60)
async def main():
    tasks = [asyncio.create_task(hold()) for _ in range(5)]
    await asyncio.sleep(0.5)
    print("end", len(tasks))
asyncio.run(main())
"""
    assert run(program) == "end 5\n"


def test_a_lease_that_outlives_its_loop_is_released_with_it(redis_cleanup: redis.Redis) -> None:
    kept = []

    async def main() -> None:
        kept.append(await gpu_lock(0).acquire())

    asyncio.run(main())
    assert redis_cleanup.get("gpu_lock:0") is None


def test_uvloop_runs_the_core(redis_cleanup: redis.Redis) -> None:
    order: list[int] = []

    async def work(number: int) -> None:
        async with gpu_lock(0):
            order.append(number)

    async def main() -> None:
        async with gpu_lock(0):
            tasks = []
            for number in range(5):
                tasks.append(asyncio.create_task(work(number)))
                await waiters(await default_manager(), number + 1)
        await asyncio.gather(*tasks)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("number", range(50))
async def test_fifty_tests_with_a_loop_each(number: int, redis_cleanup: redis.Redis) -> None:
    assert await enter() > 0


async def test_one_loop_has_one_manager(redis_cleanup: redis.Redis) -> None:
    first = await default_manager()
    await enter()
    assert await default_manager() is first
    await first.close()
    second = await default_manager()
    assert second is not first, "a closed one is replaced"
    await enter()


def test_a_loop_in_another_thread_has_its_own(redis_cleanup: redis.Redis) -> None:
    tokens: list[int] = []

    async def main() -> None:
        thread = threading.Thread(target=lambda: tokens.append(asyncio.run(enter())))
        async with gpu_lock(1):
            thread.start()
            tokens.append(await enter())
            await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert len(set(tokens)) == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_makes_its_own_and_leaves_the_parent_s_alone(redis_cleanup: redis.Redis) -> None:
    async def main() -> None:
        async with gpu_lock(0, max_wait_time=0) as lease:
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(read)
                os.write(write, _in_child().encode())
                os._exit(0)
            os.close(write)
            answer = await asyncio.to_thread(lambda: os.read(read, 1000).decode())
            os.close(read)
            await asyncio.to_thread(os.waitpid, pid, 0)
            assert answer == "entered 1, refused 0"
            lease.check()
            [lock] = [one for one in await (await default_manager()).status() if one.gpu_id == "0"]
            assert lock.value == f"locked_by_{lease.task_name}:{lease.holder_id}"

    asyncio.run(main())


def _in_child() -> str:
    """What a forked child can do: GPU 1 is free, and GPU 0 is its parent's."""
    words: list[str] = []

    async def child() -> None:
        async with gpu_lock(1, max_wait_time=0):
            words.append("entered 1")
        try:
            async with gpu_lock(0, max_wait_time=0):
                words.append("entered 0")
        except TimeoutError:
            words.append("refused 0")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.events._set_running_loop(None)
        try:
            asyncio.run(child())
        except BaseException as error:
            words.append(repr(error))
    return ", ".join(words)


# managers of one's own


async def test_a_closed_manager_says_so(redis_url: str, redis_cleanup: redis.Redis) -> None:
    manager = GpuLockManager(redis_url, restart_grace=0)
    async with manager.lock(0):
        pass
    await manager.close()
    await manager.close()
    with pytest.raises(ManagerClosedError, match="is closed: make a new one"):
        await manager.lock(0).acquire()
    with pytest.raises(ManagerClosedError):
        await manager.status()


def test_a_manager_of_another_loop_says_so(redis_url: str, redis_cleanup: redis.Redis) -> None:
    manager = GpuLockManager(redis_url, restart_grace=0)

    async def use() -> None:
        async with manager.lock(0):
            pass

    async def first() -> None:
        await use()
        thread_error: list[BaseException] = []

        def other_loop() -> None:
            try:
                asyncio.run(use())
            except ManagerClosedError as error:
                thread_error.append(error)

        await asyncio.to_thread(other_loop)
        assert "belongs to another event loop" in str(thread_error[0])
        await manager.close()

    asyncio.run(first())


async def test_a_manager_that_closes_ends_its_waiters_and_tells_its_bodies(own_server: RealServer) -> None:
    manager = GpuLockManager(own_server.url, restart_grace=0)
    inside = asyncio.Event()

    async def hold() -> None:
        async with manager.lock(0):
            inside.set()
            await asyncio.sleep(60)

    async def wait() -> None:
        async with manager.lock(0):
            pass

    holder = asyncio.create_task(hold())
    await inside.wait()
    waiter = asyncio.create_task(wait())
    await waiters(manager, 1)
    await manager.close()
    done, _ = await asyncio.wait([holder, waiter], timeout=10)
    with own_server.client() as client:
        left = client.keys("gpu_lock:*"), client.exists("{gpu_lock:0}:queue")
        connected = [one for one in client.client_list() if one["name"].startswith("aiogpulock")]
    for task in {holder, waiter} - done:
        task.cancel()
    assert done == {holder, waiter}
    assert "LeaseLostError" in repr(holder.exception()), "a body must not go on unprotected"
    assert isinstance(waiter.exception(), ManagerClosedError)
    assert left == ([], 0)
    assert connected == []


async def test_a_manager_that_closes_ends_waiters_whose_holder_is_elsewhere(
    redis_url: str, redis_cleanup: redis.Redis
) -> None:
    manager = GpuLockManager(redis_url, restart_grace=0)
    async with GpuLockManager(redis_url, restart_grace=0) as other, other.lock(0):
        waiting = [asyncio.create_task(manager.lock(0).acquire_for(number)) for number in range(20)]
        await waiters(other, 20)
        await manager.close()
        assert not redis_cleanup.exists("{gpu_lock:0}:queue")
        await asyncio.wait(waiting)
        assert {type(task.exception()) for task in waiting} == {ManagerClosedError}
