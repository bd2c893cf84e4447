"""A real server for tests: started, stopped, killed, paused and restarted at will."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from aiogpulock.embedded import find_server_binary

START_TIMEOUT = 30.0  # seconds; wide, since machines that run tests are busy
STOP_TIMEOUT = 15.0


class RealServer:
    """One server process with a directory of its own, on a unix socket and on a TCP port of 127.0.0.1.

    The socket, the port and `url` stay the same over `stop`, `kill`, `start` and `restart`. Nothing is persisted,
    unless `args` say so or `restart(keep_data=True)` asks for it. `args` are appended to the command line, for example
    `("--maxmemory", "4mb")`. The program is `AIOGPULOCK_TEST_SERVER`, or else what the embedded server would use.
    """

    def __init__(self, args: Sequence[str] = ()) -> None:
        self.args = tuple(args)
        self.binary = os.environ.get("AIOGPULOCK_TEST_SERVER") or str(find_server_binary().path)
        self.port = _free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="agl-", dir="/tmp"))  # short: a socket path has 103 bytes
        self.socket_path = self.directory / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    def __enter__(self) -> RealServer:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def client(self, **options: Any) -> redis.Redis:
        """A blocking client without retries; it is closed with the server at the latest."""
        settings: dict[str, Any] = {"protocol": 2, "decode_responses": True, "socket_timeout": 10, **options}
        client = redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), **settings)
        self._clients.append(client)
        return client

    def start(self) -> RealServer:
        if self.running:
            return self
        with (self.directory / "log").open("ab") as log:
            # A session of its own: Ctrl-C must reach the tests, which still need the server to clean up.
            self._process = subprocess.Popen(
                [self.binary, *self._options(), *self.args],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_for_ping()
        return self

    def stop(self) -> None:
        """SIGTERM, as an operator would; a paused server is woken to obey."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: the server says nothing to anybody."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers. `resume` ends it."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self, *, keep_data: bool) -> None:
        """Stops and starts the server, with its data or without. If it was already down, with its last dump."""
        if keep_data and self.running:
            with self.client() as client:
                client.save()
        self.stop()
        if not keep_data:
            (self.directory / "dump.rdb").unlink(missing_ok=True)
            shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
        self.start()

    def close(self) -> None:
        """Ends the process and removes the directory. Idempotent."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _options(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _wait_for_ping(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        with self.client() as client:
            while not _answers(client):
                if not self.running or time.monotonic() > deadline:
                    log = (self.directory / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"the test server did not start; its log ends:\n{log}")
                time.sleep(0.01)
            self._clients.remove(client)

    def _end(self, signum: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signum)
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.AuthenticationError:
        return True  # `--requirepass` was among the arguments: refusing is an answer
    except (redis.ConnectionError, redis.BusyLoadingError, redis.TimeoutError):
        return False


def _free_port() -> int:
    """Below the ephemeral range: nobody's outgoing connection can take the port while the server is down."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
