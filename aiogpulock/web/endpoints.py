"""The JSON endpoints: what is known of the locks, and the one that changes something."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus

import msgspec
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aiogpulock.default import FindManager
from aiogpulock.errors import AuthenticationError, ProtocolError, RedisUnavailableError
from aiogpulock.metrics import CONTENT_TYPE, render_metrics
from aiogpulock.models import LockSnapshot, for_outside
from aiogpulock.sight import Sight
from aiogpulock.web.problems import Problem
from aiogpulock.web.security import require_token

HISTORY_LIMIT = 1000
BODY_BYTES = 16 * 1024
EXAMPLE = '{"gpu_id": "0", "holder_id": "…", "reason": "stuck"}'
READY_SECONDS = 3.0
"""Probes give up early; Redis that does not answer in this time is not ready."""


class ReleaseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /gpu-lock/release``. `holder_id` as the status shows it; for a foreign value, the value."""

    gpu_id: int | str
    holder_id: str
    reason: str = "operator"


_release_decoder = msgspec.json.Decoder(ReleaseRequest)


def json_response(value: object, status: int = HTTPStatus.OK) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


class Endpoints:
    """The endpoints on one manager; `token` None: read-only."""

    def __init__(self, find_manager: FindManager, token: str | None) -> None:
        self._find_manager = find_manager
        self._token = token

    def routes(self) -> list[Route]:
        return [
            Route("/livez", self.alive),
            Route("/readyz", self.ready),
            Route("/metrics", self.metrics),
            Route("/gpu-lock/health", self.health),
            Route("/gpu-lock/exception-stats", self.exception_stats),
            Route("/gpu-lock/status", self.status),
            Route("/gpu-lock/history", self.history),
            Route("/gpu-lock/release", self.release, methods=["POST"]),
        ]

    async def alive(self, _: Request) -> Response:
        """This process answers. It asks nobody else."""
        return json_response({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        """Redis answers."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                parts = await (await self._find_manager()).started()
                await parts.client.execute("PING")
        except TimeoutError:
            raise RedisUnavailableError(f"Redis did not answer within {READY_SECONDS:g} s") from None
        return json_response({"status": "ready"})

    async def health(self, _: Request) -> Response:
        """Always 200 in bounded time: the report says what is wrong."""
        return json_response(await (await self._find_manager()).health_check())

    async def metrics(self, _: Request) -> Response:
        """For Prometheus; always 200 in bounded time, so that a scrape can tell that Redis is away."""
        return Response(await render_metrics(await self._find_manager()), media_type=CONTENT_TYPE)

    async def exception_stats(self, _: Request) -> Response:
        """The four counters of all processes, and the rates of late."""
        report = await (await self._find_manager()).health_check()
        if report.exception_stats is None or report.exception_rates is None:
            raise RedisUnavailableError(report.error or "the counters are in Redis, which does not answer")
        body = {**asdict(report.exception_stats), **asdict(report.exception_rates), "timestamp": report.timestamp}
        return json_response(body)

    async def status(self, _: Request) -> Response:
        """Every lock."""
        manager = await self._find_manager()
        locks, unreadable = await manager.look()
        body = {"locks": [for_outside(lock) for lock in locks], "unreadable": unreadable}
        return json_response({"server": manager.server, "timestamp": time.time(), **body})

    async def history(self, request: Request) -> Response:
        """The last events of one lock, or of all, newest first; and why those of another cannot be read."""
        limit = _limit(request.query_params.get("limit", "100"))
        manager = await self._find_manager()
        sight = await manager.look()
        wanted = request.query_params.getlist("gpu_id")
        locks = [_known(gpu_id, sight) for gpu_id in wanted] if wanted else sight.locks
        events, unreadable = [], {}
        for lock in locks:
            try:
                events += await manager.history(lock, limit=limit)
            except (AuthenticationError, ProtocolError) as error:
                if isinstance(lock, str) or wanted:
                    raise
                unreadable[lock.gpu_id] = str(error)  # one damaged key hides no other lock
        events.sort(key=lambda event: event.at, reverse=True)
        return json_response({"timestamp": time.time(), "events": events[:limit], "unreadable": unreadable})

    async def release(self, request: Request) -> Response:
        """Force-release one lock, if it still has the holder that the operator means."""
        require_token(request, self._token)
        wish = _decoded(await _body(request))
        manager = await self._find_manager()
        lock = _known(str(wish.gpu_id), await manager.look())
        actor = f"http {request.client.host if request.client else 'unknown'}"
        if not await manager.force_release(lock, holder_id=wish.holder_id, reason=wish.reason, actor=actor):
            raise Problem(
                HTTPStatus.CONFLICT,
                f"GPU {wish.gpu_id} is not held by {wish.holder_id!r} now: look at /gpu-lock/status and decide again",
            )
        return json_response({"released": True, "gpu_id": str(wish.gpu_id), "holder_id": wish.holder_id})


def _known(gpu_id: str, sight: Sight) -> LockSnapshot | str:
    """The lock of that very name; otherwise it is asked for as a program on this host would."""
    return next((lock for lock in sight.locks if lock.gpu_id == gpu_id), gpu_id)


def _limit(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= HISTORY_LIMIT:
        raise Problem(
            HTTPStatus.BAD_REQUEST, f"limit: got {text[:20]!r}, expected a whole number from 1 to {HISTORY_LIMIT}"
        )
    return int(text)


async def _body(request: Request) -> bytes:
    """At most `BODY_BYTES`."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {BODY_BYTES} bytes")
    return body


def _decoded(body: bytes) -> ReleaseRequest:
    try:
        return _release_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"{error}; expected JSON such as {EXAMPLE}") from None
