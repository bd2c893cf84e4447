"""A quarantine: what a holder left on its GPU, and whether it has come back since."""

from __future__ import annotations

import time

import msgspec

from aiogpulock.gpu.records import MemoryReading
from aiogpulock.gpu.report import MemoryReport
from aiogpulock.gpu.samples import IDLE_BYTES, Baseline, Terms
from aiogpulock.liveness import boot_id, start_time
from aiogpulock.models import Quarantine


def quarantine_for(
    report: MemoryReport, baseline: Baseline, terms: Terms, task: str, uuid: str, pids: frozenset[int] | None
) -> str:
    """What Redis keeps of a verdict "not freed". What crept up before this hold is to come back, too."""
    listed = sorted(pids or ())
    who = f"{task!r} (pid {', '.join(map(str, listed))})" if listed else repr(task)
    own, nobodys = baseline.sample.own, baseline.sample.unattributed
    crept = max(0, (own or 0) - (own or 0 if report.baseline is None else report.baseline))
    quarantine = Quarantine(
        reason=f"{who} left {(report.bytes or 0) / (1 << 20):.0f} MiB: {report.reason}",
        uuid=uuid,
        task=task,
        processes=tuple((pid, start_time(pid) or 0) for pid in listed) if own is not None else (),
        boot=boot_id(),
        own_before=(own or 0) - crept + baseline.sample.kins,
        nobodys_before=max(0, nobodys or 0),
        used_before=baseline.sample.used - crept,
        version=baseline.version,
        tolerance=terms.tolerance,
        room=terms.tolerance + (0 if own and not crept else terms.context),
        since=time.time(),
    )
    return msgspec.json.encode(quarantine).decode()


def still_theirs(quarantine: Quarantine) -> frozenset[int]:
    """The pids that are still the holder's: one that was given anew, or since a reboot, is somebody else's.

    A process that has ended and that NVML still lists is the holder's. Only for who numbers processes as NVML does.
    """
    if quarantine.boot != boot_id():
        return frozenset()
    return frozenset(pid for pid, started in quarantine.processes if start_time(pid) in (None, started))


def is_over(quarantine: Quarantine, reading: MemoryReading, theirs: frozenset[int] | None = None) -> bool:
    """The memory has come back: the holder's, where NVML gives figures per process, or else the whole device's.

    `theirs`: the pids that are `still_theirs`; None: not known, all count. Memory of no listed process may still be the
    holder's, or its children's.
    """
    own = reading.bytes_of(theirs if theirs is not None else frozenset(pid for pid, _ in quarantine.processes))
    nobodys = reading.nobodys
    told = reading.tells_processes or reading.used <= IDLE_BYTES
    if quarantine.processes and own is not None and nobodys is not None and told:
        back = own <= quarantine.own_before + quarantine.room
        return back and nobodys <= quarantine.nobodys_before + max(quarantine.tolerance, IDLE_BYTES)
    return reading.version == quarantine.version and reading.used <= quarantine.used_before + quarantine.room
