"""Verdicts over memory trajectories: a leak is named, a clean holder never, and nothing is freed unseen."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiogpulock.gpu.memory import final, look, settled
from aiogpulock.gpu.records import MemoryReading, ProcessMemory
from aiogpulock.gpu.report import Look
from aiogpulock.gpu.samples import Baseline, MemorySample, Terms, sample_of
from tests.nvml_sim import GiB, MiB

ME, OTHER, THIRD = 100, 200, 300
TERMS = Terms(settle_time=1)
BACK = ("freed", "freed_except_context")


def sample(
    used: int, *processes: tuple[int, int | None], mine: bool = True, next_holder: bool = False, told: bool = True
) -> MemorySample:
    """`used`: beside what the processes use. `mine` False: as seen from inside a container."""
    total = used + sum(size or 0 for _, size in processes)
    listed = tuple(ProcessMemory(*process) for process in processes) if told else None
    reading = MemoryReading("GPU-x", 0.0, 80 * GiB, total, 0, 2, listed)
    return sample_of(reading, frozenset({ME}) if mine else None, next_holder=next_holder)


def baseline(start: MemorySample, *, steady: bool | None = None) -> Baseline:
    return Baseline(start, 2, 80 * GiB, steady)


IDLE = sample(7 * MiB)


def status(before: MemorySample, after: MemorySample, terms: Terms = TERMS, *, steady: bool | None = None) -> str:
    return look(baseline(before, steady=steady), after, terms).status


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (IDLE, IDLE, "freed"),
        (IDLE, sample(0, (ME, 200 * MiB)), "freed"),
        (IDLE, sample(0, (ME, 400 * MiB)), "freed_except_context"),
        (IDLE, sample(0, (ME, GiB)), "not_freed"),
        (IDLE, sample(0, (ME, GiB + 400 * MiB)), "not_freed"),
        (sample(0, (ME, GiB)), sample(0, (ME, GiB + 200 * MiB)), "freed"),
        (sample(0, (ME, GiB)), sample(0, (ME, GiB + 300 * MiB)), "not_freed"),
        (IDLE, sample(0, (ME, 100 * MiB), (OTHER, 9 * GiB)), "foreign"),
        (IDLE, sample(0, (ME, GiB), (OTHER, 9 * GiB)), "not_freed"),
        (IDLE, sample(0, (ME, 100 * MiB), (OTHER, 9 * GiB), next_holder=True), "freed"),
        (IDLE, sample(0, (ME, GiB), (OTHER, 9 * GiB), next_holder=True), "not_freed"),
        (sample(0, (OTHER, 9 * GiB)), sample(0, (OTHER, 9 * GiB)), "freed"),
        (IDLE, sample(9 * GiB), "not_freed"),
    ],
)
def test_the_holders_own_figure_decides(before: MemorySample, after: MemorySample, expected: str) -> None:
    assert status(before, after, steady=True) == expected


def kin_sample(*processes: tuple[int, int], nobodys: int = 0, next_holder: bool = False) -> MemorySample:
    """OTHER was started by ME."""
    listed = tuple(ProcessMemory(*process) for process in processes)
    reading = MemoryReading("GPU-x", 0.0, 80 * GiB, nobodys + sum(size for _, size in processes), 0, 2, listed)
    return sample_of(reading, frozenset({ME}), kin=frozenset({OTHER}), next_holder=next_holder)


def test_what_a_process_started_counts_with_it_but_pays_for_nothing_of_its_own() -> None:
    cold, warm = kin_sample(), kin_sample((ME, GiB), (OTHER, 5 * GiB))
    leak = look(baseline(cold), kin_sample((OTHER, GiB)), TERMS)
    assert (leak.status, leak.left, leak.reason) == (
        "not_freed",
        GiB,
        "processes that the holder started keep 1024 MiB more than before",
    )
    assert status(warm, warm) == "freed"
    assert status(warm, kin_sample((ME, 2 * GiB))) == "not_freed", "what the child gave back hides nothing"
    assert status(warm, kin_sample((ME, GiB), (OTHER, 5 * GiB), (THIRD, GiB))) == "foreign"
    assert status(cold, kin_sample((OTHER, 9 * GiB), next_holder=True)) == "freed", "the child may be the next holder"


def test_where_memory_of_the_dead_was_given_back_the_rest_of_it_is_nobodys_for_sure() -> None:
    """A predecessor drains, and a child of the holder was killed."""
    drained = kin_sample((THIRD, GiB), nobodys=9 * GiB)
    assert status(kin_sample((THIRD, GiB), nobodys=20 * GiB), drained) == "unverifiable"
    assert status(kin_sample((THIRD, GiB), nobodys=20 * GiB), kin_sample((THIRD, GiB))) == "freed"
    assert status(kin_sample((THIRD, GiB), nobodys=9 * GiB), drained) == "freed", "nothing has changed"
    assert status(kin_sample((THIRD, GiB)), drained) == "not_freed"
    one = look(baseline(kin_sample((THIRD, GiB), nobodys=20 * GiB)), drained, TERMS)
    assert settled([one, one]) is None, "it may still come back"


def test_memory_of_others_that_ended_is_not_the_holders() -> None:
    """They exit slowly: off the list at once, and given back later."""
    ended = sample(9 * GiB, (THIRD, MiB))
    before, beside = sample(0, (THIRD, MiB)), sample(0, (THIRD, MiB), (OTHER, 9 * GiB))
    seen = look(baseline(before), ended, TERMS, [beside])
    assert (seen.status, seen.left, seen.foreign) == ("foreign", 0, (ProcessMemory(OTHER, 9 * GiB),))
    assert settled([seen, seen]) is None, "it may still come back"
    assert final([seen, seen]).status == "foreign"
    assert look(baseline(beside), ended, TERMS).status == "unverifiable", "it may have ended long ago"
    assert look(baseline(before), ended, TERMS).status == "not_freed", "nobody has seen any others"
    assert look(baseline(before), sample(10 * GiB, (THIRD, MiB)), TERMS, [beside]).status == "not_freed"
    leak = look(baseline(before), sample(9 * GiB, (ME, GiB), (THIRD, MiB)), TERMS, [beside])
    assert (leak.status, leak.left) == ("not_freed", GiB)


@pytest.mark.parametrize("draining", [sample(20 * GiB), sample(0, (OTHER, 20 * GiB))])
def test_a_predecessor_that_drains_at_the_acquire_hides_no_leak(draining: MemorySample) -> None:
    leak = look(baseline(draining, steady=False), sample(0, (ME, GiB)), TERMS)
    assert (leak.status, leak.left) == ("not_freed", GiB)
    assert status(draining, sample(0, (ME, 100 * MiB)), steady=False) == "freed"


@pytest.mark.parametrize(
    ("after", "steady", "expected"),
    [
        (sample(10 * MiB, mine=False), True, "freed"),
        (sample(10 * MiB, mine=False), None, "unverifiable"),
        (sample(10 * MiB, mine=False), False, "unverifiable"),
        (sample(500 * MiB, mine=False), True, "freed_except_context"),
        (sample(GiB, mine=False), True, "not_freed"),
        (sample(10 * MiB, mine=False, next_holder=True), True, "unverifiable"),
        (sample(9 * GiB, mine=False, next_holder=True), True, "unverifiable"),
        (sample(0, (ME, GiB), mine=False), True, "not_freed"),
    ],
)
def test_inside_a_container_the_device_tells_what_it_can(
    after: MemorySample, steady: bool | None, expected: str
) -> None:
    assert status(sample(7 * MiB, mine=False), after, steady=steady) == expected


def test_inside_a_container_memory_that_went_away_proves_that_others_drained() -> None:
    before = sample(20 * GiB, mine=False)
    assert status(before, sample(GiB, mine=False), steady=True) == "unverifiable"
    assert status(before, sample(20 * GiB - 200 * MiB, mine=False), steady=True) == "freed"


def test_foreign_is_settled_as_soon_as_the_holders_is_back() -> None:
    verdict = settled(looks("not_freed", "foreign", "freed"))
    assert verdict is not None
    assert verdict.status == "foreign"


@pytest.mark.parametrize(
    "silent", [sample(GiB, told=False), sample(GiB, (ME, None)), sample(GiB, (ME, 0)), sample(GiB)]
)
def test_a_list_without_figures_proves_nothing(silent: MemorySample) -> None:
    assert status(silent, silent, steady=None) == "unverifiable"
    assert status(silent, msgspec.structs.replace(silent, next_holder=True), steady=True) == "unverifiable"


def test_a_holder_that_is_listed_with_zero_bytes_is_not_known_to_have_none() -> None:
    zero = sample(GiB, (ME, 0), (OTHER, GiB))
    assert status(zero, zero, steady=None) == "unverifiable"


def test_without_own_figures_a_rise_that_another_process_explains_is_foreign() -> None:
    start = sample(GiB, (ME, None))
    assert status(start, sample(GiB, (ME, None), (OTHER, 9 * GiB)), steady=True) == "foreign"
    assert status(start, sample(2 * GiB, (ME, None), (OTHER, 9 * GiB)), steady=True) == "not_freed"


@pytest.mark.parametrize("start", [sample(20 * GiB), sample(20 * GiB, told=False), sample(20 * GiB, mine=False)])
def test_where_nvml_tells_no_processes_nobody_waits_for_a_verdict_that_cannot_come(start: MemorySample) -> None:
    once = look(baseline(start), start, TERMS)
    assert settled([once, once]) == once
    assert once.status == "unverifiable"
    leaked = look(baseline(start), sample(23 * GiB), TERMS)
    assert settled([leaked, leaked]) is None, "what is left may still be given back"


def looks(*statuses: str) -> list[Look]:
    return [Look(one, "", 0, 0, 0) for one in statuses]  # type: ignore[arg-type]


def test_one_good_look_is_not_enough() -> None:
    assert settled(looks("not_freed", "freed")) is None
    assert settled(looks("freed", "not_freed", "freed")) is None
    assert final(looks("not_freed", "freed")).status == "not_freed"
    assert final(looks("freed")).status == "unverifiable"
    assert final([]).status == "unverifiable"
    verdict = settled(looks("not_freed", "freed", "freed_except_context"))
    assert verdict is not None
    assert verdict.status == "freed_except_context"


# random trajectories

SIZES = st.integers(0, 64 * 1024).map(lambda mib: mib * MiB)
STATUSES = st.sampled_from(["freed", "freed_except_context", "not_freed", "foreign", "unverifiable"])


@given(st.lists(STATUSES, max_size=12))
def test_freed_is_said_only_after_two_looks_in_a_row_that_say_so(statuses: list[str]) -> None:
    if final(looks(*statuses)).status in BACK:
        assert len(statuses) >= 2
        assert all(one in BACK for one in statuses[-2:])


@given(
    own=SIZES, left=SIZES, others=SIZES, later=SIZES, draining=SIZES, ending=st.integers(0, 9),
    next_holder=st.booleans(),
)  # fmt: skip
def test_with_own_figures_others_change_no_verdict_on_the_holder(
    own: int, left: int, others: int, later: int, draining: int, ending: int, next_holder: bool
) -> None:
    """One of them ends, and what it had is given back little by little, in ninths."""
    before = sample(draining, *([(ME, own)] if own else []), (OTHER, others + MiB))
    nobodys = draining + others * ending // 9
    after = sample(nobodys, (ME, own + left + MiB), (THIRD, later + MiB), next_holder=next_holder)
    leaked = left + MiB > TERMS.tolerance + (0 if own else TERMS.context)
    assert (status(before, after) == "not_freed") == leaked


@given(left=SIZES, before=SIZES, drained=SIZES, steady=st.sampled_from([True, False, None]), next_holder=st.booleans())
def test_without_own_figures_a_rise_over_the_allowance_is_never_called_freed(
    left: int, before: int, drained: int, steady: bool | None, next_holder: bool
) -> None:
    start = sample(before + drained, mine=False)
    after = sample(before + left, mine=False, next_holder=next_holder)
    verdict = status(start, after, steady=steady if drained == 0 else False)
    if verdict in BACK:
        assert not next_holder
        assert left <= TERMS.tolerance + TERMS.context


@given(st.lists(SIZES, min_size=2, max_size=20), SIZES)
def test_a_trajectory_ends_as_its_last_two_samples_say(trajectory: list[int], start: int) -> None:
    before = baseline(sample(0, (ME, start + MiB)))
    seen = [look(before, sample(0, (ME, size + MiB)), TERMS) for size in trajectory]
    back = all(size - start <= TERMS.tolerance for size in trajectory[-2:])
    assert (final(seen).status == "freed") == back
