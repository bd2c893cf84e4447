"""Fixtures for tests that measure time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import RealServer
from tests.workers import Crew


@pytest.fixture
def crew(server: RealServer) -> Iterator[Crew]:
    """Starts worker processes; the server outlives them."""
    with Crew() as crew:
        yield crew
