"""A TCP proxy that misbehaves on request. It runs in a thread of its own, so that a campaign may block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Link:
    """One connection through the proxy, both directions."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter | None) -> None:
        self.client = client
        self.server = server
        self.dead = False
        """Half open: both ends stay connected, and nothing passes any more."""

    def silence(self) -> None:
        self.dead = True

    def cut(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                writer.transport.abort()


class Proxy:
    """Forwards a port of 127.0.0.1 to another one. All methods are safe from any thread."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._links: set[Link] = set()
        self._delay = 0.0
        self._reply_delay = 0.0
        self._drops_replies = False
        self._drops_commands = False
        self._swallows = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    # faults

    def cut(self) -> None:
        """Reset every connection; new ones work."""
        self._on_each_link(Link.cut)

    def delay(self, seconds: float) -> None:
        """Hold back each piece of data by this, in both directions. 0: as before."""
        self._delay = seconds

    def delay_replies(self, seconds: float) -> None:
        """Hold back each reply by this."""
        self._reply_delay = seconds

    def half_open(self) -> None:
        """Every present connection goes silent without an end. New ones work."""
        self._on_each_link(Link.silence)

    def swallow(self, on: bool) -> None:
        """While on, nothing passes on any connection, new ones included. What was swallowed does not come later."""
        self._swallows = on
        if not on:
            self.cut()  # a stream with a hole cannot go on

    def drop_replies(self, on: bool) -> None:
        """While on, commands reach the server, and their replies are lost; at the end the connections are reset."""
        self._drops_replies = on
        if not on:
            self.cut()

    def drop_commands(self, on: bool) -> None:
        """While on, replies under way arrive, and no further command does."""
        self._drops_commands = on
        if not on:
            self.cut()

    def close(self) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # its thread

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _on_each_link(self, function: Callable[[Link], None]) -> None:
        async def call() -> None:
            for link in list(self._links):
                function(link)

        self._do(call())

    async def _close(self) -> None:
        self._server.close()
        for link in self._links:
            link.cut()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(writer, None)
        self._links.add(link)
        pumps: list[asyncio.Task[None]] = []
        try:
            from_server, link.server = await asyncio.open_connection("127.0.0.1", self._to)
            pumps = [
                asyncio.create_task(self._pump(link, reader, link.server, replies=False)),
                asyncio.create_task(self._pump(link, from_server, writer, replies=True)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the server is away: so is this connection
        finally:
            link.cut()
            self._links.discard(link)
            for pump in pumps:
                pump.cancel()

    async def _pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                if late := self._delay + (self._reply_delay if replies else 0.0):
                    await asyncio.sleep(late)
                dropped = self._drops_replies if replies else self._drops_commands
                if link.dead or self._swallows or dropped:
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
