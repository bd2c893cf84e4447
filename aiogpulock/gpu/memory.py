"""Whether a holder's memory came back: pure functions over samples. Sizes are bytes, times seconds.

"Freed" means three things. The holder's processes are gone: they have nothing, and nobody living has what they left.
They live on and had memory before ("warm"): back at that. They live on and had none ("cold"): a CUDA context may stay,
and is reported so. What counts is the processes' own figure where NVML gives it. "It stopped falling" is never "it is
free".
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
        return self.used - (self.own or 0) - _sum(listed)

    @property
    def kins(self) -> int:
        """By processes that the holder's started, as far as they have a figure."""
        return _sum(self.kin)


class Baseline(msgspec.Struct, frozen=True):
    """The device when the lease began. Others' memory is recorded apart, so that what drains later hides no leak."""

    sample: MemorySample
    version: Literal[1, 2]
    total: int
    steady: bool | None = None
    """A second look found nothing draining; None: there was none."""
    doubt: str = ""
    """Why memory of this hold may be counted here: then only a process with next to nothing is known to be back."""


class Terms(msgspec.Struct, frozen=True):
    """How memory is judged."""

    tolerance: int = 256 << 20
    context: int = CONTEXT_BYTES
    settle_time: float = 5.0


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
    """The bytes that `used` is compared with: the holder's own before it began (of what was left a little at a time: before
    the first of these holds), or the device's."""
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


def nothing_drains(first: MemorySample, later: MemorySample | None, tolerance: int) -> bool | None:
    """Whether nobody's memory was draining when the lease began; None: one look cannot tell."""
    if first.used <= IDLE_BYTES:
        return True
    return None if later is None else later.used >= first.used - tolerance


def look(baseline: Baseline, sample: MemorySample, terms: Terms) -> Look:
    """Judge one sample by itself."""
    before, now = baseline.sample.own, sample.own
    told = baseline.sample.tells or sample.tells or sample.used <= IDLE_BYTES  # an empty list proves nothing
    if before is not None and now is not None and told:
        verdict = _own(before, now, baseline, sample, terms)
    elif sample.next_holder:
        reason = "next holder active, and NVML gives no figures per process"
        return Look("unverifiable", reason, None, None, None, for_good=True)
    else:
        verdict = _whole_device(baseline, sample, terms)
    if baseline.doubt and verdict.status in _HOLDERS_BACK and not _has_next_to_nothing(sample, terms):
        left, before, now, foreign = verdict.left, verdict.before, verdict.now, verdict.foreign
        return Look("unverifiable", baseline.doubt, left, before, now, foreign, for_good=True)
    return verdict


def _has_next_to_nothing(sample: MemorySample, terms: Terms) -> bool:
    return sample.own is not None and sample.own <= terms.tolerance + terms.context


def _own(before: int, now: int, baseline: Baseline, sample: MemorySample, terms: Terms) -> Look:
    kept, kins = max(0, now - before), _kept_by_kin(baseline, sample)
    left, warm = kept + kins, before > 0
    foreign, orphaned = _foreign(baseline, sample, terms), _orphaned(baseline, sample)
    if orphaned > terms.tolerance:
        reason = f"{_mib(orphaned)} more than before are in use by no living process"
        return Look("not_freed", reason, left + orphaned, before, now, foreign)
    if left > terms.tolerance + (0 if warm else terms.context):
        keeper = "the process keeps" if kept >= kins else "processes that the holder started keep"
        return Look("not_freed", f"{keeper} {_mib(left)} more than before", left, before, now, foreign)
    if _hidden(baseline, sample, terms):
        reason = "memory of processes that ended before is given back, and whose the rest is, nobody can tell"
        return Look("unverifiable", reason, left, before, now, foreign)
    if foreign:
        return Look("foreign", f"the holder's is back, but others came: {_pids(foreign)}", left, before, now, foreign)
    if left > terms.tolerance:
        return Look("freed_except_context", "what the process keeps fits a CUDA context", left, before, now)
    reason = "back at what the process had before" if warm else "the process has nothing left on the GPU"
    return Look("freed", reason, left, before, now)


