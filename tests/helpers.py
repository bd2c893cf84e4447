"""What many tests need."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
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


def process_state(pid: int) -> str:
    """One letter, as `ps` has it: T for stopped, Z for dead and not yet buried; X if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def left_behind(keys: Iterable[str]) -> list[str]:
    """The keys that no lock in use explains. An unused one keeps some for a while, and a host its list of GPUs."""
    kept = (":done", ":fence", ":events", ":stats", ":index", ":monitor", ":told")
    return [key for key in keys if not key.endswith(kept) and ":alias:" not in key]


def untraced() -> dict[str, str]:
    """This process's environment without coverage: for a program that runs in a copy of the tree, or in signals."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
