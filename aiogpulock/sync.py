"""The same lock for threads: ``with aiogpulock.sync.gpu_lock(0):``. A thin layer over the async one.

One background thread per process runs the event loop, so the heartbeat goes on while the calling thread computes.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from aiogpulock import signals
from aiogpulock.api import gpu_lock as async_gpu_lock
from aiogpulock.background import call, close
from aiogpulock.errors import LeaseLostError, MemoryNotFreedError
from aiogpulock.lease import Lease as AsyncLease
from aiogpulock.leaving import reason_for
from aiogpulock.lock import GpuLock as AsyncGpuLock

__all__ = ["GpuLock", "Lease", "close", "gpu_lock"]

P = ParamSpec("P")
R = TypeVar("R")


class Lease:
    """A lease held by a thread: `lost` and `check` tell of its loss; nothing is cancelled."""

    def __init__(self, lease: AsyncLease) -> None:
        self._lease = lease

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lease, name)

    def release(self, reason: str = "normal") -> None:
        """Release and hand off. Raises `LeaseLostError` if the lease was lost before."""
        try:
            call(lambda: self._lease.release(reason))
        finally:
            self.insist()

    def insist(self) -> None:
        """Release what an interrupt kept from being released: it may have come before that began."""
        if self._lease._hold.state != "released":
            with suppress(LeaseLostError, MemoryNotFreedError):  # the interrupt is what comes out
                call(lambda: self._lease.release("cancelled"))

    def leave(self, reason: str, error: BaseException | None) -> None:
        """Release after a body that ended by `error`: that stays what comes out, and gets a loss as its note."""
        try:
            self.release(reason)
        except (LeaseLostError, MemoryNotFreedError) as trouble:
            if error is None:
                raise
            error.add_note(f"{type(trouble).__name__}: {trouble}")

    def __repr__(self) -> str:
        return repr(self._lease)


class GpuLock:
    """How a thread acquires one GPU: as context manager, decorator, or acquire/release pair."""

    def __init__(self, lock: AsyncGpuLock) -> None:
        self.reason_for: Callable[[BaseException | None], str] = reason_for
        """The reason of the release after a body that ended by an error, or by none."""
        self._lock = lock
        self._leases = threading.local()

    def acquire(self) -> Lease:
        """Wait for the GPU in this thread. Raises as the async one does."""
        owner = f"thread-{threading.get_ident()}"
        taken: list[AsyncLease] = []
        given_up = False

        async def take() -> AsyncLease:
            taken.append(await self._lock.acquire_for(owner))
            if given_up:
                await taken[0].release("cancelled")
            return taken[0]

        if threading.current_thread() is threading.main_thread():
            signals.cover(call(self._lock.find_manager))  # before the wait: SIGTERM gives a waiter's seat back too
        try:
            return Lease(call(take))
        except BaseException:
            given_up = True  # a lease that arrives with Ctrl-C has nobody else to release it
            if taken:
                call(lambda: taken[0].release("cancelled"))
            raise

    def __enter__(self) -> Lease:
        self._leases.current = lease = self.acquire()
        return lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease: Lease = self._leases.current
        try:
            lease.leave(self.reason_for(error), error)
        finally:
            lease.insist()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Run a plain function under the lock."""
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function!r} is async: use aiogpulock.gpu_lock, not aiogpulock.sync.gpu_lock")
        if inspect.isgeneratorfunction(function):  # its body would run after the lock was left
            raise TypeError(f"{function!r} is a generator: use `with aiogpulock.sync.gpu_lock(…):` inside it")

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return locked


def gpu_lock(gpu_id: int | str = 0, **keywords: Any) -> GpuLock:
    """The lock of one GPU for threads; keywords as for `aiogpulock.gpu_lock`, without `manager`."""
    if "manager" in keywords:
        raise TypeError("sync.gpu_lock() takes no manager: it uses the one of its own background event loop")
    return GpuLock(async_gpu_lock(gpu_id, **keywords))
