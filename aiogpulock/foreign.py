"""Who the foreign processes on a GPU are, in words that help to find them: no arguments, no environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from aiogpulock.gpu.records import GpuProcess, MemoryReading, ProcessMemory
from aiogpulock.liveness import start_time


class Family:
    """`pids`, the holder's as NVML numbers them, and whoever they started, also once that has lost its parent."""

    def __init__(self, pids: frozenset[int] | None) -> None:
        self.pids = pids
        self._kin: dict[int, int | None] = {}
        """Start times, by pid."""

    def kin(self, reading: MemoryReading) -> frozenset[int]:
        """Those on the list that the holder's started."""
        if self.pids is None:
            return frozenset()
        return frozenset(one.pid for one in reading.processes or () if self._is_kin(one.pid, self.pids))

    @property
    def everybody(self) -> frozenset[int] | None:
        """With the kin that was seen."""
        return None if self.pids is None else self.pids | self._kin.keys()

    def _is_kin(self, pid: int, pids: frozenset[int]) -> bool:
        if pid in pids:
            return False
        if pid in self._kin and self._kin[pid] == start_time(pid):
            return True
        self._kin.pop(pid, None)
        if not _descends(pid, pids):
            return False
        self._kin[pid] = start_time(pid)
        return True


def family(pids: frozenset[int] | None, reading: MemoryReading) -> frozenset[int] | None:
    """`pids`, and those on the list that descend from them: whoever the holder started is not foreign."""
    return None if pids is None else pids | Family(pids).kin(reading)


def _descends(pid: int, pids: frozenset[int]) -> bool:
    while pid > 0:
        if pid in pids:
            return True
        pid = _parent(pid)
    return False


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        return int(stat.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


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
