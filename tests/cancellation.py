"""Cancel a coroutine at every await in turn, to see what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Literal, TypeVar

import pytest
import redis

from aiogpulock import GpuLockManager, Lease
from aiogpulock.keys import lock_keys
from aiogpulock.scripts import script_command
from tests.unit.support import eventually

T = TypeVar("T")
Moment = Literal["waiting", "answered"]
"""waiting: what is awaited is cancelled with the task. answered: it was done just before, and its result is lost."""


class Cut:
    """Awaits `operation` and cancels the current task at its `number`-th suspension, and at the `more` after it.

    `meanwhile` is called just before the first cancellation: something that happens at that very moment.
    """

    def __init__(
        self,
        number: int,
        moment: Moment = "waiting",
        *,
        more: int = 0,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        self.count = 0
        """Suspensions so far."""
        self.fired = False
        self._cuts = range(number, number + more + 1)
        self._moment = moment
        self._meanwhile = meanwhile
        self._operation: Awaitable[Any] | None = None

    def __call__(self, operation: Awaitable[Any]) -> Cut:
        self._operation = operation
        return self

    def __await__(self) -> Generator[Any, Any, Any]:
        assert self._operation is not None
        steps = self._operation.__await__()
        error: BaseException | None = None
        while True:
            try:
                awaited = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self.count += 1
            if self.count in self._cuts:
                self._cancel(awaited)
            try:
                yield awaited
            except BaseException as raised:
                error = raised
            else:
                error = None

    def _cancel(self, awaited: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if not self.fired:
            self.fired = True
            self._meanwhile()
        if self._moment == "waiting" or awaited is None:
            task.cancel()
        else:
            # Called before the task's own wake-up, which is registered after this.
            awaited.add_done_callback(lambda _: task.cancel())


moments = pytest.mark.parametrize("moment", ["waiting", "answered"])
times = pytest.mark.parametrize("more", [0, 1, 3], ids=["once", "twice", "four times"])


def keys_of_use(gpu_id: str) -> list[str]:
    """The keys that exist only while somebody holds or waits."""
    keys = lock_keys(gpu_id, "gpu_lock")
    return [key.decode() for key in keys.script_keys[:5]]


def nothing() -> None:
    """What happens meanwhile, if nothing does."""


class Scene:
    """The manager under test, and what must be as before after each cancellation."""

    def __init__(self, manager: GpuLockManager, client: redis.Redis, gpu_id: str = "0") -> None:
        self.manager = manager
        self.client = client
        self._keys = keys_of_use(gpu_id)
        self._tasks = set(asyncio.all_tasks())

    async def left_nothing(self, where: str) -> None:
        manager, parts = self.manager, self.manager.parts
        pools = [(parts.client, 4), (parts._urgent_client, 1)]

        def found() -> list[object]:
            tasks = asyncio.all_tasks() - self._tasks - {asyncio.current_task()}
            return [
                *self.client.keys("gpu_lock:*"),
                *(key for key in self._keys if self.client.exists(key)),
                *tasks,
                *(client._busy for client, _ in pools if client._busy),
                *(client._free for client, size in pools if client._free._value != size),
                *manager.owners._owners,
                *manager.holds.all(),
                *(room for room in parts.rooms.values() if len(room)),
            ]

        try:
            await eventually(lambda: not found(), description=f"nothing to be left after {where}", timeout=10)
        except AssertionError as error:
            raise AssertionError(f"left after {where}: {found()}") from error

    def go_cold(self) -> None:
        """The next command connects anew: more awaits before it is sent."""
        self.manager.parts.client._close_idle()
        self.manager.parts._urgent_client._close_idle()

    def hand_over(self, lease: Lease) -> Callable[[], None]:
        """What releases `lease` at once, whoever runs: the next waiter is granted in the same step."""
        terms = (2000, 0, "")
        command = script_command("release", lease._hold.keys, (*terms, lease.holder_id, lease.fencing_token, "normal"))
        return lambda: self.client.execute_command(*command)


async def ended(task: asyncio.Task[object], cut: Cut) -> bool:
    """Wait for the cut task; answers whether the cut was reached. A cancellation must never be swallowed."""
    await asyncio.wait([task])
    if cut.fired:
        assert task.cancelled(), f"cancelled at await {cut.count}, and ended with {task}"
    return cut.fired


async def awaited(operation: Awaitable[T]) -> T:
    return await operation
