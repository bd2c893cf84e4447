"""`serve`: the app on a server of its own, for ``aiogpulock serve``."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress

import uvicorn

from aiogpulock.manager import GpuLockManager
from aiogpulock.monitor import GpuLockMonitor
from aiogpulock.web.app import create_app
from aiogpulock.web.feed import Feed

TOKEN_VARIABLE = "AIOGPULOCK_SERVER_TOKEN"  # noqa: S105 - the name of a variable
CLOSE_SECONDS = 5
"""How long open requests may take at the end."""


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8470,
    redis_url: str | None = None,
    config: str | os.PathLike[str] | None = None,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    monitor: bool | None = None,
    log_level: str = "info",
) -> None:
    """Serve the app until SIGINT or SIGTERM. Blocks; for the main thread.

    Args:
        host, port: where to listen; loopback by default. Port 0 takes a free one, which the log names.
        redis_url, config: as for `GpuLockManager`. Redis may be away: the page says so, and shows it when it is back.
        token: lets its bearer release a lock by force; by default the environment's ``AIOGPULOCK_SERVER_TOKEN``, and
            without either the server is read-only.
        allowed_hosts: names under which clients ask, beside localhost and every IP address.
        monitor: whether to run a `GpuLockMonitor`; by default as ``gpu_lock_monitor.enabled`` says.
        log_level: uvicorn's.

    Raises:
        ConfigError: before it listens.
        SystemExit: the port is taken.
    """
    manager = GpuLockManager(redis_url, config)
    if manager.settings.gpu_lock_monitor.enabled if monitor is None else monitor:
        GpuLockMonitor(manager)  # refuses alert URLs that cannot be used now, and not in the middle of the start
    token = token if token is not None else os.environ.get(TOKEN_VARIABLE) or None
    app = create_app(manager, token=token, allowed_hosts=allowed_hosts, monitor=monitor)
    options = uvicorn.Config(
        app, host=host, port=port, log_level=log_level, access_log=False, timeout_graceful_shutdown=CLOSE_SECONDS
    )
    with suppress(KeyboardInterrupt):  # by then everything is closed
        _Server(options, manager, app.state.feed).run()


class _Server(uvicorn.Server):
    """Lets open pages end in order, and closes the manager before the process dies of the signal."""

    def __init__(self, config: uvicorn.Config, manager: GpuLockManager, feed: Feed) -> None:
        super().__init__(config)
        self._manager = manager
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._feed.close()
        await super().shutdown(sockets)
        await self._manager.close()
