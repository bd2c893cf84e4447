"""redis-py's own asyncio Lock, told to poll every 10 ms."""

from __future__ import annotations

from typing import Any

from benchmarks.contender import Setup
from benchmarks.peers import redis_py

TITLE = "redis-py Lock, 10 ms"
REQUIREMENTS = redis_py.REQUIREMENTS
POLLS = 0.01


def opened(setup: Setup) -> Any:
    return redis_py.opened(setup, sleep=0.01)
