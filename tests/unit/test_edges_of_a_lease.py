"""What happens at the edges: a claim answered too late, a start that fails, a close during a start."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from aiogpulock import GpuLockManager, ManagerClosedError, RedisUnavailableError


async def test_a_claim_whose_reply_is_read_a_lease_late_is_repeated_before_the_body(redis_url: str) -> None:
    times: dict[str, Any] = {"heartbeat": {"interval": 0.1, "timeout": 0.6, "max_stall": 0}, "restart_grace": 0}
    async with GpuLockManager(redis_url, **times) as manager:
        asked = manager.scripts.acquire
        calls = 0

        async def read_late(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            reply = await asked(*arguments)
            if calls == 1:
                time.sleep(1)  # noqa: ASYNC251 - the event loop is blocked for longer than the lease
            return reply

        manager.scripts.acquire = read_late  # type: ignore[method-assign]
        async with manager.lock(0) as lease:
            assert not lease.lost.is_set()
        assert calls == 2


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_failed_starts_leave_no_file_open() -> None:
    manager = GpuLockManager("redis://127.0.0.1:1", redis={"connect_timeout": 0.1})

    async def fail() -> None:
        with pytest.raises(RedisUnavailableError):
            await manager.started()

    await fail()
    before = open_files()
    for _ in range(3):
        await fail()
    assert open_files() <= before
    await manager.close()
    assert open_files() < before


async def test_a_manager_closed_while_it_starts_does_not_go_on(redis_url: str) -> None:
    manager = GpuLockManager(redis_url)
    starting = asyncio.create_task(manager.lock(0).acquire())
    await asyncio.sleep(0)
    await manager.close()
    with pytest.raises(ManagerClosedError):
        await starting
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("aiogpulock")] == []
