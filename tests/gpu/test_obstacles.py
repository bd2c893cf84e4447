"""What stands between a holder and its GPU, by one reading."""

from __future__ import annotations

import os

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from aiogpulock.gpu.memory import look
from aiogpulock.gpu.obstacles import Demands, obstacles
from aiogpulock.gpu.quarantine import is_over, quarantine_for, still_theirs
from aiogpulock.gpu.records import MemoryReading, ProcessMemory
from aiogpulock.gpu.report import MemoryReport
from aiogpulock.gpu.samples import CONTEXT_BYTES, IDLE_BYTES, Baseline, Terms, sample_of
from aiogpulock.models import Quarantine, quarantine_of
from tests.nvml_sim import GiB, MiB

ME, OTHER = 100, 200
TERMS = Terms()
SIZES = st.integers(0, 40 * 1024).map(lambda mib: mib * MiB)


def reading(used: int, *processes: tuple[int, int | None]) -> MemoryReading:
    """`used`: beside what the processes use."""
    total = used + sum(size or 0 for _, size in processes)
    listed = tuple(ProcessMemory(*process) for process in processes)
    return MemoryReading("GPU-x", 0.0, 80 * GiB, total, 0, 2, listed)


def kinds(seen: MemoryReading, **demands: object) -> set[str]:
    asked: dict[str, object] = {"tolerance": TERMS.tolerance, "pids": frozenset({ME}), **demands}
    return {one.kind for one in obstacles(seen, Demands(**asked))}  # type: ignore[arg-type]


def test_each_demand_has_its_obstacle() -> None:
    seen = reading(30 * GiB, (ME, 3 * GiB), (OTHER, 9 * GiB))
    assert kinds(seen) == set()
    assert kinds(seen, drained=True) == {"draining"}
    assert kinds(seen, idle=True) == {"busy"}
    assert kinds(seen, require_free=38 * GiB) == set()
    assert kinds(seen, require_free=39 * GiB) == {"short"}
    assert kinds(seen, pids=None, idle=True) == set()
    assert kinds(seen, context=9 * GiB, idle=True) == set()


@given(own=SIZES, other=SIZES, left=SIZES, need=SIZES)
def test_what_is_asked_is_what_is_checked(own: int, other: int, left: int, need: int) -> None:
    seen = reading(left, *([(ME, own)] if own else []), *([(OTHER, other)] if other else []))
    found = kinds(seen, drained=True, idle=True, require_free=need)
    assert ("draining" in found) == (left > TERMS.tolerance + IDLE_BYTES)
    assert ("busy" in found) == (other > CONTEXT_BYTES)
    assert ("short" in found) == (seen.total - own - other - left < need)
    assert seen.nobodys == left


# quarantine


def quarantined(before: MemoryReading, after: MemoryReading, pids: frozenset[int] | None) -> Quarantine | None:
    """The quarantine that follows from these two looks, if the verdict is "not freed"."""
    baseline = Baseline(sample_of(before, pids), 2, before.total, steady=True)
    verdict = look(baseline, sample_of(after, pids), TERMS)
    if verdict.status != "not_freed":
        return None
    report = MemoryReport(gpu="0", status="not_freed", reason=verdict.reason, bytes=verdict.left)
    return quarantine_of(quarantine_for(report, baseline, TERMS, "train", "GPU-x", pids))


@given(
    own=SIZES, leak=SIZES, other=SIZES, later=SIZES, still=SIZES, orphaned=SIZES,
    pids=st.sampled_from([frozenset({ME}), None]),
)  # fmt: skip
def test_a_quarantine_outlives_the_look_that_made_it_and_ends_when_the_holder_is_back(
    own: int, leak: int, other: int, later: int, still: int, orphaned: int, pids: frozenset[int] | None
) -> None:
    before = reading(0, *([(ME, own)] if own else []), (OTHER, other + MiB))
    after = reading(orphaned, (ME, own + leak + MiB), (OTHER, other + MiB))
    quarantine = quarantined(before, after, pids)
    if quarantine is None:
        return
    assert not is_over(quarantine, after)
    assert is_over(quarantine, before)
    now = reading(0, (ME, own + still + MiB), (OTHER, later + MiB))
    if is_over(quarantine, now) and pids:
        device_is_back = now.used <= before.used + quarantine.room
        assert device_is_back or still + MiB <= quarantine.room


def test_memory_of_nobody_may_still_be_the_leakers() -> None:
    quarantine = quarantined(reading(0, (OTHER, GiB)), reading(0, (ME, 9 * GiB), (OTHER, GiB)), frozenset({ME}))
    assert quarantine is not None
    assert not is_over(quarantine, reading(9 * GiB, (OTHER, GiB))), "it died, and its memory drains"
    assert is_over(quarantine, reading(0, (OTHER, 30 * GiB)))
    assert not is_over(quarantine, reading(30 * GiB)), "an empty list proves nothing"
    assert not is_over(quarantine, reading(0, (ME, 9 * GiB))), "whether it is the same process is not known"
    assert is_over(quarantine, reading(0, (ME, 9 * GiB)), frozenset()), "another one has its pid now"
    silent = msgspec.structs.replace(reading(0, (OTHER, 30 * GiB)), processes=None)
    assert not is_over(quarantine, silent)
    older = msgspec.structs.replace(reading(GiB), version=1)
    assert not is_over(quarantine, older), "other versions count otherwise"


def test_a_pid_that_was_given_anew_is_not_the_leaker() -> None:
    mine = frozenset({os.getpid()})
    quarantine = quarantined(reading(0), reading(0, (os.getpid(), 9 * GiB)), mine)
    assert quarantine is not None
    assert still_theirs(quarantine) == mine
    ((pid, started),) = quarantine.processes
    assert not still_theirs(msgspec.structs.replace(quarantine, processes=((pid, started + 1),)))
    assert not still_theirs(msgspec.structs.replace(quarantine, boot="before the reboot"))
    ended = 4_000_000
    gone = msgspec.structs.replace(quarantine, processes=((ended, started),))
    assert still_theirs(gone) == {ended}, "one that has ended, and is listed all the same"
