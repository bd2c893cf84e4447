"""A contestant on redis-py's connections, and a trace: when each step of a hand-off was taken.

`setup.options` name the folder of the traces and whom to trace: a module of this package. The rest is the contestant's.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.contender import Setup

TITLE = "traced"
REQUIREMENTS = ()


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    options = dict(setup.options)
    trace = Trace(trace_of(Path(options.pop("folder")), setup.party))
    traced = importlib.import_module(f"benchmarks.{options.pop('of')}")
    async with traced.opened(setup._replace(options=options)) as make:
        trace.connections()
        yield lambda: Traced(make(), trace)


def trace_of(folder: Path, party: int) -> Path:
    """The trace of one process."""
    return folder / f"{party}.json"


class Trace:
    """Steps: leaving, sent, heard (a message), answered (a command), entered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: list[tuple[float, str]] = []

    def step(self, name: str) -> None:
        self._steps.append((time.monotonic(), name))

    def keep(self) -> None:
        with self._path.open("a") as file:
            file.writelines(json.dumps(one) + "\n" for one in self._steps)
        self._steps.clear()

    def connections(self) -> None:
        """Note what is sent and read over all connections."""
        from redis.asyncio.connection import AbstractConnection

        send, read = AbstractConnection.send_packed_command, AbstractConnection.read_response

        async def traced_send(connection: AbstractConnection, *arguments: Any, **options: Any) -> None:
            self.step("sent")  # before it is: the server may be run instead of this process at once
            await send(connection, *arguments, **options)

        async def traced_read(connection: AbstractConnection, *arguments: Any, **options: Any) -> Any:
            reply = await read(connection, *arguments, **options)
            self.step("heard" if isinstance(reply, list) and reply[:1] == [b"message"] else "answered")
            return reply

        AbstractConnection.send_packed_command = traced_send  # type: ignore[method-assign, assignment]
        AbstractConnection.read_response = traced_read  # type: ignore[method-assign, assignment]


class Traced:
    """A lock whose holder notes when it enters and begins to leave."""

    def __init__(self, lock: Any, trace: Trace) -> None:
        self._lock = lock
        self._trace = trace

    async def __aenter__(self) -> None:
        await self._lock.__aenter__()
        self._trace.step("entered")

    async def acquire(self) -> Any:
        return await self._lock.acquire()

    async def __aexit__(self, *error: Any) -> None:
        self._trace.step("leaving")
        try:
            await self._lock.__aexit__(*error)
        finally:
            self._trace.keep()
