"""Whether a holder's memory came back: pure functions over samples. Sizes are bytes, times seconds.

"Freed" means three things. The holder's processes are gone: the device is back at the baseline. They live on and had
memory before ("warm"): back at that. They live on and had none ("cold"): a CUDA context may stay, and is reported so.
What counts is the processes' own figure where NVML gives it. "It stopped falling" is never "it is free".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from aiogpulock.gpu.records import MemoryReading, ProcessMemory

Status: TypeAlias = Literal["freed", "freed_except_context", "not_freed", "foreign", "unverifiable", "skipped"]

PASSES = 2
"""Samples in a row that must agree before memory counts as freed."""
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
    others: tuple[ProcessMemory, ...] = ()
    """Every other process on the list; none where the numbers are not ours."""
    tells: bool = False
    """The list has figures: so a process that is not on it has nothing."""
    next_holder: bool = False
    """The lock is somebody's again, who may allocate."""

    @property
    def unattributed(self) -> int | None:
        """In use, and by no listed process: of one that has just died, for example. None: some have no figure."""
        if any(process.bytes is None for process in self.others):
            return None
        return self.used - (self.own or 0) - _sum(self.others)


class Baseline(msgspec.Struct, frozen=True):
    """The device when the lease began. Others' memory is recorded apart, so that what drains later hides no leak."""

    sample: MemorySample
    version: Literal[1, 2]
    total: int
    steady: bool | None = None
    """A second look found nothing draining; None: there was none."""
    doubt: str = ""
    """Why memory of this hold may be counted here: then only what the process had `idle` tells that it is back."""
    idle: int = 0
    """Bytes of the holder's processes when they last had no hold."""


class Terms(msgspec.Struct, frozen=True):
    """How memory is judged."""

    tolerance: int = 256 << 20
    context: int = CONTEXT_BYTES
    settle_time: float = 5.0
    processes_gone: bool = False
    """The holder's processes have ended: nothing of theirs may stay."""


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a holder's memory after its release."""

    gpu: str
    status: Status
    reason: str
    """In words, for every status."""
    bytes: int | None = None
    """What is left over the baseline; None: not known."""
    tolerance: int = 0
    baseline: int | None = None
    """The bytes that `used` is compared with: the holder's own before it began, or the device's."""
    used: int | None = None
    samples: tuple[tuple[float, int], ...] = ()
    """(seconds after the release, bytes in use) of each look."""
    seconds: float = 0.0
    """From the release to the verdict."""
    foreign: tuple[ProcessMemory, ...] = ()
    """Processes that are neither the holder's nor were there before."""


class Look(msgspec.Struct, frozen=True):
    """What one sample says by itself."""

    status: Status
    reason: str
    left: int | None
    before: int | None
    now: int | None
    foreign: tuple[ProcessMemory, ...] = ()
    for_good: bool = False
    """Unverifiable, and no later look can change it."""

    @property
    def is_back(self) -> bool:
        return self.status in _BACK


def sample_of(reading: MemoryReading, pids: frozenset[int] | None, *, next_holder: bool = False) -> MemorySample:
    """`pids`: the holder's, as NVML numbers them; None where its numbers are not ours, as inside a container."""
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
        others=tuple(process for process in listed if process.pid not in pids),
        tells=reading.tells_processes,
        next_holder=next_holder,
    )


def steady(baseline: MemorySample, later: MemorySample, tolerance: int) -> bool:
    """Nothing was draining when the lease began."""
    return later.used >= baseline.used - tolerance


def look(baseline: Baseline, sample: MemorySample, terms: Terms) -> Look:
    """Judge one sample by itself."""
    if terms.processes_gone:
        return _gone(baseline, sample, terms)
    before, now = baseline.sample.own, sample.own
    told = baseline.sample.tells or sample.tells or sample.used <= IDLE_BYTES  # an empty list proves nothing
    if before is not None and now is not None and told:
        verdict = _own(before, now, terms, _foreign(baseline, sample, terms), _orphaned(baseline, sample))
    elif sample.next_holder:
        reason = "next holder active, and NVML gives no figures per process"
        return Look("unverifiable", reason, None, None, None, for_good=True)
    else:
        verdict = _whole_device(baseline, sample, terms)
    if baseline.doubt and verdict.status in (*_BACK, "foreign") and not _as_idle(baseline, sample, terms):
        left, before, now, foreign = verdict.left, verdict.before, verdict.now, verdict.foreign
        return Look("unverifiable", baseline.doubt, left, before, now, foreign, for_good=True)
    return verdict


def _as_idle(baseline: Baseline, sample: MemorySample, terms: Terms) -> bool:
    """The holder's processes have no more than when they last had no hold."""
    room = terms.tolerance + (0 if baseline.idle else terms.context)
    return sample.own is not None and sample.own <= baseline.idle + room


