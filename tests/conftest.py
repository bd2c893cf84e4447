"""Fixtures that every test may use: a real server, a clean one, and a manager on it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis
import uvloop

from aiogpulock import GpuLockManager
from tests.helpers import left_behind
from tests.raw_scripts import RawLock
from tests.register import RegisterProcess
from tests.servers import RealServer
from tests.workers import Crew


def pytest_configure() -> None:
    """A shell starts background programs with SIGINT ignored; programs under test would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if os.environ.get("AIOGPULOCK_TEST_LOOP") == "uvloop":

    def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
        """Every async test runs on uvloop."""
        return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def _shared_server() -> Iterator[RealServer]:
    with RealServer() as server:
        yield server


@pytest.fixture
def server(_shared_server: RealServer) -> RealServer:
    """The session's server, empty. Tests that stop, kill or configure a server make their own `RealServer`."""
    with _shared_server.client() as client:
        client.flushall()
        client.script_flush()
    return _shared_server


@pytest.fixture
def own_server() -> Iterator[RealServer]:
    """A server for one test, to be killed, restarted and configured at will."""
    with RealServer() as server:
        yield server


@pytest.fixture
def redis_url(server: RealServer) -> str:
    return server.url


@pytest.fixture
def redis_cleanup(server: RealServer) -> Iterator[redis.Redis]:
    """A client; afterwards the test fails if it left a lock, a queue, or a key that never expires."""
    with server.client() as client:
        yield client
        left = left_behind(client.keys("*"))
        forever = [key for key in client.keys("*") if client.pttl(key) < 0]
    assert not left, f"left in Redis: {left}"
    assert not forever, f"without expiry in Redis: {forever}"


@pytest.fixture
async def manager(redis_url: str, redis_cleanup: redis.Redis) -> AsyncIterator[GpuLockManager]:
    """A manager on the clean server, with times that tests can wait for."""
    async with GpuLockManager(redis_url, heartbeat={"interval": 0.5, "timeout": 5}, restart_grace=1) as manager:
        yield manager


@pytest.fixture(scope="session")
def _embedded_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agl-", dir="/tmp") as directory:  # short: a socket path has 103 bytes
        yield Path(directory) / "v1"


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, _embedded_directory: Path) -> None:
    """No test sees the settings of whoever runs it, nor leaves a file beside the project's."""
    for name in list(os.environ):
        if name.startswith("AIOGPULOCK_") and name != "AIOGPULOCK_TEST_SERVER":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AIOGPULOCK_GPU_MEMORY_NVML", "off")  # a driver of this machine is for tests/gpu alone
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("AIOGPULOCK_EMBEDDED_DIR", str(_embedded_directory))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def crew(server: RealServer) -> Iterator[Crew]:
    """Starts worker processes; the server outlives them."""
    with Crew() as crew:
        yield crew


@pytest.fixture
def lone_crew() -> Iterator[Crew]:
    """A crew for a test that has a server of its own."""
    with Crew() as crew:
        yield crew


@pytest.fixture
def register() -> Iterator[RegisterProcess]:
    """A fencing register in its own process."""
    directory = Path(tempfile.mkdtemp(prefix="agr-", dir="/tmp"))  # short: a socket path has 103 bytes
    process = RegisterProcess(directory)
    yield process
    process.close()
    shutil.rmtree(directory)


@pytest.fixture
def lock(server: RealServer) -> Iterator[RawLock]:
    """Lock 0 on the clean server, seen from outside."""
    with server.client() as client:
        yield RawLock(client)
