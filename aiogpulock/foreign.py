"""Who the foreign processes on a GPU are, in words that help to find them: no arguments, no environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from aiogpulock.gpu.records import GpuProcess, ProcessMemory
from aiogpulock.liveness import start_time


def named(processes: Sequence[ProcessMemory]) -> tuple[GpuProcess, ...]:
    """With command name and start time, where this program may see them."""
    return tuple(GpuProcess(one.pid, one.bytes, _command(one.pid), _started(one.pid)) for one in processes)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _started(pid: int) -> float | None:
    ticks = start_time(pid)
    return _booted_at() + ticks / os.sysconf("SC_CLK_TCK") if ticks is not None else None


@cache
def _booted_at() -> float:
    """Epoch seconds."""
    lines = Path("/proc/stat").read_text("ascii").splitlines()
    return float(next(line for line in lines if line.startswith("btime ")).split()[1])
