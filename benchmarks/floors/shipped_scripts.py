"""The two scripts of this library, sent raw through its client: what is above this is Python."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup

TITLE = "the two shipped scripts, raw"
REQUIREMENTS = ()
TERMS = (2000, 0, "")
"""What each script begins its ARGV with."""


def acquire_arguments(holder: str, process: str | bytes) -> tuple[Any, ...]:
    """The rest of them, for a lock that nobody else wants."""
    return (holder, 0, "inbox", "push", 30_000, 90_000, 60_000, 600_000, 0, 0, -1, 1, "benchmark", process)


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    import msgspec

    from aiogpulock.keys import lock_keys
    from aiogpulock.liveness import this_process
    from aiogpulock.redis_client import RedisClient
    from aiogpulock.scripts import load_script, script_command

    client = RedisClient(setup.url, where=setup.url, connections=1, timeout=5, name="floor")
    for name in ("acquire", "release"):
        await client.execute("SCRIPT", "LOAD", load_script(name).source)
    keys, process = lock_keys(setup.lock, "gpu_lock"), msgspec.json.encode(this_process())

    @asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        holder = secrets.token_hex(16)
        reply = await client.execute(*script_command("acquire", keys, (*TERMS, *acquire_arguments(holder, process))))
        yield
        await client.execute(*script_command("release", keys, (*TERMS, holder, reply[1], "normal")))

    yield hold
    await client.close()
