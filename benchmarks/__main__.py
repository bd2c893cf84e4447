"""``python -m benchmarks``: what an uncontended acquire and release costs, beside its floors.

The three are interleaved in one run on the embedded server, and the medians compared: ratios travel between machines,
microseconds do not.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable

from aiogpulock import GpuLockManager
from aiogpulock.keys import lock_keys
from aiogpulock.models import Held, Request

ROUNDS = 1500
NAMESPACE = "benchmark"


async def trivial(manager: GpuLockManager, sha: bytes) -> None:
    """Two EVALSHA that do nothing: two round trips."""
    for _ in range(2):
        await manager.parts.client.execute("EVALSHA", sha, 0)


async def raw(manager: GpuLockManager) -> None:
    """The two shipped scripts, without the library around them."""
    keys, terms = lock_keys("1", NAMESPACE), manager.script_terms()
    times = {"next_check": 30_000, "expires": 90_000, "lease": 60_000, "ttl": 600_000}
    request = Request(
        secrets.token_hex(16), "inbox", "push", **times, priority=0, max_waiters=-1, may_wait=True, task="benchmark",
        process=manager.process,
    )  # fmt: skip
    held = await manager.scripts.acquire(keys, terms, request, 0, 0)
    assert isinstance(held, Held)
    await manager.scripts.release(keys, terms, request.id, held.token, "normal")


async def full(manager: GpuLockManager) -> None:
    """As users write it."""
    async with manager.lock(0):
        pass


async def main() -> None:
    async with GpuLockManager(redis={"namespace": NAMESPACE}) as manager:
        sha = await manager.parts.client.execute("SCRIPT", "LOAD", "return 1")
        scenarios: dict[str, Callable[[], Awaitable[None]]] = {
            "two trivial EVALSHA": lambda: trivial(manager, sha),
            "the two scripts, raw": lambda: raw(manager),
            "async with gpu_lock": lambda: full(manager),
        }
        samples: dict[str, list[float]] = {name: [] for name in scenarios}
        for _ in range(ROUNDS):
            for name, scenario in scenarios.items():
                started = time.perf_counter()
                await scenario()
                samples[name].append(time.perf_counter() - started)
        floor = statistics.median(samples["two trivial EVALSHA"])
        for name, seconds in samples.items():
            median = statistics.median(seconds)
            print(f"{name:22} {median * 1e6:7.0f} us   {median / floor:5.2f} x")


if __name__ == "__main__":
    asyncio.run(main())