def _whole_device(baseline: Baseline, sample: MemorySample, terms: Terms) -> Look:
    """Without the holder's own figures: only as far as the device's can tell."""
    foreign = _foreign(baseline, sample, terms)
    before, left = baseline.sample.used, max(0, sample.used - baseline.sample.used)
    ours = left - _sum(foreign)

    def say(status: Status, reason: str, *, for_good: bool = False) -> Look:
        return Look(status, reason, left, before, sample.used, foreign, for_good)

    if ours > terms.tolerance + terms.context:
        return say("not_freed", f"the device holds {_mib(ours)} more than before")
    drained = sample.used < before - terms.tolerance
    if drained or not baseline.steady:
        unknown = baseline.steady is None and not drained
        doubt = "it is not known whether others drained" if unknown else "memory of others drained"
        return say(
            "unverifiable", f"NVML gives no figures per process, and {doubt} since the lease began", for_good=True
        )
    if ours > terms.tolerance:
        return say("freed_except_context", "what is left on the device fits a CUDA context")
    if foreign:
        return say("foreign", f"others came: {_pids(foreign)}")
    return say("freed", "the device is back at the baseline")


def _kept_by_kin(baseline: Baseline, sample: MemorySample) -> int:
    """More than before; one of them may be the next holder."""
    return 0 if sample.next_holder else max(0, sample.kins - baseline.sample.kins)


def _orphaned(baseline: Baseline, sample: MemorySample) -> int:
    """What processes left that have ended, such as children of the holder; the next holder's are its own affair."""
    before, now = baseline.sample.unattributed, sample.unattributed
    if sample.next_holder or before is None or now is None:
        return 0
    return max(0, now - max(0, before))


def _hidden(baseline: Baseline, sample: MemorySample, terms: Terms) -> bool:
    """Memory of nobody went away since the lease began, and there is some: of those before, or of the holder's."""
    before, now = baseline.sample.unattributed, sample.unattributed
    if sample.next_holder or before is None or now is None:
        return False
    return now < before - terms.tolerance and now > terms.tolerance + IDLE_BYTES


def _foreign(baseline: Baseline, sample: MemorySample, terms: Terms) -> tuple[ProcessMemory, ...]:
    """Others that grew by more than the tolerance, each with its growth; the next holder is expected to."""
    if sample.next_holder:
        return ()
    had = {process.pid: process.bytes or 0 for process in baseline.sample.others}
    grown = (ProcessMemory(one.pid, (one.bytes or 0) - had.get(one.pid, 0)) for one in sample.others)
    return tuple(one for one in grown if (one.bytes or 0) > terms.tolerance)


_BACK: tuple[Status, ...] = ("freed", "freed_except_context")
_HOLDERS_BACK: tuple[Status, ...] = (*_BACK, "foreign")
_WORSE: tuple[Status, ...] = (*_BACK, "unverifiable", "foreign", "not_freed")


def settled(looks: Sequence[Look]) -> Look | None:
    """The verdict before the time is over: enough looks in a row say that the holder's is back, or that none can."""
    last = looks[-PASSES:]
    sure = all(one.status in _HOLDERS_BACK for one in last) or all(one.for_good for one in last)
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


def crept(told: MemoryReport, grown: int, holds: int, terms: Terms) -> MemoryReport:
    """The report on a process that is back, where it has `grown` a little at each of its last `holds`."""
    if grown <= terms.tolerance + terms.context:
        return told
    reason = f"the process keeps {_mib(grown)} more than {holds} holds ago: a little was left by each"
    least = None if told.used is None else told.used - grown
    return msgspec.structs.replace(told, status="not_freed", reason=reason, bytes=grown, baseline=least)


def in_haste(told: MemoryReport, baseline: Baseline, own: int | None, terms: Terms) -> MemoryReport:
    """The report of one who cannot wait any longer: what is held by no living process may still come back."""
    if told.status != "not_freed":
        return told
    before = baseline.sample.own
    keeps = own is not None and before is not None and own - before > terms.tolerance + (0 if before else terms.context)
    reason = f"{told.reason}, {told.seconds:.2f} s after the release, when its manager was closed"
    return msgspec.structs.replace(told, status="not_freed" if keeps else "unverifiable", reason=reason)


def _sum(processes: Sequence[ProcessMemory]) -> int:
    return sum(process.bytes or 0 for process in processes)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _pids(processes: Sequence[ProcessMemory]) -> str:
    return ", ".join(f"pid {process.pid} with {_mib(process.bytes or 0)}" for process in processes)
