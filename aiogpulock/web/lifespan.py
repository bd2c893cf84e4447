"""The life of a server that uses the lock: connect before the first request, and end in order."""

from __future__ import annotations

import asyncio
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

from aiogpulock.default import default_manager
from aiogpulock.manager import GpuLockManager
from aiogpulock.monitor import GpuLockMonitor

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


class ServerEnd:
    """Whether the server has been told to end, and whom to tell."""

    def __init__(self) -> None:
        self.begun = False
        self.listeners: set[Callable[[], None]] = set()

    def begin(self) -> None:
        self.begun = True
        for listener in tuple(self.listeners):
            listener()


_ends: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ServerEnd] = weakref.WeakKeyDictionary()


def gpu_lifespan(manager: GpuLockManager | None = None, *, monitor: bool = False) -> Lifespan:
    """The lifespan of a server: ``FastAPI(lifespan=gpu_lifespan())``, the same for Starlette; or inside of your own:
    ``async with gpu_lifespan()(app): …``.

    At the start it connects, so that a server without Redis does not start. At SIGTERM or Ctrl-C the requests that wait
    in a `GpuGate` are answered with 503 at once, so that the server need not wait for their turn; those that hold a GPU
    go on. At the end the manager is closed, and with it everything is released.

    Args:
        manager: whose connections; by default the event loop's own, which `gpu_lock` and `GpuGate` use without more.
        monitor: run a `GpuLockMonitor` beside; one per Redis is enough, and several do no harm.

    Raises:
        RedisUnavailableError, AuthenticationError, ServerTooOldError, ConfigError: at the start.
    """

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            used = manager if manager is not None else await default_manager()
            stack.push_async_callback(used.close)
            await used.started()
            if monitor:
                await stack.enter_async_context(GpuLockMonitor(used))
            stack.enter_context(_hear_the_end())
            yield

    return lifespan


def end_of_server() -> ServerEnd:
    """The end of this event loop's server. It is noticed under `gpu_lifespan` only."""
    return _ends.setdefault(asyncio.get_running_loop(), ServerEnd())


@contextmanager
def _hear_the_end() -> Iterator[None]:
    """ASGI tells of the end only when every request is over, those that wait for their turn included.

    So we listen in on the signals, in front of the server's own handlers.
    """
    loop, end = asyncio.get_running_loop(), end_of_server()
    previous: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}

    def hear(signum: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(end.begin)
        previous[signal.Signals(signum)](signum, frame)

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(signum)
            if callable(handler):  # a server listens; otherwise the signal ends the process as ever
                previous[signum] = handler
                signal.signal(signum, hear)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            if signal.getsignal(signum) is hear:
                signal.signal(signum, handler)
        end.begun = False
