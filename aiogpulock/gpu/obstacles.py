"""What may stand between a holder and its GPU, by one reading: pure functions. Sizes are bytes."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from aiogpulock.gpu.quarantine import is_over
from aiogpulock.gpu.records import MemoryReading, ProcessMemory
from aiogpulock.gpu.samples import CONTEXT_BYTES, IDLE_BYTES
from aiogpulock.models import Quarantine

Kind: TypeAlias = Literal["quarantined", "draining", "short", "busy", "unreadable"]


class Demands(msgspec.Struct, frozen=True, kw_only=True):
    """What a holder asks of its GPU."""

    tolerance: int
    context: int = CONTEXT_BYTES
    """Who has no more than that does not use it."""
    pids: frozenset[int] | None
    """The holder's own, as NVML numbers them; None: its numbers are not ours, and nobody counts as foreign."""
    require_free: int | None = None
    idle: bool = False
    """No foreign process may use it."""
    drained: bool = False
    """What processes that have ended left must be gone: the holder before died."""
    quarantine: Quarantine | None = None
    quarantined_pids: frozenset[int] | None = None
    """Those that are still its processes'; None: that cannot be told here."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The obstacles that may be found; none: there is nothing to look for."""
        asked: dict[Kind, bool] = {
            "quarantined": self.quarantine is not None,
            "draining": self.drained,
            "short": self.require_free is not None,
            "busy": self.idle,
        }
        return tuple(kind for kind, wanted in asked.items() if wanted)


class Obstacle(msgspec.Struct, frozen=True):
    """One demand that is not met."""

    kind: Kind
    text: str
    foreign: tuple[ProcessMemory, ...] = ()


def obstacles(reading: MemoryReading, demands: Demands) -> list[Obstacle]:
    """All demands that this reading does not meet."""
    found = []
    foreign = foreign_processes(reading, demands.pids)
    quarantine = demands.quarantine
    if quarantine is not None and not is_over(quarantine, reading, demands.quarantined_pids):
        found.append(Obstacle("quarantined", quarantine.reason))
    if demands.drained and (left := _left_by_the_dead(reading, demands.tolerance + IDLE_BYTES)):
        found.append(Obstacle("draining", left))
    if demands.require_free is not None and reading.free < demands.require_free:
        text = f"{gib(reading.free)} of {gib(reading.total)} are free, and {gib(demands.require_free)} are required"
        found.append(Obstacle("short", text, foreign))
    busy = tuple(process for process in foreign if process.bytes is None or process.bytes > demands.context)
    if demands.idle and busy:
        found.append(Obstacle("busy", "processes use it that do not hold its lock", busy))
    return found


def _left_by_the_dead(reading: MemoryReading, slack: int) -> str:
    """What may still be theirs, in words; empty: nothing. What the driver does not tell is not nothing."""
    if reading.nobodys is not None:
        return f"{gib(reading.nobodys)} are in use by no process that NVML lists" if reading.nobodys > slack else ""
    if reading.used <= slack:
        return ""
    return f"{gib(reading.used)} are in use, and NVML does not tell how much of it is of living processes"


def foreign_processes(reading: MemoryReading, pids: frozenset[int] | None) -> tuple[ProcessMemory, ...]:
    """Everybody on the list but the holder, if that can be told apart."""
    if pids is None:
        return ()
    return tuple(process for process in reading.processes or () if process.pid not in pids)


def names_others(reading: MemoryReading, demands: Demands) -> bool:
    """Whether a foreign process that uses the device would be found: with next to nothing in use there is none."""
    if reading.used <= demands.context:
        return True
    listed = reading.processes or ()
    return demands.pids is not None and any(process.bytes is None or process.bytes > 0 for process in listed)


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
