"""NVML in one owned daemon thread: the event loop never waits on the driver.

A call that hangs in a sick driver cannot be ended, and in the default executor it would keep `asyncio.run` from ending.
So there is one thread, a deadline for each call, and once a call is overdue ("wedged") every further one is refused
at once, until the driver comes back; no second thread is ever started beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

from aiogpulock import clock
from aiogpulock.gpu import _driver
from aiogpulock.gpu.records import GpuDevice, MemoryReading, NvmlError

T = TypeVar("T")


class Nvml:
    """Readings of this host's GPUs, shared by all event loops of a process.

    `deadline`: seconds for one call; `init_deadline`: for one that has to initialise NVML first, 1-3 s where nobody
    holds the device. After `idle` seconds without a call NVML is shut down, since an open handle blocks driver unbind.
    """

    def __init__(self, *, deadline: float = 2.0, init_deadline: float = 10.0, idle: float = 60.0) -> None:
        self._deadline, self._init_deadline, self._idle = deadline, init_deadline, idle
        self.threads_started = 0
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._wedged = False
        self._ready = False

    @property
    def wedged(self) -> bool:
        """A call is overdue: the driver is asked nothing more until it comes back."""
        return self._wedged and self._pid == os.getpid()

    async def devices(self) -> tuple[GpuDevice, ...]:
        """Every GPU in the order of NVML's indices, each followed by its MIG devices. Raises `NvmlError`."""
        return await self._call("list of devices", _driver.devices)

    async def read(self, uuid: str, *, processes: bool = True, version: int | None = None) -> MemoryReading:
        """The memory of one device. Raises `NvmlError`.

        `version`: 1 or 2, to compare with an earlier reading; by default 2, or 1 where the driver refuses that.
        `processes`: with the process list, which takes the driver's lock (4.5 ms against 12 us).
        """
        return await self._call("memory reading", lambda: _driver.read(uuid, processes=processes, version=version))

    async def utilization(self, uuid: str) -> int:
        """Percent of the last moment, up to 1 s, in which the device computed; MIG has none. Raises `NvmlError`."""
        return await self._call("utilization", lambda: _driver.utilization(uuid))

    async def driver_version(self) -> str:
        """Raises `NvmlError`."""
        return await self._call("driver version", _driver.version)

    def close(self) -> None:
        """Shut NVML down soon; a later call starts it again. Does not wait for the driver."""
        if self._pid != os.getpid():
            return
        with self._mutex:
            if self._thread is not None:
                self._jobs.put(None)

    # the caller's side

    async def _call(self, what: str, work: Callable[[], T]) -> T:
        if self._pid != os.getpid():
            self._reset()
            _driver.after_fork()
        if self._wedged:
            raise NvmlError("wedged", f"the NVIDIA driver has not answered for {self._overdue():.1f} s")
        limit = self._deadline if self._ready else self._init_deadline
        future = self._submit(work)
        try:
            async with asyncio.timeout(limit):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise self._late(what, limit) from None

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._mutex:
            self._jobs.put((future, work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="aiogpulock-nvml", daemon=True)
                self.threads_started += 1
                self._thread.start()
        return future

    def _late(self, what: str, limit: float) -> NvmlError:
        """The future is cancelled by now: the thread passes over it if it has not begun."""
        if self._overdue() < limit / 2:  # other calls took the time, and the driver answers
            return NvmlError("timeout", f"NVML: no {what} within {limit:g} s, other calls came first")
        with self._mutex:
            self._wedged = self._busy_since is not None
        return NvmlError("wedged", f"NVML: no {what} within {limit:g} s: the NVIDIA driver hangs")

    def _overdue(self) -> float:
        since = self._busy_since
        return clock.now() - since if since is not None else 0.0

    # the thread's side

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._idle if self._ready else 0)  # without a driver it ends at once
            except queue.Empty:
                job = None
            if job is not None:
                self._do(*job)
            elif self._stop():
                return

    def _do(self, future: Future[Any], work: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self._busy_since = clock.now()
        try:
            result = self._initialised(work)
        except BaseException as error:
            self._idle_again()
            future.set_exception(error if isinstance(error, NvmlError) else _unexpected(error))
        else:
            self._idle_again()
            future.set_result(result)

    def _initialised(self, work: Callable[[], T]) -> T:
        if not self._ready:
            _driver.start()
            self._ready = True
        try:
            return work()
        except NvmlError as error:
            if error.code != _driver.UNINITIALIZED:
                raise
        self._ready = False  # another user of nvidia-ml-py in this process shut it down
        _driver.start()
        self._ready = True
        return work()

    def _idle_again(self) -> None:
        with self._mutex:
            self._busy_since, self._wedged = None, False

    def _stop(self) -> bool:
        """Shut NVML down and end this thread, unless a call came meanwhile."""
        self._busy_since = clock.now()
        if self._ready:
            self._ready = False
            with contextlib.suppress(NvmlError):
                _driver.stop()
        self._idle_again()
        with self._mutex:
            if not self._jobs.empty():
                return False
            self._thread = None
            return True


@cache
def shared() -> Nvml:
    """The one `Nvml` of this process: all managers, the web page and the doctor ask the driver through one thread."""
    return Nvml()


def _unexpected(error: BaseException) -> NvmlError:
    return NvmlError("unknown", f"NVML: {type(error).__name__}: {error}")
