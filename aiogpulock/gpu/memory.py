"""Whether a holder's memory came back: pure functions over samples. Sizes are bytes, times seconds.

"Freed" means three things. The holder's processes are gone: they have nothing, and nobody living has what they left.
They live on and had memory before ("warm"): back at that. They live on and had none ("cold"): a CUDA context may stay,
and is reported so. What counts is the processes' own figure where NVML gives it. "It stopped falling" is never "it is
free".
"""

from __future__ import annotations

from collections.abc import Sequence

from aiogpulock.gpu.records import ProcessMemory
from aiogpulock.gpu.report import BACK, Look, Status, mib
from aiogpulock.gpu.samples import IDLE_BYTES, Baseline, MemorySample, Terms, total

PASSES = 2
"""Samples in a row that must agree before memory counts as freed."""


def look(baseline: Baseline, sample: MemorySample, terms: Terms, earlier: Sequence[MemorySample] = ()) -> Look:
    """Judge one sample by itself; `earlier`: those after the release that came before it, by which others are known."""
    before, now = baseline.sample.own, sample.own
    told = baseline.sample.tells or sample.tells or sample.used <= IDLE_BYTES  # an empty list proves nothing
    if before is not None and now is not None and told:
        verdict = _own(before, now, baseline, sample, terms, earlier)
    elif sample.next_holder:
        reason = "next holder active, and NVML gives no figures per process"
        return Look("unverifiable", reason, None, None, None, for_good=True)
    else:
        verdict = _whole_device(baseline, sample, terms)
    if baseline.doubt and verdict.status in _HOLDERS_BACK and now is not None:
        surely = baseline.surely or 0
        if now > surely + terms.allowed(warm=surely > 0):
            more = f"the process has {mib(now - surely)} more than are known not to be this hold's"
            reason = f"{more}: {baseline.doubt}"
            return Look("unverifiable", reason, now - surely, surely, now, verdict.foreign, for_good=True)
    return verdict


def _own(
    before: int, now: int, baseline: Baseline, sample: MemorySample, terms: Terms, earlier: Sequence[MemorySample]
) -> Look:
    kept, kins = max(0, now - before), _kept_by_kin(baseline, sample)
    left, warm = kept + kins, (before if baseline.surely is None else baseline.surely) > 0
    foreign, orphaned = _foreign(baseline, sample, terms), _orphaned(baseline, sample)
    theirs = total(_ended((baseline.sample, *earlier), sample))
    if orphaned > theirs + terms.tolerance:
        reason = f"{mib(orphaned)} more than before are in use by no living process"
        return Look("not_freed", reason, left + orphaned, before, now, foreign)
    if left > terms.allowed(warm=warm):
        keeper = "the process keeps" if kept >= kins else "processes that the holder started keep"
        return Look("not_freed", f"{keeper} {mib(left)} more than before", left, before, now, foreign)
    if orphaned > terms.tolerance:
        return _others_drain(orphaned, _ended(earlier, sample), left, before, now, terms)
    if _hidden(baseline, sample, terms):
        reason = "memory of processes that ended before is given back, and whose the rest is, nobody can tell"
        return Look("unverifiable", reason, left, before, now, foreign)
    if foreign:
        return Look("foreign", f"the holder's is back, but others came: {_pids(foreign)}", left, before, now, foreign)
    if left > terms.tolerance:
        return Look("freed_except_context", "what the process keeps fits a CUDA context", left, before, now)
    reason = "back at what the process had before" if warm else "the process has nothing left on the GPU"
    return Look("freed", reason, left, before, now)


def _others_drain(
    orphaned: int, just_ended: tuple[ProcessMemory, ...], left: int, before: int, now: int, terms: Terms
) -> Look:
    """The holder's is back, as far as anybody can tell: processes that have ended had as much as is nobody's now."""
    if orphaned > total(just_ended) + terms.tolerance:
        reason = f"{mib(orphaned)} are in use by no living process: whether of others that ended, nobody can tell"
        return Look("unverifiable", reason, left, before, now)
    reason = f"the holder's is back, but what others had that have just ended is not: {_pids(just_ended)}"
    return Look("foreign", reason, left, before, now, just_ended, drains=True)


def _whole_device(baseline: Baseline, sample: MemorySample, terms: Terms) -> Look:
    """Without the holder's own figures: only as far as the device's can tell."""
    foreign = _foreign(baseline, sample, terms)
    before, left = baseline.sample.used, max(0, sample.used - baseline.sample.used)
    ours = left - total(foreign)

    def say(status: Status, reason: str, *, for_good: bool = False) -> Look:
        return Look(status, reason, left, before, sample.used, foreign, for_good)

    if ours > terms.tolerance + terms.context:
        return say("not_freed", f"the device holds {mib(ours)} more than before")
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


def _ended(seen: Sequence[MemorySample], sample: MemorySample) -> tuple[ProcessMemory, ...]:
    """Others that were on the list and are not on this one, each with its last figure: that may still be in use."""
    there = {process.pid for process in (*sample.kin, *sample.others)}
    last = {process.pid: process for one in seen for process in one.others}
    return tuple(process for pid, process in last.items() if pid not in there)


_HOLDERS_BACK: tuple[Status, ...] = (*BACK, "foreign")
_WORSE: tuple[Status, ...] = (*BACK, "unverifiable", "foreign", "not_freed")


def settled(looks: Sequence[Look]) -> Look | None:
    """The verdict before the time is over: enough looks in a row say that the holder's is back, or that none can."""
    last = looks[-PASSES:]
    sure = all(one.status in _HOLDERS_BACK and not one.drains for one in last) or all(one.for_good for one in last)
    return _worst(last) if len(last) == PASSES and sure else None


def final(looks: Sequence[Look]) -> Look:
    """The verdict when the time is over: the worse of the last looks, since one good look is not enough."""
    if len(looks) < PASSES:
        return Look("unverifiable", "there was no time for two looks", None, None, None)
    return _worst(looks[-PASSES:])


def _worst(looks: Sequence[Look]) -> Look:
    return max(looks, key=lambda one: _WORSE.index(one.status))


def _pids(processes: Sequence[ProcessMemory]) -> str:
    return ", ".join(f"pid {process.pid} with {mib(process.bytes or 0)}" for process in processes)
