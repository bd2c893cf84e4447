"""`GpuGate`: the lock of one GPU at the door of a web server. Middleware-free; for FastAPI, Starlette and the like."""

# No `from __future__ import annotations`: FastAPI reads those of `GpuGate.__call__` as they are.

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import lru_cache
from inspect import isawaitable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from aiogpulock import clock
from aiogpulock.api import gpu_lock
from aiogpulock.default import default_manager
from aiogpulock.errors import (
    AuthenticationError,
    ConfigError,
    DeviceBusyError,
    DeviceQuarantinedError,
    GpuLockError,
    InvalidGpuError,
    LeaseLostError,
    LockTimeoutError,
    ManagerClosedError,
    NestedLockError,
    QueueFullError,
    RedisUnavailableError,
    ServerTooOldError,
)
from aiogpulock.history import ETA_HOLDS, expected_wait, read_history, typical_hold
from aiogpulock.lease import Lease
from aiogpulock.lock import GpuLock
from aiogpulock.manager import GpuLockManager
from aiogpulock.web.lifespan import end_of_server
from aiogpulock.web.problems import RETRY_AFTER
from aiogpulock.zombies import waits

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that has gone: servers log it, and it reaches nobody."""
UNAVAILABLE = (
    RedisUnavailableError,
    AuthenticationError,
    ManagerClosedError,
    DeviceBusyError,
    DeviceQuarantinedError,
)
MISTAKES = (InvalidGpuError, ConfigError, NestedLockError, ServerTooOldError)
"""Of whoever runs the server: no client can do anything about them."""
KEEP_ESTIMATE = 1.0
"""Seconds: under load many are turned away, and they need not all ask Redis."""
LONGEST_RETRY = 3600


class GpuGate:
    """Lets one request at a time use a GPU, and turns away those that would wait too long.

    FastAPI: ``gpu = GpuGate(0, max_wait_time=20, max_waiters=32)``, then ``lease: Lease = Depends(gpu)``: the lock is
    held until the last byte of the response, a streamed one included. Starlette: ``async with gpu.lease(request):``,
    and `stream` for streamed responses.

    A full queue and a wait beyond `max_wait_time` are answered with 503 and a Retry-After that the queue's history
    tells; so is Redis being away, a GPU whose memory is not free (`gpu_memory`), and a lease that is lost. A GPU that
    does not exist is a 500, and one line in the log. The body of a request is read before it queues: a slow upload
    holds nothing. A client that goes away leaves the queue; once it has the GPU, its handler runs to its end, since
    work on a GPU cannot be stopped anywhere.

    Takes what `gpu_lock` takes; `task_name` is the request's method and path by default. Raises `InvalidGpuError` and
    `ConfigError` at once.
    """

    def __init__(self, gpu_id: int | str = 0, *, manager: GpuLockManager | None = None, **options: Any) -> None:
        self._gpu_id = gpu_id
        self._manager = manager
        self._options = options
        self._retry = RETRY_AFTER
        self._retry_known_until = 0.0
        self._lock: Callable[[str], GpuLock] = lru_cache(maxsize=128)(self._make)
        self._lock("")  # refuses wrong options at once

    def _make(self, name: str) -> GpuLock:
        return gpu_lock(self._gpu_id, manager=self._manager, **{"task_name": name, **self._options})

    async def __call__(self, request: Request) -> AsyncIterator[Lease]:
        """The FastAPI dependency."""
        async with self.lease(request) as lease:
            yield lease

    @asynccontextmanager
    async def lease(self, request: Request) -> AsyncIterator[Lease]:
        """Hold the GPU for a block of code.

        Raises starlette's `HTTPException`: 503, 500 or 499 before the block, and 503 if the lease is lost in it.
        """
        try:
            async with AsyncExitStack() as stack:
                yield await self._enter(request, stack)
        except LeaseLostError as error:
            raise _lost(error) from error

    async def stream(self, request: Request, respond: Callable[[Lease], Response | Awaitable[Response]]) -> Response:
        """Hold the GPU until the last byte of the response that `respond(lease)` makes, or the client's disconnect.

        For frameworks without dependencies: ``return await gpu.stream(request, lambda lease: StreamingResponse(…))``.
        Raises starlette's `HTTPException`: 503, 500 or 499 before `respond` is called, and 503 if the lease is lost
        before the first byte. After it the response is cut off.
        """
        try:
            async with AsyncExitStack() as stack:
                response = respond(await self._enter(request, stack))
                return _HeldResponse(await response if isawaitable(response) else response, stack.pop_all())
        except LeaseLostError as error:
            raise _lost(error) from error

    async def _enter(self, request: Request, stack: AsyncExitStack) -> Lease:
        """Acquire into `stack`, in this task, which a lost lease cancels."""
        await _read_body(request)
        try:
            async with _interruptible(request):
                return await stack.enter_async_context(self._lock(f"{request.method} {request.url.path}"))
        except (QueueFullError, LockTimeoutError) as error:  # tells of others' tasks: not for clients
            logger.info("turned away: %s", error)
            retry = await self._retry_after()
            raise _unavailable(f"the GPU is busy: try again in {retry} s", retry) from error
        except UNAVAILABLE as error:
            logger.warning("turned away: %s", error)
            raise _unavailable("the GPU cannot be had now: try again later", RETRY_AFTER) from error
        except MISTAKES as error:
            logger.error("%s", error)
            raise HTTPException(500, "see the log of the server") from error

    async def _retry_after(self) -> int:
        """Seconds until a new request could have the GPU, as far as the past tells."""
        if clock.now() >= self._retry_known_until:
            self._retry_known_until = clock.now() + KEEP_ESTIMATE  # the others do not ask meanwhile
            try:
                self._retry = await self._expected_wait()
            except GpuLockError as error:
                logger.info("no estimate of the wait: %s", error)
        return self._retry

    async def _expected_wait(self) -> int:
        manager = self._manager or await default_manager()
        keys, overview = await manager.keys_of(self._gpu_id), (await manager.started()).overview
        lock = await overview.scripts.snapshot(keys)
        typical = typical_hold(await read_history(overview.client, keys, 2 * ETA_HOLDS))
        wait = expected_wait(typical, waits(lock) + 1, lock.age)
        return RETRY_AFTER if wait is None else min(max(1, math.ceil(wait)), LONGEST_RETRY)


class _HeldResponse(Response):
    """A response under a lock that ends with it."""

    def __init__(self, response: Response, stack: AsyncExitStack) -> None:
        super().__init__(status_code=response.status_code)
        self._response = response
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with self._stack:
                await self._response(scope, receive, send_on)
        except LeaseLostError as error:
            if begun:
                raise
            raise _lost(error) from error


@asynccontextmanager
async def _interruptible(request: Request) -> AsyncIterator[None]:
    """End the block as soon as nobody waits for it any more: with 499 for a client that left, 503 if the server ends.

    It ends as under `asyncio.timeout`: what the block has completed, stays completed.
    """
    server, answer = end_of_server(), None

    def give_up(reason: HTTPException) -> None:
        nonlocal answer
        if answer is None:
            answer = reason
            limit.reschedule(asyncio.get_running_loop().time())

    def end() -> None:
        give_up(_unavailable("the server is about to end: try again", 1))

    def left(watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled() and watcher.exception() is None and end in server.listeners:
            give_up(HTTPException(CLIENT_CLOSED_REQUEST, "the client has gone"))

    watcher = asyncio.create_task(_disconnect(request), name="aiogpulock-disconnect")
    watcher.add_done_callback(left)
    server.listeners.add(end)
    try:
        async with asyncio.timeout(None) as limit:
            if server.begun:
                end()
            yield
    except TimeoutError:
        if answer is None:  # the block's own
            raise
        raise answer from None
    finally:
        server.listeners.discard(end)
        watcher.cancel()
        await asyncio.wait([watcher])


async def _disconnect(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request) -> None:
    """So that nothing but a disconnect is left to be received. Raises `HTTPException`."""
    try:
        await request.body()
    except RuntimeError:  # it was read before, as a form or a stream
        return
    except ClientDisconnect:
        raise HTTPException(CLIENT_CLOSED_REQUEST, "the client has gone") from None


def _lost(error: LeaseLostError) -> HTTPException:
    logger.warning("%s", error)
    return _unavailable("the GPU was taken away while this request used it: try again", 1)


def _unavailable(detail: str, retry: int) -> HTTPException:
    return HTTPException(503, detail, {"Retry-After": str(retry)})
