"""The worker that does what it is told: commands on stdin, events on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from aiogpulock import GpuLockError, GpuLockManager, Lease, clock
from tests.register import RegisterClient


def say(event: str, **fields: Any) -> None:
    """Report to the test."""
    sys.stdout.write(json.dumps({"event": event, "at": clock.now(), **fields}) + "\n")
    sys.stdout.flush()


async def commands() -> AsyncIterator[dict[str, Any]]:
    """What the test sends, until it closes stdin."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    with contextlib.closing(transport):
        while line := await reader.readline():
            yield json.loads(line)


class Driven:
    """One manager and the tasks that use it, each with a name."""

    def __init__(self, manager: GpuLockManager, register: RegisterClient | None) -> None:
        self._manager = manager
        self._register = register
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._release: dict[str, asyncio.Event] = {}
        self._looping = True
        self._blocked = 0

    async def obey(self) -> None:
        async for command in commands():
            getattr(self, command.pop("do"))(**command)
        self._looping = False
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # commands

    def acquire(self, name: str, gpu: int = 0, hold: float | None = None, **options: Any) -> None:
        """Acquire, report `held`, hold until `release` or for `hold` seconds, report `left` or `failed`."""
        self._release[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._hold(name, gpu, hold, options))

    def release(self, name: str) -> None:
        self._release[name].set()

    def cancel(self, name: str) -> None:
        self._tasks[name].cancel()

    def write(self, name: str, holder: str, token: int) -> None:
        """Write to the register as a holder that may not have noticed its loss."""
        assert self._register is not None
        say("wrote", name=name, accepted=self._register.write(holder, token))

    def block(self, seconds: float) -> None:
        """Block the event loop, as a synchronous native call does."""
        asyncio.get_running_loop().call_soon(self._block, seconds)

    def crowd(self, count: int, gpu: int = 0, **options: Any) -> None:
        """Many waiters, each for one short hold; one event when all were served."""
        self._tasks["crowd"] = asyncio.create_task(self._crowd(count, gpu, options))

    def loop(self, tasks: int, gpu: int = 0, hold: float = 0.0, **options: Any) -> None:
        """Tasks that acquire again and again until `stop_looping`; one event with the number of holds."""
        for number in range(tasks):
            self._tasks[f"loop {number}"] = asyncio.create_task(self._loop(number, gpu, hold, options))

    def status(self) -> None:
        """Report the keys of all known locks."""
        self._tasks["status"] = asyncio.create_task(self._status())

    def force(self, gpu: int) -> None:
        """End the holder as an operator would."""
        self._tasks["force"] = asyncio.create_task(self._force(gpu))

    def stop_looping(self) -> None:
        self._looping = False

    # what they run

    def _block(self, seconds: float) -> None:
        say("blocking")
        time.sleep(seconds)
        self._blocked += 1
        say("unblocked", number=self._blocked)

    @contextlib.asynccontextmanager
    async def _inside(self, lease: Lease) -> AsyncIterator[None]:
        if self._register is not None:
            self._register.enter(lease.holder_id, lease.fencing_token)
        try:
            yield
        finally:
            if self._register is not None:
                self._register.exit(lease.holder_id)

    async def _hold(self, name: str, gpu: int, hold: float | None, options: dict[str, Any]) -> None:
        def lost(reason: str) -> None:
            say("lost", name=name, reason=reason)

        lock = self._manager.lock(gpu, task_name=name, on_lost=lost, **options)
        try:
            async with lock as lease, self._inside(lease):
                say("held", name=name, token=lease.fencing_token, id=lease.holder_id)
                if hold is None:
                    await self._release[name].wait()
                else:
                    await asyncio.sleep(hold)
        except GpuLockError as error:
            reason = getattr(error, "reason", None)
            say("failed", name=name, error=type(error).__name__, text=str(error), reason=reason)
        except asyncio.CancelledError:
            say("cancelled", name=name)
            raise
        else:
            say("left", name=name)

    async def _status(self) -> None:
        say("status", locks=[lock.key for lock in await self._manager.status()])

    async def _force(self, gpu: int) -> None:
        say("forced", ended=await self._manager.force_release(gpu))

    async def _crowd(self, count: int, gpu: int, options: dict[str, Any]) -> None:
        served: list[tuple[int, str]] = []
        lock = self._manager.lock(gpu, **options)

        async def one() -> None:
            async with lock as lease, self._inside(lease):
                served.append((lease.fencing_token, lease.holder_id))

        await asyncio.gather(*(one() for _ in range(count)))
        say("served", served=served)

    async def _loop(self, number: int, gpu: int, hold: float, options: dict[str, Any]) -> None:
        lock, holds = self._manager.lock(gpu, task_name=f"loop {number}", **options), 0
        while self._looping:
            async with lock as lease, self._inside(lease):
                holds += 1
                await asyncio.sleep(hold)
        say("looped", number=number, holds=holds)


async def main(config: dict[str, Any]) -> None:
    register = RegisterClient(config["register"]) if config["register"] else None
    try:
        async with GpuLockManager(config["url"], **config["settings"]) as manager:
            say("ready")
            await Driven(manager, register).obey()
    except GpuLockError as error:
        say("failed", name="manager", error=type(error).__name__, text=str(error))
    if register is not None:
        register.close()
