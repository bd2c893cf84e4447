"""This library as in ours.py, and a trace: when each step of a hand-off was taken. `setup.options` name its file."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.contender import Setup

TITLE = "aiogpulock, traced"
REQUIREMENTS = ()


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    from aiogpulock.incoming import Incoming
    from aiogpulock.redis_client import RedisClient
    from aiogpulock.scripts import load_script
    from aiogpulock.wakeups import Grant, Message

    options = dict(setup.options)
    path = Path(options.pop("trace"))
    scripts = {load_script(name).sha: name for name in ("acquire", "release")}
    execute_many, message = RedisClient.execute_many, Incoming.message
    steps: list[tuple[float, str]] = []

    def step(name: str) -> None:
        steps.append((time.monotonic(), name))

    def keep() -> None:
        with path.open("a") as file:
            file.writelines(json.dumps(one) + "\n" for one in steps)
        steps.clear()

    async def traced_execute_many(self: RedisClient, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        name = next((scripts[part] for part in commands[0][1:2] if part in scripts), "other")
        step(f"{name} sent")
        replies = await execute_many(self, commands)
        step(f"{name} answered")
        return replies

    def traced_message(self: Incoming, heard: Message) -> None:
        if isinstance(heard, Grant):
            step("grant heard")
        message(self, heard)

    class Traced:
        async def __aenter__(self) -> None:
            self.lock = make()
            await self.lock.__aenter__()
            step("entered")

        async def acquire(self) -> Any:
            return await make().acquire()

        async def __aexit__(self, *error: Any) -> None:
            step("leaving")
            await self.lock.__aexit__(*error)
            keep()

    RedisClient.execute_many = traced_execute_many  # type: ignore[method-assign]
    Incoming.message = traced_message  # type: ignore[method-assign]
    async with ours.opened(setup._replace(options=options)) as make:
        yield Traced
