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
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import cache
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from aiogpulock import clock
from aiogpulock.gpu import _driver
from aiogpulock.gpu.records import GpuDevice, MemoryReading, NvmlError

T = TypeVar("T")


class Asked(Generic[T]):
    """A call that the driver's thread has been given. Await it on any event loop, now or later, as often as needed.

    Raises `NvmlError` where it is awaited; `limit` seconds after the call was given, if somebody waits by then.
    """

    def __init__(self, nvml: Nvml, what: str, call: Future[T], limit: float) -> None:
        self._nvml, self._what, self._call, self._limit = nvml, what, call, limit
        self._deadline = clock.now() + limit

    def __await__(self) -> Generator[Any, None, T]:
        return self._answer().__await__()

    @property
    def answer(self) -> T | None:
        """What the driver said, if it has; None while it has not, or if it failed."""
        return self._call.result() if self._call.done() and not self.failed else None

    @property
    def failed(self) -> bool:
        """It is over, and there is no answer."""
        return self._call.cancelled() or (self._call.done() and self._call.exception() is not None)

    async def _answer(self) -> T:
        """Who is cancelled ends no call: another may wait for it."""
        answer = asyncio.wrap_future(self._call)
        answer.add_done_callback(_heard)
        try:
            # A blocked event loop may have kept the thread from running, too: it gets a moment in any case.
            async with asyncio.timeout(max(self._deadline - clock.now(), self._limit / 100)):
                return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if not self._call.cancelled():
                raise
        except TimeoutError:
            self._call.cancel()  # the thread passes over it if it has not begun
        raise self._nvml.late(self._what, self._limit)


class Nvml:
    """Readings of this host's GPUs, shared by all event loops of a process.

    `deadline`: seconds for one call; `init_deadline`: for one that has to initialise NVML first, 1-3 s where nobody
    holds the device. After `idle` seconds without a call NVML is shut down, since an open handle blocks driver unbind.
    """

    def __init__(self, *, deadline: float = 2.0, init_deadline: float = 10.0, idle: float = 60.0) -> None:
        self._deadline, self._init_deadline, self._idle = deadline, init_deadline, idle
        self.threads_started = 0
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Begin anew in a forked child, which has no thread: its parent may have been inside the driver."""
        self._mutex = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._wedged = False
        self._ready = False
        self._totals: dict[str, int] = {}

    @property
    def wedged(self) -> bool:
        """A call is overdue: the driver is asked nothing more until it comes back."""
        return self._wedged

    @property
    def is_running(self) -> bool:
        """NVML is initialised: an answer takes milliseconds."""
        return self._ready

    def devices(self) -> Asked[tuple[GpuDevice, ...]]:
        """Every GPU in the order of NVML's indices, each followed by its MIG devices."""
        return self._ask("list of devices", _driver.devices)

    async def read(self, uuid: str, *, processes: bool = True, version: int | None = None) -> MemoryReading:
        """The memory of one device. Raises `NvmlError`.

        `version`: 1 or 2, to compare with an earlier reading; by default 2, or 1 where the driver refuses that.
        `processes`: with the process list, which takes the driver's lock (4.5 ms against 12 us).
        """
        return await self.ask(uuid, processes=processes, version=version)

    def ask(self, uuid: str, *, processes: bool = True, version: int | None = None) -> Asked[MemoryReading]:
        """The same, begun at once: whoever asks may block the event loop before the answer is there."""
        return self._ask(
            "memory reading", lambda: self._noted(_driver.read(uuid, processes=processes, version=version))
        )

    def _noted(self, reading: MemoryReading) -> MemoryReading:
        self._totals[reading.uuid] = reading.total
        return reading

    async def total(self, uuid: str) -> int:
        """Bytes of one device, in use or not, by its last reading. Raises `NvmlError`."""
        return self._totals.get(uuid) or (await self.read(uuid, processes=False)).total

    async def utilization(self, uuid: str) -> int:
        """Percent of the last moment, up to 1 s, in which the device computed; MIG has none. Raises `NvmlError`."""
        return await self._ask("utilization", lambda: _driver.utilization(uuid))

    async def driver_version(self) -> str:
        """Raises `NvmlError`."""
        return await self._ask("driver version", _driver.version)

    def close(self) -> None:
        """Shut NVML down soon; a later call starts it again. Does not wait for the driver."""
        with self._mutex:
            if self._thread is not None:
                self._jobs.put(None)

    # the caller's side

    def _ask(self, what: str, work: Callable[[], T]) -> Asked[T]:
        limit = self._deadline if self._ready else self._init_deadline
        return Asked(self, what, self._refuse() if self._wedged else self._submit(work), limit)

    def _refuse(self) -> Future[Any]:
        refused: Future[Any] = Future()
        text = f"the NVIDIA driver has not answered for {self._overdue():.1f} s"
        refused.set_exception(NvmlError("wedged", text))
        return refused

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._mutex:
            try:
                self._start_thread()
            except RuntimeError as error:  # the process has too many, or ends: the next call tries again
                future.set_exception(NvmlError("unknown", f"NVML: no thread to ask the driver in: {error}"))
            else:
                self._jobs.put((future, work))
        return future

    def _start_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="aiogpulock-nvml", daemon=True)
            thread.start()  # it cannot end before the mutex is free, and finds the call then
            self._thread = thread
            self.threads_started += 1

    def late(self, what: str, limit: float) -> NvmlError:
        """Why a call was not back within `limit` seconds; the driver may be wedged from now on."""
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


_all: WeakSet[Nvml] = WeakSet()


def _after_fork() -> None:
    """Before the child has threads: two that ask at once begin with one driver."""
    _driver.after_fork()
    for nvml in _all:
        nvml.forget()


os.register_at_fork(after_in_child=_after_fork)


@cache
def shared() -> Nvml:
    """The one `Nvml` of this process: all managers, the web page and the doctor ask the driver through one thread."""
    return Nvml()


def _heard(answer: asyncio.Future[Any]) -> None:
    """asyncio complains of an error that nobody asks for: whoever waited may have gone."""
    if not answer.cancelled():
        answer.exception()


def _unexpected(error: BaseException) -> NvmlError:
    return NvmlError("unknown", f"NVML: {type(error).__name__}: {error}")
