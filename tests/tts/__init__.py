"""A real Celery worker of a small text-to-speech service, in a process group of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import psutil
import redis
from celery import Celery

from tests.helpers import wait_until
from tests.servers import RealServer

ROOT = Path(__file__).parents[2]


def broker(server: RealServer) -> str:
    """Celery's part of a server: another database than the locks'."""
    return f"redis://127.0.0.1:{server.port}/1"


@contextlib.contextmanager
def client(server: RealServer) -> Iterator[Celery]:
    """Sends tasks to the workers of `server` by name; afterwards no connection stays open."""
    app = Celery("client", broker=broker(server), backend=broker(server), set_as_current=False)
    try:
        yield app
    finally:
        gc.collect()  # a result that is dropped later would ask a server that is gone, for 20 s
        app.backend.result_consumer.stop()
        app.backend.client.close()
        app.close()


@contextlib.contextmanager
def foreign_holder(client: redis.Redis, value_key: str) -> Iterator[None]:
    """While inside, another program holds the lock; then it tells everybody that it is done."""
    client.set(value_key, "locked_by_another program", px=60_000)
    try:
        yield
    finally:
        client.delete(value_key)
        client.publish(f"gpu_lock:{value_key}", "{}")


class TtsWorker:
    """``celery -A tests.tts.tasks worker``, ready for tasks."""

    def __init__(self, server: RealServer, pool: str, *, concurrency: int = 2, queue: str = "celery") -> None:
        command = ("worker", f"--pool={pool}", f"--concurrency={concurrency}", f"--queues={queue}", "--loglevel=INFO")
        quick = ("--without-gossip", "--without-mingle", "--without-heartbeat", f"--hostname={pool}@%h")
        settings = {"REDIS_URL": server.url, "TTS_BROKER": broker(server), "AIOGPULOCK_RESTART_GRACE": "0"}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.tts.tasks", *command, *quick],
            cwd=ROOT,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(lambda: self.ended or " ready." in self.log, description=f"a {pool} worker to be ready")
            assert not self.ended, self.log
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def watches(self) -> list[psutil.Process]:
        """Its death watch, which is a child of the main process."""
        found = []
        for child in psutil.Process(self._process.pid).children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                if "aiogpulock.death_watch" in child.cmdline():
                    found.append(child)
        return found

    def lose_its_broker(self, client: redis.Redis) -> None:
        """Cut its connections, and nobody else's: Celery leaves open what its own client in this process loses."""
        for connection in psutil.Process(self._process.pid).net_connections("tcp"):
            client.client_kill_filter(addr="{}:{}".format(*connection.laddr))

    def signal(self, signum: signal.Signals) -> None:
        """To the main process alone."""
        self._process.send_signal(signum)

    def wait(self) -> int:
        return self._process.wait(30)

    def close(self) -> None:
        """SIGKILL to all of its processes: a worker whose children were killed may hang in its own shutdown."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def __enter__(self) -> TtsWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
