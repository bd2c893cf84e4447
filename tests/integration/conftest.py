"""Fixtures for tests with several processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.raw_scripts import RawLock
from tests.register import RegisterProcess
from tests.servers import RealServer
from tests.workers import Crew


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
