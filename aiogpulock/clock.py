"""The clock that durations are measured on: it goes on while the machine is suspended, where the system has one."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on the machine's clock that counts suspend. Only differences mean anything."""
    return time.clock_gettime(_CLOCK)
