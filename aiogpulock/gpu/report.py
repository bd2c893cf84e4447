"""What is said of a holder's memory after its release. Sizes are bytes, times seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from aiogpulock.gpu.records import ProcessMemory
from aiogpulock.gpu.samples import Baseline, MemorySample, Terms

Status: TypeAlias = Literal["freed", "freed_except_context", "not_freed", "foreign", "unverifiable", "skipped"]
BACK: tuple[Status, ...] = ("freed", "freed_except_context")


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
    """The bytes that `used` is compared with: the holder's own before it began (of what was left a little at a time:
    before the first of these holds), or the device's."""
    used: int | None = None
    samples: tuple[tuple[float, int], ...] = ()
    """(seconds after the release, bytes in use) of each look."""
    seconds: float = 0.0
    """From the release to the verdict."""
    foreign: tuple[ProcessMemory, ...] = ()
    """Processes that are not the holder's, and came, grew, or ended with their memory still in use."""


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
    drains: bool = False
    """Foreign, and it is coming back by itself."""

    @property
    def is_back(self) -> bool:
        return self.status in BACK


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
    reason = f"the process keeps {mib(grown)} more than {holds} holds ago: a little was left by each"
    least = None if told.used is None else told.used - grown
    return msgspec.structs.replace(told, status="not_freed", reason=reason, bytes=grown, baseline=least)


def stood(gpu: str, left: int, before: int, since: float, last: MemorySample, terms: Terms) -> MemoryReport:
    """The report on what every look between the holds of a process has found for the settle time."""
    reason = (
        f"the process keeps {mib(left)} more than before: at every look between its holds for {last.at - since:.1f} s"
    )
    return report(gpu, Look("not_freed", reason, left, before, last.own), [last], terms, since)


def in_haste(told: MemoryReport, baseline: Baseline, own: int | None, terms: Terms) -> MemoryReport:
    """The report of one who cannot wait any longer: what is held by no living process may still come back."""
    if told.status != "not_freed":
        return told
    before = baseline.sample.own
    keeps = own is not None and before is not None and own - before > terms.allowed(warm=before > 0)
    reason = f"{told.reason}, {told.seconds:.2f} s after the release, when its manager was closed"
    return msgspec.structs.replace(told, status="not_freed" if keeps else "unverifiable", reason=reason)


def mib(size: int) -> str:
    """A size for people."""
    return f"{size / (1 << 20):.0f} MiB"
