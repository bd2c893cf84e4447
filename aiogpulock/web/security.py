"""Who may ask: a check of Host and Origin in front of the app, and the token for what changes something.

A page on the web can make a browser ask any address, also on loopback. It cannot forge the Host header, so with DNS
rebinding it comes under a *name* of its own: an IP address, ``localhost`` and listed names are answered, no other. And
it cannot hide its Origin.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aiogpulock.web.problems import Problem

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class CheckedOrigin:
    """ASGI middleware of our own app: answers only what comes by a known name and from its own page."""

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        self._allowed = {host.lower().rstrip(".") for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self.check(Headers(scope=scope))
        except Problem as problem:
            await problem.response()(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def check(self, headers: Headers) -> None:
        """Raise `Problem` for a foreign name or origin. No browser leaves Host out."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._known(_name(f"//{host}")):
            raise Problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this server does not answer to the name {_name(f'//{host}')!r}: ask by IP address, or name it in "
                "allowed_hosts",
            )
        if origin is not None and _place(origin) != host and _name(origin) not in self._allowed:
            raise Problem(HTTPStatus.FORBIDDEN, f"a page from {origin!r} may not ask this server")

    def _known(self, name: str) -> bool:
        return name == "localhost" or name in self._allowed or "*" in self._allowed or _is_address(name)


def require_token(request: Request, token: str | None) -> None:
    """Raise `Problem` unless the request carries the token."""
    if not token:
        raise Problem(HTTPStatus.FORBIDDEN, "this server is read-only: start it with a token")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("a token is needed: Authorization: Bearer …")
    # Header values are bytes, which the server reads as Latin-1; a variable may hold bytes that are no UTF-8.
    if not secrets.compare_digest(given.strip(" \t").encode("latin-1"), token.encode("utf-8", "surrogateescape")):
        raise _unauthorized("this is not the token that the server was started with")


def _unauthorized(detail: str) -> Problem:
    return Problem(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})


def _place(url: str) -> str:
    """The host in a URL with its port, as it is written; empty if there is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _name(url: str) -> str:
    """The host in a URL, lower case, without port; empty if there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
