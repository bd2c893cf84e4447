"""The live page: its files, and the stream of server-sent events that fills it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from aiogpulock.web.feed import Feed

FILES = Path(__file__).with_name("static")
TICK = 5
"""Seconds between two signs of life; the page counts as disconnected after three of them."""


class Page:
    """The page over one feed. All its URLs are relative, so it works under any prefix."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.page),
            Route("/events", self.events),
            Mount("/static", StaticFiles(directory=FILES)),
        ]

    async def page(self, request: Request) -> Response:
        """At the prefix without its slash, which some frameworks answer too, the relative URLs would miss."""
        asked = request.scope.get("raw_path", b"/").decode("ascii", "replace")
        if not asked.endswith("/"):
            return RedirectResponse(f"{asked.rpartition('/')[2]}/")
        return FileResponse(FILES / "index.html")

    async def events(self, _: Request) -> Response:
        """Event ``view``: everything that the page shows, at each change. Event ``clock``: the server's time."""
        return EventSourceResponse(self._stream(), ping=TICK, ping_message_factory=self._clock, send_timeout=30)

    async def _stream(self) -> AsyncGenerator[ServerSentEvent, None]:
        yield ServerSentEvent(event="clock", data=f"{self._feed.now():.3f}", retry=1000)
        async with aclosing(self._feed.watch()) as views:
            async for view in views:
                yield ServerSentEvent(event="clock", data=f"{self._feed.now():.3f}")
                yield ServerSentEvent(event="view", data=view.decode())

    def _clock(self) -> ServerSentEvent:
        return ServerSentEvent(event="clock", data=f"{self._feed.now():.3f}")
