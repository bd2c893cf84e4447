"""What a verdict on a holder's memory compares: the device at one moment, seen from the holder. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from aiogpulock.gpu.records import MemoryReading, ProcessMemory

CONTEXT_BYTES = 512 << 20
"""What a CUDA context may keep while its process lives: 300-400 MB. More would hide a leak of 1 GiB."""
IDLE_BYTES = 64 << 20
"""A device that holds no more is used by nobody, whatever its process list says: drivers keep some MB."""


class MemorySample(msgspec.Struct, frozen=True):
    """One look at the device, seen from the holder."""

    at: float
    """Seconds on `clock.now`."""
    used: int
    """On the whole device."""
    own: int | None
    """By the holder's processes; None: NVML does not tell, or numbers processes otherwise than this one sees them."""
    own_listed: bool = False
    """One of the holder's processes is on the list."""
    kin: tuple[ProcessMemory, ...] = ()
    """Processes on the list that the holder's started."""
    others: tuple[ProcessMemory, ...] = ()
    """Every other process on the list; none where the numbers are not ours."""
    tells: bool = False
    """The list has figures: so a process that is not on it has nothing."""
    next_holder: bool = False
    """The lock is somebody's again, who may allocate."""

    @property
    def unattributed(self) -> int | None:
        """In use, and by no listed process: of one that has just died, for example. None: some have no figure."""
        listed = (*self.kin, *self.others)
        if any(process.bytes is None for process in listed):
            return None
        return self.used - (self.own or 0) - total(listed)

    @property
    def kins(self) -> int:
        """By processes that the holder's started, as far as they have a figure."""
        return total(self.kin)


class Baseline(msgspec.Struct, frozen=True):
    """The device when the lease began. Others' memory is recorded apart, so that what drains later hides no leak."""

    sample: MemorySample
    version: Literal[1, 2]
    total: int
    steady: bool | None = None
    """A second look found nothing draining; None: there was none."""
    doubt: str = ""
    """Why memory of this hold may be counted here: then only who has what it `surely` had is known to be back."""
    surely: int | None = None
    """In doubt: the holder's own bytes that are not of this hold for certain."""


class Terms(msgspec.Struct, frozen=True):
    """How memory is judged."""

    tolerance: int = 256 << 20
    context: int = CONTEXT_BYTES
    settle_time: float = 5.0

    def allowed(self, *, warm: bool) -> int:
        """Bytes more that a process may keep; one that had nothing before, a context too."""
        return self.tolerance + (0 if warm else self.context)


def sample_of(
    reading: MemoryReading,
    pids: frozenset[int] | None,
    *,
    kin: frozenset[int] = frozenset(),
    next_holder: bool = False,
) -> MemorySample:
    """`pids`: the holder's, as NVML numbers them; None where its numbers are not ours, as inside a container.

    `kin`: of the others, those that the holder's started.
    """
    if pids is None:
        return MemorySample(reading.at, reading.used, own=None, next_holder=next_holder)
    listed = reading.processes or ()
    own_listed = any(process.pid in pids for process in listed)
    own = reading.bytes_of(pids)
    return MemorySample(
        at=reading.at,
        used=reading.used,
        own=None if own_listed and not own else own,  # listed with zero bytes: the driver does not tell
        own_listed=own_listed,
        kin=tuple(process for process in listed if process.pid in kin - pids),
        others=tuple(process for process in listed if process.pid not in kin | pids),
        tells=reading.tells_processes,
        next_holder=next_holder,
    )


def with_own(baseline: Baseline, own: int) -> Baseline:
    """A holder that had so many bytes of its own before."""
    sample = baseline.sample
    more = own - (sample.own or 0)
    surely = baseline.surely + more if baseline.surely is not None else None
    sample = msgspec.structs.replace(sample, own=own, used=sample.used + more)
    return msgspec.structs.replace(baseline, sample=sample, surely=surely)


def nothing_drains(first: MemorySample, later: MemorySample | None, tolerance: int) -> bool | None:
    """Whether nobody's memory was draining when the lease began; None: one look cannot tell."""
    if first.used <= IDLE_BYTES:
        return True
    return None if later is None else later.used >= first.used - tolerance


def total(processes: Sequence[ProcessMemory]) -> int:
    """As far as they have a figure."""
    return sum(process.bytes or 0 for process in processes)