def _own(before: int, now: int, terms: Terms, foreign: tuple[ProcessMemory, ...], orphaned: int) -> Look:
    left = max(0, now - before)
    warm = before > 0
    if orphaned > terms.tolerance:
        reason = f"{_mib(orphaned)} more than before are in use by no living process"
        return Look("not_freed", reason, left + orphaned, before, now, foreign)
    if left > terms.tolerance + (0 if warm else terms.context):
        return Look("not_freed", f"the process keeps {_mib(left)} more than before", left, before, now, foreign)
    if foreign:
        return Look("foreign", f"the holder's is back, but others came: {_pids(foreign)}", left, before, now, foreign)
    if left > terms.tolerance:
        return Look("freed_except_context", "what the process keeps fits a CUDA context", left, before, now)
    reason = "back at what the process had before" if warm else "the process has nothing left on the GPU"
    return Look("freed", reason, left, before, now)


def _gone(baseline: Baseline, sample: MemorySample, terms: Terms) -> Look:
    """The holder's processes have ended: they are on no list, and the driver gives their memory back by and by."""
    if sample.own_listed:
        return Look("not_freed", "a process of the holder is still on the GPU", sample.own, 0, sample.own)
    if sample.unattributed is not None and sample.unattributed <= terms.tolerance:
        return Look("freed", "what is in use belongs to other processes", 0, baseline.sample.used, sample.used)
    if sample.next_holder:
        return Look("unverifiable", "next holder active, and memory of no listed process in use", None, None, None)
    return _whole_device(baseline, sample, terms)


def _whole_device(baseline: Baseline, sample: MemorySample, terms: Terms) -> Look:
    """Without the holder's own figures: only as far as the device's can tell."""
    foreign = _foreign(baseline, sample, terms)
    before, left = baseline.sample.used, max(0, sample.used - baseline.sample.used)
    ours = left - _sum(foreign)
    room = terms.tolerance + (0 if terms.processes_gone else terms.context)

    def say(status: Status, reason: str) -> Look:
        return Look(status, reason, left, before, sample.used, foreign)

    if ours > room:
        return say("not_freed", f"the device holds {_mib(ours)} more than before")
    if not baseline.steady:
        doubt = "memory of others drained" if baseline.steady is False else "it is not known whether others drained"
        reason = f"NVML gives no figures per process, and {doubt} when the lease began"
        for_good = not terms.processes_gone  # of theirs, what is in use may still turn out to be others'
        return Look("unverifiable", reason, left, before, sample.used, foreign, for_good)
    if ours > terms.tolerance:
        return say("freed_except_context", "what is left on the device fits a CUDA context")
    if foreign:
        return say("foreign", f"others came: {_pids(foreign)}")
    return say("freed", "the device is back at the baseline")


def _orphaned(baseline: Baseline, sample: MemorySample) -> int:
    """What processes left that have ended, such as children of the holder; the next holder's are its own affair."""
    before, now = baseline.sample.unattributed, sample.unattributed
    if sample.next_holder or before is None or now is None:
        return 0
    return max(0, now - max(0, before))


def _foreign(baseline: Baseline, sample: MemorySample, terms: Terms) -> tuple[ProcessMemory, ...]:
    """Others that grew by more than the tolerance, each with its growth; the next holder is expected to."""
    if sample.next_holder:
        return ()
    had = {process.pid: process.bytes or 0 for process in baseline.sample.others}
    grown = (ProcessMemory(one.pid, (one.bytes or 0) - had.get(one.pid, 0)) for one in sample.others)
    return tuple(one for one in grown if (one.bytes or 0) > terms.tolerance)


_BACK: tuple[Status, ...] = ("freed", "freed_except_context")
_WORSE: tuple[Status, ...] = (*_BACK, "unverifiable", "foreign", "not_freed")


def settled(looks: Sequence[Look]) -> Look | None:
    """The verdict before the time is over: enough looks in a row say that the memory is back, or that nothing can."""
    last = looks[-PASSES:]
    sure = all(one.is_back for one in last) or all(one.for_good for one in last)
    return _worst(last) if len(last) == PASSES and sure else None


def final(looks: Sequence[Look]) -> Look:
    """The verdict when the time is over: the worse of the last looks, since one good look is not enough."""
    if len(looks) < PASSES:
        return Look("unverifiable", "there was no time for two looks", None, None, None)
    return _worst(looks[-PASSES:])


def _worst(looks: Sequence[Look]) -> Look:
    return max(looks, key=lambda one: _WORSE.index(one.status))


def report(gpu: str, verdict: Look, samples: Sequence[MemorySample], terms: Terms, released_at: float) -> MemoryReport:
    """The report on a verdict."""
    return MemoryReport(
        gpu=gpu,
        status=verdict.status,
        reason=verdict.reason,
        bytes=verdict.left,
        tolerance=terms.tolerance,
        baseline=verdict.before,
        used=verdict.now,
        samples=tuple((round(sample.at - released_at, 4), sample.used) for sample in samples),
        seconds=round(samples[-1].at - released_at, 4) if samples else 0.0,
        foreign=verdict.foreign,
    )


def _sum(processes: Sequence[ProcessMemory]) -> int:
    return sum(process.bytes or 0 for process in processes)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _pids(processes: Sequence[ProcessMemory]) -> str:
    return ", ".join(f"pid {process.pid} with {_mib(process.bytes or 0)}" for process in processes)
