"""A quarantine: what a holder left on its GPU, and whether it has come back since."""

from __future__ import annotations

import time

import msgspec

from aiogpulock.gpu.memory import IDLE_BYTES, Baseline, MemoryReport, Terms
from aiogpulock.gpu.records import MemoryReading
from aiogpulock.models import Quarantine


def quarantine_for(
    report: MemoryReport, baseline: Baseline, terms: Terms, task: str, uuid: str, pids: frozenset[int] | None
) -> str:
    """What Redis keeps of a verdict "not freed"."""
    listed = tuple(sorted(pids or ()))
    who = f"{task!r} (pid {', '.join(map(str, listed))})" if listed else repr(task)
    own = baseline.sample.own
    quarantine = Quarantine(
        reason=f"{who} left {(report.bytes or 0) / (1 << 20):.0f} MiB: {report.reason}",
        uuid=uuid,
        task=task,
        pids=listed if own is not None else (),
        own_before=own or 0,
        used_before=baseline.sample.used,
        version=baseline.version,
        room=terms.tolerance + (0 if own else terms.context),
        since=time.time(),
    )
    return msgspec.json.encode(quarantine).decode()


def is_over(quarantine: Quarantine, reading: MemoryReading) -> bool:
    """The memory has come back: the whole device's, or, where NVML gives figures per process, the holder's.

    Memory of no listed process may still be the holder's.
    """
    if reading.version == quarantine.version and reading.used <= quarantine.used_before + quarantine.room:
        return True
    own = reading.bytes_of(frozenset(quarantine.pids))
    if not quarantine.pids or own is None or not reading.tells_processes:
        return False
    listed = [process.bytes for process in reading.processes or ()]
    if None in listed:
        return False
    nobodys = reading.used - sum(size for size in listed if size is not None)
    return own <= quarantine.own_before + quarantine.room and nobodys <= quarantine.room + IDLE_BYTES
