"""`GpuLock`: the recipe for acquiring one GPU, as context manager, decorator, or acquire/release pair."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from aiogpulock import clock
from aiogpulock.acquisition import Wish
from aiogpulock.admission import admitted
from aiogpulock.body import Body, raise_loss
from aiogpulock.caretaker import complaint
from aiogpulock.config import LockSettings
from aiogpulock.errors import ConfigError, LeaseLostError, MemoryNotFreedError
from aiogpulock.gpu.identity import check_spelling
from aiogpulock.keys import check_gpu_id, clean_task_name, lock_keys
from aiogpulock.lease import Hold, Lease
from aiogpulock.leaving import CleanUp, leave, reason_for
from aiogpulock.models import LOSS_REASONS

if TYPE_CHECKING:
    from aiogpulock.manager import GpuLockManager

F = TypeVar("F", bound=Callable[..., Any])

HIGHEST_PRIORITY = 100


class _Entry(NamedTuple):
    """One `async with` that is under way."""

    lease: Lease
    body: Body


class GpuLock:
    """How to acquire one GPU. Several tasks may use one object at once: each entry is an acquisition of its own."""

    def __init__(
        self,
        gpu_id: int | str,
        find_manager: Callable[[], Awaitable[GpuLockManager]],
        *,
        task_name: str | None = None,
        priority: int = 0,
        cleanup: CleanUp | None = None,
        on_lost: Callable[[str], None] | None = None,
        **overrides: Any,
    ) -> None:
        self._gpu_id = check_gpu_id(gpu_id)
        check_spelling(self._gpu_id)
        if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > HIGHEST_PRIORITY:
            raise ConfigError(f"gpu_lock(priority={priority!r}): must be a whole number from -100 to 100, higher first")
        if task_name is not None and not isinstance(task_name, str):
            raise ConfigError(f"gpu_lock(task_name={task_name!r}): must be text")
        for name, hook in (("cleanup", cleanup), ("on_lost", on_lost)):
            if hook is not None and not callable(hook):
                raise ConfigError(f"gpu_lock({name}={hook!r}): must be callable")
        self.find_manager = find_manager
        self._task_name = clean_task_name(task_name) if task_name is not None else None
        self._priority = priority
        self._cleanup = cleanup
        self._on_lost = on_lost
        self._overrides = overrides
        if overrides:
            LockSettings().override(**overrides)  # refused here, before any connection
        self._resolved: tuple[LockSettings, LockSettings] | None = None
        self._entries: list[_Entry] = []

    def __repr__(self) -> str:
        return f"<GpuLock {self._gpu_id!r}>"

    # acquire and release

    async def acquire(self) -> Lease:
        """Wait for the GPU; the caller must `release` the lease.

        Raises `LockTimeoutError` after `max_wait_time`, `QueueFullError`, `NestedLockError`, `RedisUnavailableError`,
        `AuthenticationError`. The pair does not cancel anything when the lease is lost: see `Lease.lost` and `on_lost`.
        """
        return await self.acquire_for(asyncio.current_task())

    async def acquire_for(self, owner: object) -> Lease:
        """`acquire` for an owner that is not the current task: a thread, for one."""
        begun = clock.now()
        manager = await self.find_manager()
        settings = self._settings(manager)
        parts = await manager.started()
        if settings.use_event_driven:
            await parts.inbox.ready()
        gpu = await manager.find(self._gpu_id, settings)
        keys = lock_keys(gpu.id, manager.namespace)
        await manager.index(keys)
        wish = Wish(keys, gpu, settings, self._task_name or _task_name(owner), self._priority, owner)
        hold = await admitted(manager, wish, begun)
        return self._lease(manager, hold)

    def _settings(self, manager: GpuLockManager) -> LockSettings:
        """The manager's current settings with this lock's own; computed anew only when the former change."""
        base = manager.settings.gpu_lock
        if self._resolved is None or self._resolved[0] is not base:
            self._resolved = base, base.override(**self._overrides)
        return self._resolved[1]

    def _lease(self, manager: GpuLockManager, hold: Hold) -> Lease:
        async def release(hold: Hold, reason: str) -> None:
            released = await leave(manager, hold, reason, self._cleanup)
            if hold.lost_reason is not None:
                raise hold.loss()
            if released is not None and not released.ok:
                raise hold.loss(LOSS_REASONS.get(released.detail, "not_owner"))
            if not_freed := complaint(hold):
                raise not_freed

        if self._on_lost is not None:
            hold.when_lost(self._on_lost)
        return Lease(hold, release, manager.leaked)

    # async with

    async def __aenter__(self) -> Lease:
        lease = await self.acquire()
        entry = _Entry(lease, Body())
        lease._hold.when_lost(entry.body.cancel)
        self._entries.append(entry)
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entry = self._leave_entry()
        try:
            ours = await entry.body.left(error)
        finally:
            loss = await _release(entry.lease, reason_for(error))
        if loss is not None:
            raise_loss(loss, error, ours=ours)

    def _leave_entry(self) -> _Entry:
        """This task's entry; or, where enter and exit run in different tasks, the oldest whose task has ended."""
        current = asyncio.current_task()

        def unlikely(entry: _Entry) -> tuple[bool, bool]:
            task = entry.body.task
            return task is not current, task is not None and not task.done()

        entry = min(self._entries, key=unlikely)
        self._entries.remove(entry)
        return entry

    # decorator

    def __call__(self, function: F) -> F:
        """Run a coroutine function or an async generator function under the lock, arguments and result untouched."""
        if inspect.isasyncgenfunction(function):
            return cast("F", self._wrap_generator(function))
        if not inspect.iscoroutinefunction(function):
            raise TypeError(
                f"@gpu_lock needs a coroutine function or an async generator function, and {function!r} is neither. "
                "For a plain function use aiogpulock.sync.gpu_lock"
            )

        lock = self._named(function)

        @functools.wraps(function)
        async def locked(*args: Any, **kwargs: Any) -> Any:
            async with lock:
                return await function(*args, **kwargs)

        return cast("F", locked)

    def _wrap_generator(self, function: Callable[..., AsyncGenerator[Any, Any]]) -> Any:
        lock = self._named(function)

        @functools.wraps(function)
        async def locked(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            lease = await lock.acquire()
            steps, generator = _Steps(lease), function(*args, **kwargs)
            resume: Callable[[], Awaitable[Any]] = generator.__anext__
            error: BaseException | None = None
            try:
                while True:
                    item = await steps.run(resume)
                    try:
                        sent = yield item
                    except GeneratorExit:
                        await generator.aclose()
                        raise
                    except BaseException as thrown:
                        resume = functools.partial(generator.athrow, thrown)
                    else:
                        resume = functools.partial(generator.asend, sent)
            except StopAsyncIteration:
                pass
            except BaseException as raised:
                error = raised
                await generator.aclose()  # after a loss it still waits at its yield
                raise
            finally:
                loss = await _release(lease, reason_for(error))
                if loss is not None:
                    raise_loss(loss, error, ours=False)

        return locked

    def _named(self, function: Callable[..., Any]) -> GpuLock:
        """This lock, with the function's name for its task unless the user gave one."""
        if self._task_name is not None:
            return self
        named = GpuLock.__new__(GpuLock)
        named.__dict__.update(self.__dict__, _task_name=clean_task_name(function.__qualname__), _entries=[])
        return named


class _Steps:
    """Runs an async generator from one yield to the next; only then is it a body that a loss can cancel."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._body: Body | None = None
        lease._hold.when_lost(self._cancel)

    def _cancel(self, reason: str) -> None:
        if self._body is not None:
            self._body.cancel(reason)

    async def run(self, step: Callable[[], Awaitable[Any]]) -> Any:
        self._lease.check()
        self._body = body = Body()
        error: BaseException | None = None
        try:
            return await step()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._body = None
            if await body.left(error):
                self._lease.check()


async def _release(lease: Lease, reason: str) -> LeaseLostError | MemoryNotFreedError | None:
    try:
        await lease.release(reason)
    except (LeaseLostError, MemoryNotFreedError) as error:
        return error
    return None


def _task_name(owner: object) -> str:
    """What a lock without a `task_name` is shown as."""
    name = owner.get_name() if isinstance(owner, asyncio.Task) else str(owner)
    program = sys.argv[0].rpartition("/")[2] if sys.argv else ""
    return clean_task_name(f"{program}/{name}" if program else name)
