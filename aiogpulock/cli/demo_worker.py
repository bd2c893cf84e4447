"""One worker of the demo: asks for GPU 0, holds it for some tens of ms, and says so, until its stdin is closed.

It reads `Orders` from stdin and writes a `Report` per event to stdout, one line of JSON each. That nobody may be left
behind needs no care of whoever started it: when that process dies, stdin ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from typing import Literal

import msgspec

from aiogpulock import GpuLockManager, Lease
from aiogpulock.errors import GpuLockError

GPU = 0
HOLD_SECONDS = 0.02, 0.06
PAUSE_SECONDS = 0.0, 0.08
LONG_HOLD_SECONDS = 30.0
"""A long hold waits for its end by SIGKILL."""
SIGN_EVERY = 0.002
"""Seconds between two signs of life during a long hold."""
HEARTBEAT = {"interval": 1, "timeout": 5}
"""Seconds; short, so that the demo goes on also where the kernel does not tell of a death."""

START, HOLD_LONG = b"start\n", b"hold long\n"


class Orders(msgspec.Struct, frozen=True):
    """What a worker is told first."""

    name: str
    namespace: str
    redis_url: str | None
    """None: the embedded server."""


class Report(msgspec.Struct, frozen=True):
    """What a worker says. `at` and `asked_at` are seconds on CLOCK_MONOTONIC."""

    event: Literal["ready", "entered", "alive", "left", "failed"]
    at: float
    token: int = 0
    asked_at: float = 0.0
    long: bool = False
    text: str = ""


def make_manager(namespace: str, redis_url: str | None) -> GpuLockManager:
    """A manager for the demo: no file and no variable takes part, see `run_demo`. Raises `ConfigError`."""
    embedded = "never" if redis_url else "require"
    return GpuLockManager(
        redis_url,
        os.devnull,
        redis={"namespace": namespace, "embedded": embedded},
        heartbeat=HEARTBEAT,
        gpu_memory={"nvml": "off"},  # the GPU of the demo is none: a real one is left alone
    )


def _report(report: Report) -> None:
    os.write(sys.stdout.fileno(), msgspec.json.encode(report) + b"\n")


class _Worker:
    def __init__(self, manager: GpuLockManager, name: str) -> None:
        self._lock = manager.lock(GPU, task_name=name, max_wait_time=None)
        self._hold_long = False

    async def work(self, orders: asyncio.StreamReader) -> None:
        """Contend until the orders end."""
        if await orders.readline() != START:
            return
        tasks = {asyncio.create_task(self._contend()), asyncio.create_task(self._listen(orders))}
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()

    async def _listen(self, orders: asyncio.StreamReader) -> None:
        while order := await orders.readline():
            if order == HOLD_LONG:
                self._hold_long = True

    async def _contend(self) -> None:
        while True:
            asked_at = time.monotonic()
            async with self._lock as lease:
                await self._hold(lease, asked_at)
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311 - a pause

    async def _hold(self, lease: Lease, asked_at: float) -> None:
        at, long = time.monotonic(), self._hold_long
        _report(Report("entered", at, lease.fencing_token, asked_at, long))
        try:
            if long:
                await self._hold_until_killed(at + LONG_HOLD_SECONDS)
            else:
                await asyncio.sleep(random.uniform(*HOLD_SECONDS))  # noqa: S311 - the work
        finally:
            _report(Report("left", time.monotonic()))

    async def _hold_until_killed(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            _report(Report("alive", time.monotonic()))
            await asyncio.sleep(SIGN_EVERY)


async def _stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _main() -> None:
    reader = await _stdin()
    orders = msgspec.json.decode(await reader.readline(), type=Orders)
    try:
        async with make_manager(orders.namespace, orders.redis_url) as manager:
            _report(Report("ready", time.monotonic()))
            await _Worker(manager, orders.name).work(reader)
    except GpuLockError as error:
        _report(Report("failed", time.monotonic(), text=str(error)))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # whoever started it is gone
        asyncio.run(_main())
