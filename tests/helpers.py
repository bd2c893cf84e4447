"""What many tests need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, description: str, timeout: float = 30.0, interval: float = 0.01) -> T:
    """Polls until `condition()` is true and returns its value; after `timeout` seconds fails with the description."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {description}; last seen: {value!r}")
        time.sleep(interval)
    return value


def left_behind(keys: Iterable[str]) -> list[str]:
    """The keys that no lock in use explains. An unused one keeps some for a while, and a host its list of GPUs."""
    kept = (":done", ":fence", ":events", ":stats", ":index")
    return [key for key in keys if not key.endswith(kept) and ":alias:" not in key]
