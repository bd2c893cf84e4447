"""Small programs as users write them, for what a driven worker cannot show: signals, forks, closed loops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import aiogpulock.sync
from aiogpulock import GpuLockManager, gpu_lock
from tests.workers.driven import say

Config = dict[str, Any]


async def _one_hold(config: Config) -> None:
    say("ready")
    async with gpu_lock(0, task_name="program", **config["settings"]) as lease:
        say("held", token=lease.fencing_token)
        await asyncio.sleep(60)


def one_hold(config: Config) -> None:
    """The README's ten lines: acquire, work, leave."""
    os.environ["REDIS_URL"] = config["url"]
    asyncio.run(_one_hold(config))


def own_sigterm(config: Config) -> None:
    """A program that has its own way to end on SIGTERM."""
    os.environ["REDIS_URL"] = config["url"]

    async def main() -> None:
        stop = asyncio.Event()

        def on_sigterm(signum: int, frame: object) -> None:
            say("own handler")
            loop.call_soon_threadsafe(stop.set)

        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGTERM, on_sigterm)
        say("ready")
        async with gpu_lock(0, **config["settings"]):
            say("held")
            await stop.wait()
            say("body goes on")
            await asyncio.sleep(0.5)
            say("body ended")

    asyncio.run(main())


def thread_hold(config: Config) -> None:
    """The lock for threads, held by the main thread."""
    os.environ["REDIS_URL"] = config["url"]
    say("ready")
    with aiogpulock.sync.gpu_lock(0, task_name="program", **config["settings"]):
        say("held")
        time.sleep(60)


def thread_holds_many(config: Config) -> None:
    """The lock for threads, ten of them held by the main thread."""
    os.environ["REDIS_URL"] = config["url"]
    say("ready")
    leases = [aiogpulock.sync.gpu_lock(gpu, **config["settings"]).acquire() for gpu in range(10)]
    say("held", tokens=[lease.fencing_token for lease in leases])
    time.sleep(60)


def closed_loop(config: Config) -> None:
    """A loop that is closed on the next line of stdin, with a lease held or released, in a process that lives on."""
    loop = asyncio.new_event_loop()
    manager = GpuLockManager(config["url"], **config["settings"])
    lease = loop.run_until_complete(manager.lock(0).acquire())
    say("held", token=lease.fencing_token)
    (guard,) = (thread for thread in threading.enumerate() if thread.name == "aiogpulock-guard")
    if json.loads(sys.stdin.readline())["do"] == "release":
        loop.run_until_complete(lease.release())
    loop.close()
    say("closed")
    guard.join()
    say("ended")
    sys.stdin.read()
    os._exit(0)  # the tasks of a closed loop can only complain


def fork_with_sync(config: Config) -> None:
    """A fork after the lock for threads was used, while the parent holds it."""
    os.environ["REDIS_URL"] = config["url"]
    with aiogpulock.sync.gpu_lock(0, **config["settings"]) as lease:
        say("held", token=lease.fencing_token, pid=os.getpid())
        child = os.fork()
        if child == 0:
            try:
                with aiogpulock.sync.gpu_lock(1, **config["settings"]) as own:
                    say("child held", token=own.fencing_token, pid=os.getpid())
                    sys.stdin.readline()
                say("child left")
            finally:
                aiogpulock.sync.close()
                os._exit(0)
        os.waitpid(child, 0)
        lease.check()
        say("parent goes on")
        time.sleep(config["settings"]["heartbeat"]["timeout"] * 1.5)
        lease.check()
    say("left")


def fork_with_manager(config: Config) -> None:
    """A fork of a process with a connected manager: the child is refused its use."""

    async def main() -> None:
        async with GpuLockManager(config["url"], **config["settings"]) as manager, manager.lock(0) as lease:
            say("held", token=lease.fencing_token)
            child = os.fork()
            if child == 0:
                _in_child(manager, config)
            await asyncio.to_thread(os.waitpid, child, 0)
            await asyncio.sleep(config["settings"]["heartbeat"]["timeout"] * 1.5)
            lease.check()
        say("left")

    asyncio.run(main())


def _in_child(manager: GpuLockManager, config: Config) -> None:
    asyncio._set_running_loop(None)

    async def main() -> None:
        try:
            await manager.status()
        except Exception as error:
            say("refused", error=type(error).__name__, text=str(error))
        await manager.close()
        async with GpuLockManager(config["url"], **config["settings"]) as own, own.lock(1):
            say("child held")

    try:
        asyncio.run(main())
    finally:
        os._exit(0)


PROGRAMS: dict[str, Callable[[Config], None]] = {
    program.__name__: program
    for program in (
        one_hold,
        own_sigterm,
        thread_hold,
        thread_holds_many,
        closed_loop,
        fork_with_sync,
        fork_with_manager,
    )
}
