"""A worker that contends for one lock for ever, and enters the judge with each lease."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import traceback
from collections.abc import Sequence
from typing import Any, ClassVar

from aiogpulock import (
    GpuLockError,
    GpuLockManager,
    Lease,
    LeaseLostError,
    ManagerClosedError,
    RedisUnavailableError,
    clock,
)
from aiogpulock.redis_client import RedisClient
from aiogpulock.wakeups import Inbox
from tests.register import RegisterClient
from tests.workers.driven import Driven, say

STEP = 0.003
"""Seconds between two writes of a holder."""


class RepeatingClient(RedisClient):
    """Sends every script call twice, now and then an old one again, and answers with either reply."""

    KEEP: ClassVar[int] = 64

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sent: list[tuple[Any, ...]] = []

    async def execute_many(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        calls = [command for command in commands if command[0] in ("EVALSHA", "EVAL")]
        self._sent = [*self._sent, *calls][-self.KEEP :]
        old = random.sample(self._sent, 1) if calls and random.random() < 0.3 else []
        replies = await super().execute_many([*commands, *commands, *old])
        start = random.choice((0, len(commands)))
        return replies[start : start + len(commands)]


class RepeatingManager(GpuLockManager):
    def _client(self, url: str, *, connections: int) -> RedisClient:
        return RepeatingClient(url, where=url, connections=connections, timeout=self.connect_timeout, name="repeating")


class Contender(Driven):
    """Acquires again and again. The judge says how long each hold lasts."""

    def __init__(self, manager: GpuLockManager, register: RegisterClient) -> None:
        super().__init__(manager, register)
        self._judge = register

    def contend(self, tasks: int = 1) -> None:
        for number in range(len(self._tasks), len(self._tasks) + tasks):
            self._tasks[f"contend {number}"] = asyncio.create_task(self._contend())

    def seed(self, seed: str) -> None:
        """What is drawn in this process from now on: repeated calls, and the library's own jitter."""
        random.seed(seed)
        say("seeded", seed=seed)

    def sample(self) -> None:
        """Say what this process has open."""
        say("sample", tasks=len(asyncio.all_tasks()), stats=_stats(self._manager))

    def write(self, name: str, holder: str, token: int) -> None:
        """Write as a body would that never looks at its lease: a thread, a child, a queue."""
        answer = self._judge.call("write", holder, token, until=0.0)
        say("wrote", name=name, accepted=answer["accepted"])

    def keep_gil(self, seconds: float) -> None:
        """A native call that lets no thread of this process run, the guard neither."""
        ctypes.PyDLL(None).usleep(round(seconds * 1e6))

    def fork(self) -> None:
        """A child that finds the manager unusable, and ends; from a holder's point of view nothing happened."""
        child = os.fork()
        if child == 0:
            try:
                self._manager.check_usable()
                say("child used it", pid=os.getpid())
            except ManagerClosedError:
                say("child refused", pid=os.getpid())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        say("forked", child=child)

    async def _contend(self) -> None:
        lock = self._manager.lock(0, task_name=str(os.getpid()))
        while self._looping:
            try:
                async with lock as lease:
                    captive = await self._body(lease)
                if captive:
                    say("kept", token=lease.fencing_token)
            except LeaseLostError as loss:
                say("lost", token=loss.fencing_token, reason=loss.reason)
            except GpuLockError as error:
                say("refused", error=type(error).__name__)
                await asyncio.sleep(0.05)
            except Exception:
                say("broken", traceback=traceback.format_exc())
                raise

    async def _body(self, lease: Lease) -> bool:
        """Answers whether it was kept captive."""
        holder, token = lease.holder_id, lease.fencing_token
        entry = self._judge.call("enter", holder, token, until=lease._hold.deadline, pid=os.getpid())
        leave = False
        try:
            while not leave:
                await asyncio.sleep(min(STEP, entry["leave_in"]))
                leave = self._judge.call("write", holder, token, until=lease._hold.deadline)["leave"]
        finally:
            late = clock.now() - lease._hold.deadline
            if late > 0:
                say("late", token=token, late=late)
            self._judge.call("exit", holder)
        return bool(entry["captive"])


async def main(config: dict[str, Any]) -> None:
    Inbox.PING_EVERY = config.get("ping_every", Inbox.PING_EVERY)
    if seed := config.get("seed"):
        random.seed(seed)
    register = RegisterClient(config["register"])
    async with await _started(config) as manager:
        say("ready")
        await Contender(manager, register).obey()
    register.close()
    say("closed", tasks=len(asyncio.all_tasks()) - 1, stats=_stats(manager))


async def _started(config: dict[str, Any]) -> GpuLockManager:
    """A manager that has reached its server: some faults leave it less time for that than a busy machine may need."""
    make = RepeatingManager if config.get("repeating") else GpuLockManager
    while True:
        manager = make(config["url"], **config["settings"])
        try:
            await manager.started()
        except RedisUnavailableError as error:
            say("unreachable", error=str(error))
            await manager.close()
        else:
            return manager


def _stats(manager: GpuLockManager) -> dict[str, int]:
    stats = manager.exception_stats
    return {name: getattr(stats, name) for name in stats.__struct_fields__}
