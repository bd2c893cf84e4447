"""The ASGI app: health, status, history, release and the live page, to mount or to serve."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from aiogpulock.default import default_manager
from aiogpulock.errors import ConfigError, GpuLockError
from aiogpulock.manager import GpuLockManager
from aiogpulock.monitor import GpuLockMonitor
from aiogpulock.web.endpoints import Endpoints
from aiogpulock.web.feed import Feed
from aiogpulock.web.page import Page
from aiogpulock.web.problems import answer
from aiogpulock.web.security import CheckedOrigin


def create_app(
    manager: GpuLockManager | None = None,
    *,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    monitor: bool | None = None,
) -> Starlette:
    """The app, to mount in FastAPI, Starlette or Litestar under any prefix, or to serve.

    Its lifespan runs a `GpuLockMonitor`. A framework that mounts the app does not run that lifespan: there
    ``gpu_lifespan(monitor=True)`` does the same.

    Args:
        manager: whose locks to show; by default the event loop's own, which `gpu_lock` uses too. It stays open.
        token: who sends it may release a lock by force; without one the app is read-only.
        allowed_hosts: names under which the server is known, beside localhost and every IP address. ``*``: any.
        monitor: whether to run the monitor; by default as ``gpu_lock_monitor.enabled`` says.

    Raises:
        ConfigError: for an empty token.
    """
    if token is not None and not token.strip():
        raise ConfigError("create_app(token=…): must not be empty; None makes the app read-only")
    token = token.strip() if token is not None else None  # a file's last newline is no part of it

    async def find_manager() -> GpuLockManager:
        return manager if manager is not None else await default_manager()

    feed = Feed(find_manager, can_release=token is not None)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        used = await find_manager()
        async with AsyncExitStack() as stack:
            if used.settings.gpu_lock_monitor.enabled if monitor is None else monitor:
                await stack.enter_async_context(GpuLockMonitor(used))
            stack.push_async_callback(feed.close)
            yield

    app = Starlette(
        routes=[*Page(feed).routes(), *Endpoints(find_manager, token).routes()],
        lifespan=lifespan,
        middleware=[Middleware(CheckedOrigin, allowed_hosts=allowed_hosts), Middleware(_AnyMount)],
        exception_handlers={HTTPException: answer, GpuLockError: answer, Exception: answer},
    )
    app.state.feed = feed
    return app


class _AnyMount:
    """ASGI middleware: some frameworks end each path of a mounted app with a slash, which none of ours has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, prefix = scope.get("path", ""), scope.get("root_path", "").rstrip("/")
        if path.endswith("/") and path not in ("/", f"{prefix}/"):
            scope = {**scope, "path": path[:-1]}
        await self._app(scope, receive, send)
