"""Errors over HTTP: problem details (RFC 9457), and the status that each error of this library has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from aiogpulock.errors import (
    AuthenticationError,
    ConfigError,
    GpuLockError,
    InvalidGpuError,
    ManagerClosedError,
    RedisUnavailableError,
    ServerTooOldError,
)

logger = logging.getLogger(__name__)

RETRY_AFTER = 5
"""Seconds that a client is told to wait when nothing better is known, as while Redis is away."""

_AWAY = (
    RedisUnavailableError,
    AuthenticationError,
    ServerTooOldError,
    ManagerClosedError,
)


class Problem(HTTPException):
    """An answer other than success. `detail` says what is wrong and what to do."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)

    def response(self) -> Response:
        body = {"type": "about:blank", "title": HTTPStatus(self.status_code).phrase, "status": self.status_code}
        return Response(
            msgspec.json.encode({**body, "detail": self.detail}),
            self.status_code,
            headers=self.headers,
            media_type="application/problem+json",
        )


def problem_of(error: Exception) -> Problem:
    """What an error is over HTTP. Unknown ones tell nothing of the inside."""
    match error:
        case Problem():
            return error
        case HTTPException():
            return Problem(HTTPStatus(error.status_code), error.detail, error.headers)
        case InvalidGpuError() | ConfigError():
            return Problem(HTTPStatus.BAD_REQUEST, str(error))
        case GpuLockError() if isinstance(error, _AWAY):
            return Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": str(RETRY_AFTER)})
        case GpuLockError():
            return Problem(HTTPStatus.BAD_GATEWAY, str(error))
        case _:
            return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "see the log of the server")


async def answer(_: Request, error: Exception) -> Response:
    """Exception handler of the app."""
    return problem_of(error).response()
