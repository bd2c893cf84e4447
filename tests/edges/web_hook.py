"""A web hook: a real HTTP server that remembers what it was sent, and answers well, badly, or not at all."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class WebHook:
    """`url` is that of Apprise's plain JSON hook, with a secret path. `status` is what it answers; None: nothing."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.status: int | None = 200
        self.release = threading.Event()
        self.late: threading.Event | None = None
        """It answers when this is set; None: at once."""
        self.asked = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.asked += 1
                if hook.late is not None:
                    hook.late.wait(30)
                if hook.status is None:
                    hook.release.wait(30)
                    return
                status = hook.status  # a test that sees the message may change it
                hook.received.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self._server.server_port}/s3cr3t-path?-token=s3cr3t-query"

    @property
    def titles(self) -> list[str]:
        return [str(message["title"]) for message in self.received]

    def __enter__(self) -> WebHook:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
