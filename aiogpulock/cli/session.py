"""A verb's short life with a manager."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from aiogpulock.cli.options import Target
from aiogpulock.errors import AuthenticationError
from aiogpulock.history import typical_hold
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot

T = TypeVar("T")

SCHEMA = 1
"""Of what ``--json`` prints; a field that goes or changes its meaning makes it 2."""


def with_manager(target: Target, work: Callable[[GpuLockManager], Awaitable[T]]) -> T:
    """Run `work`, which only looks, with a started manager, and close it. Raises what the library raises."""
    logging.getLogger("aiogpulock.gpu").setLevel(logging.ERROR)  # who has no NVML need not hear it from every look

    async def main() -> T:
        async with target.manager() as manager:
            return await work(manager)

    return asyncio.run(main())


async def look_at(manager: GpuLockManager, gpu: str) -> LockSnapshot:
    """The lock of this GPU. Raises `InvalidGpuError`, `ProtocolError`, `RedisUnavailableError`."""
    return await manager.scripts.snapshot(await manager.keys_of(gpu))


async def usual_hold(manager: GpuLockManager, lock: LockSnapshot) -> float | None:
    """Seconds of a usual hold; None also where this user of Redis may not read what was. Raises `GpuLockError`."""
    with suppress(AuthenticationError):
        return typical_hold(await manager.history(lock))
    return None


def end_in_order_at_hang_up() -> None:
    """A terminal that closes ends a verb that runs for long as SIGTERM does; under nohup it goes on."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def print_json(**content: Any) -> None:
    """One object on stdout, with the version of its schema."""
    data = msgspec.json.format(msgspec.json.encode({"schema": SCHEMA, **content}), indent=2)
    sys.stdout.write(data.decode() + "\n")
