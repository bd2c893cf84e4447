"""asyncio.Lock inside one process: no other process can take part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import Setup

TITLE = "asyncio.Lock, one process"
REQUIREMENTS = ()


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Callable[[], Any]]:
    lock = asyncio.Lock()
    yield lambda: lock
