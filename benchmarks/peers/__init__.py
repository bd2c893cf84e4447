"""The peers, one module each: TITLE, REQUIREMENTS, and `opened(setup)`, which yields what a user would enter.

THREADS: it is for threads. POLLS: a waiter looks so often, in seconds. MESSAGES: it is woken by one that may be lost.

A peer runs in processes of its own, in an environment with its own requirements: two of them are both imported as
`redis_lock`. Their packages are imported inside `opened` only, so that any Python can read what they are.
"""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import threading
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".benchmarks"
NAMES = (
    "redis_fifo_lock",
    "python_redis_lock",
    "redis_lock_py",
    "redis_py",
    "redis_py_10ms",
    "coredis_lock",
    "pottery_redlock",
    "portalocker_redis",
    "aioredlock_lock",
)


@dataclass(frozen=True)
class Peer:
    """Somebody who takes part in a contest: this library, a peer, or a floor."""

    module: str
    title: str
    requirements: tuple[str, ...]
    threads: bool
    polls: float
    """Seconds between two looks of a waiter, at most; 0 if it is woken."""
    messages: bool
    """It is woken by a message that may be lost."""

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]

    def python(self) -> str:
        """The interpreter of its environment, made if it is missing. Raises `subprocess.CalledProcessError`."""
        if not self.requirements:
            return sys.executable
        with _making:
            if self.module in _failed:
                raise _failed[self.module]
            try:
                return self._environment()
            except subprocess.CalledProcessError as error:
                _failed[self.module] = error
                raise

    @property
    def is_installable(self) -> bool:
        """As far as it has been tried."""
        return self.module not in _failed

    def _environment(self) -> str:
        digest = hashlib.sha256(repr((sys.version, self.requirements)).encode()).hexdigest()[:8]
        folder = ENVIRONMENTS / f"{self.name}-{digest}"
        python, complete = str(folder / "bin" / "python"), folder / "complete"
        if not complete.exists():
            venv.create(folder, clear=True, with_pip=True)
            command = [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                *self.requirements,
            ]
            subprocess.run(command, check=True, capture_output=True, text=True)
            complete.touch()
        return python


_making = threading.Lock()
_failed: dict[str, subprocess.CalledProcessError] = {}
"""By module: what cannot be installed is tried once."""

RETRIES, RETRY_FIRST, RETRY_MOST = 10, 0.01, 1
"""How often, and after how many seconds at first and at most, `redis.Redis()` of 8.1 tries again, which `from_url`
leaves out: a peer's client shall outlive a restart of the server too."""


def patience(*, threads: bool = False) -> Any:
    """These retries for redis-py's asyncio client, or for the one for threads."""
    from redis.backoff import ExponentialWithJitterBackoff

    retry = importlib.import_module("redis.retry" if threads else "redis.asyncio.retry")
    return retry.Retry(ExponentialWithJitterBackoff(base=RETRY_FIRST, cap=RETRY_MOST), RETRIES)


def load_peer(module: str) -> Peer:
    """What a module of `benchmarks` says about itself."""
    found = importlib.import_module(f"benchmarks.{module}")
    told: dict[str, Any] = {"THREADS": False, "POLLS": 0.0, "MESSAGES": False}
    rest = {name.lower(): getattr(found, name, default) for name, default in told.items()}
    return Peer(f"benchmarks.{module}", found.TITLE, tuple(found.REQUIREMENTS), **rest)


OURS = load_peer("ours")


def peers() -> list[Peer]:
    return [load_peer(f"peers.{name}") for name in NAMES]


def floor(name: str) -> Peer:
    return load_peer(f"floors.{name}")
