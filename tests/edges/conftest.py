"""Fixtures for the command line: real processes of it, none of which is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.edges.shell import Shell
from tests.servers import RealServer


@pytest.fixture
def shell(server: RealServer) -> Iterator[Shell]:
    """Runs the command line on the clean server."""
    with Shell(server.url) as shell:
        yield shell
