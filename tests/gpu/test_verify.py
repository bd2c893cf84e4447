"""The driver of the samples, over the simulated NVIDIA driver."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aiogpulock import clock
from aiogpulock.episode import Before
from aiogpulock.foreign import Family
from aiogpulock.gpu.nvml import Nvml
from aiogpulock.gpu.report import MemoryReport
from aiogpulock.gpu.samples import Baseline, MemorySample, Terms
from aiogpulock.gpu.verify import Verification, own_pids
from tests.gpu.processes import start_stranger
from tests.helpers import wait_until
from tests.nvml_sim import GiB, MiB, Simulation, uuid

ME = frozenset({os.getpid()})
QUICK = Terms(settle_time=0.3)


@pytest.fixture
def nvml(sim: Simulation) -> Iterator[Nvml]:
    nvml = Nvml(deadline=0.3)
    yield nvml
    sim.close()
    nvml.close()
    wait_until(lambda: nvml._thread is None, description="the thread ends")


async def verify(nvml: Nvml, pids: frozenset[int] | None, before: Baseline, terms: Terms, **asked: Any) -> MemoryReport:
    return await Verification(nvml, "0", uuid(0), pids, terms, **asked).run(before)


async def first_look(nvml: Nvml, pids: frozenset[int] | None) -> Baseline:
    return await Before(nvml, uuid(0), Family(pids)).baseline(QUICK.tolerance)


async def somebody() -> bool:
    """The lock was granted meanwhile."""
    return True


async def test_a_clean_holder_is_freed_within_milliseconds(sim: Simulation, nvml: Nvml) -> None:
    before = await first_look(nvml, ME)
    sim.use(0, 9 * GiB)
    sim.use(0, 0)
    report = await verify(nvml, ME, before, Terms())
    assert (report.status, report.bytes, len(report.samples)) == ("freed", 0, 2)
    assert report.seconds < 1


async def test_a_leak_of_one_gib_is_named(sim: Simulation, nvml: Nvml) -> None:
    before = await first_look(nvml, ME)
    sim.use(0, GiB)
    report = await verify(nvml, ME, before, QUICK)
    assert (report.status, report.bytes, report.reason) == (
        "not_freed",
        GiB,
        "the process keeps 1024 MiB more than before",
    )
    assert report.seconds >= 0.3


async def test_memory_that_comes_back_late_is_waited_for(sim: Simulation, nvml: Nvml) -> None:
    before = await first_look(nvml, ME)
    sim.use(0, 9 * GiB)
    asyncio.get_running_loop().call_later(0.2, sim.use, 0, 0)
    report = await verify(nvml, ME, before, Terms())
    assert report.status == "freed"
    assert 0.15 < report.seconds < 2
    assert report.samples[0][1] == 9 * GiB


async def test_a_foreign_process_is_named_and_no_leak(sim: Simulation, nvml: Nvml) -> None:
    before = await first_look(nvml, ME)
    sim.use(0, 5 * GiB, pid=4242)
    report = await verify(nvml, ME, before, QUICK)
    assert report.status == "foreign"
    assert [(one.pid, one.bytes) for one in report.foreign] == [(4242, 5 * GiB)]


async def test_the_same_version_of_the_memory_call_is_compared(sim: Simulation, nvml: Nvml) -> None:
    sim.call("memory_v2").error = 13
    before = await first_look(nvml, ME)
    sim.call("memory_v2").error = 0
    sim.device(0).reserved = 512 * MiB
    report = await verify(nvml, ME, Baseline(before.sample, before.version, before.total, True), QUICK)
    assert report.status == "freed"
    assert {used for _, used in report.samples} == {512 * MiB}


@pytest.mark.parametrize("code", [9, 10, 12, 15, 18, 3, 999])
async def test_every_error_of_the_driver_is_unverifiable_with_its_reason(
    sim: Simulation, nvml: Nvml, code: int
) -> None:
    before = await first_look(nvml, ME)
    sim.call("by_uuid").error = code
    report = await verify(nvml, ME, before, QUICK)
    assert report.status == "unverifiable"
    assert f"(code {code})" in report.reason


async def test_a_hung_driver_is_unverifiable_after_its_deadline(sim: Simulation, nvml: Nvml) -> None:
    before = await first_look(nvml, ME)
    with sim.hung("compute"):
        started = time.monotonic()
        report = await verify(nvml, ME, before, QUICK)
        assert time.monotonic() - started < 1
    assert report.status == "unverifiable"
    assert "the NVIDIA driver hangs" in report.reason


async def test_a_look_is_bounded_where_nvml_has_to_be_started(
    sim: Simulation, nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiogpulock.gpu.verify.LOOK_AT_LEAST", 0.2)
    before = await first_look(nvml, ME)
    slow = Nvml(deadline=10, init_deadline=10)
    with sim.hung("init"):
        started = time.monotonic()
        verification = Verification(slow, "0", uuid(0), ME, QUICK)
        report = await verification.run(before)
        assert time.monotonic() - started < 5
    assert verification.unanswered
    assert (report.status, report.reason[:8]) == ("unverifiable", "timeout:")
    slow.close()
    wait_until(lambda: slow._thread is None, description="the thread ends")


async def test_a_lock_that_this_process_holds_again_is_skipped(sim: Simulation, nvml: Nvml) -> None:
    before = await first_look(nvml, ME)
    report = await verify(nvml, ME, before, QUICK, ended=lambda: "same process")
    assert (report.status, report.reason[:12]) == ("skipped", "same process")


async def test_without_figures_the_next_holder_makes_it_unverifiable(sim: Simulation, nvml: Nvml) -> None:
    sim.device(0).unattributed = GiB
    before = await first_look(nvml, None)
    report = await verify(nvml, None, before, QUICK, granted=somebody)
    assert report.status == "unverifiable"
    assert report.reason.startswith("next holder active")


async def test_of_a_killed_process_the_slow_reclaim_is_waited_for(sim: Simulation, nvml: Nvml) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:  # noqa: ASYNC220 - it starts nothing that waits
        companions = frozenset({child.pid})
        before = await first_look(nvml, companions)
        sim.use(0, 9 * GiB, pid=child.pid, watched=True)
        sim.reap(after_ms=300)
        child.kill()
    report = await verify(nvml, companions, before, Terms())
    assert report.status == "freed"
    assert 0.25 < report.seconds < 3


@pytest.mark.parametrize(("ends", "status"), [("before the verdict", "unverifiable"), ("within it", "foreign")])
async def test_the_slow_exit_of_another_process_is_no_leak(sim: Simulation, nvml: Nvml, ends: str, status: str) -> None:
    """One that ended before it may have ended long ago, and what is there may be anybody's."""
    other = start_stranger()
    sim.use(0, GiB, pid=4242)  # the list has figures
    sim.use(0, 9 * GiB, pid=other, watched=True)
    sim.reap(after_ms=60_000)
    before = await first_look(nvml, ME)
    sim.use(0, GiB)
    verdict = asyncio.create_task(verify(nvml, ME, before, Terms(settle_time=0.6)))
    if ends == "within it":
        await asyncio.sleep(0.1)
    os.kill(other, signal.SIGKILL)
    wait_until(lambda: sim.device(0).unattributed > 0, description="it is off the list")
    sim.use(0, 0)
    report = await verdict
    assert (report.status, report.bytes) == (status, 0)


async def test_a_second_look_finds_what_drained_at_the_acquire(sim: Simulation, nvml: Nvml) -> None:
    async def steady(now: int, later: int) -> bool | None:
        sim.device(0).unattributed = now
        before = Before(nvml, uuid(0), Family(None))
        assert (await before.baseline(256 * MiB)).steady is (None if now else True)
        sim.device(0).unattributed = later
        await before.seen(twice=True)
        return (await before.baseline(256 * MiB)).steady

    assert await steady(20 * GiB, 20 * GiB)
    assert await steady(20 * GiB, GiB) is False
    assert await steady(0, 20 * GiB), "on an idle device there was nothing to drain"


async def late_look(nvml: Nvml, idle: int | None) -> Baseline:
    before = Before(nvml, uuid(0), Family(ME))
    before.wanted_at, before.held_at = 0, clock.now() - 1
    if idle is not None:
        before.idle, before.due = MemorySample(before.held_at, idle, idle), idle  # it has only waited since
    return await before.baseline(256 * MiB)


async def test_a_first_look_that_may_hold_the_bodys_own_proves_nothing(sim: Simulation, nvml: Nvml) -> None:
    sim.use(0, 3 * GiB)
    doubtful = await late_look(nvml, None)
    report = await verify(nvml, ME, doubtful, Terms())
    assert report.status == "unverifiable"
    assert "ms after the hold began" in report.reason
    assert report.seconds < 1, "no later look can change it"
    sim.use(0, 5 * GiB)
    assert (await verify(nvml, ME, doubtful, QUICK)).status == "not_freed"


async def test_a_late_first_look_gives_way_to_what_the_process_had_when_idle(sim: Simulation, nvml: Nvml) -> None:
    sim.use(0, 3 * GiB)
    leak = await verify(nvml, ME, await late_look(nvml, GiB), QUICK)
    assert (leak.status, leak.bytes) == ("not_freed", 2 * GiB)
    assert (await verify(nvml, ME, await late_look(nvml, 3 * GiB), QUICK)).status == "freed"
    assert (await late_look(nvml, GiB)).sample.unattributed == 0, "what the body took is nobody's leftover"


@pytest.mark.parametrize("late", [False, True])
async def test_what_an_earlier_hold_left_is_nobodys_leftover(sim: Simulation, nvml: Nvml, late: bool) -> None:
    sim.use(0, 3 * GiB)
    before = Before(nvml, uuid(0), Family(ME))
    before.due, before.idle = GiB, MemorySample(before.asked_at, 3 * GiB, 3 * GiB)
    first = await before._first
    before.held_at = (first.used_at + first.at) / 2 if late else first.at
    seen = (await before.baseline(256 * MiB)).sample
    assert (seen.own, seen.unattributed) == (GiB, 0)


def test_own_pids_are_known_only_where_nvml_numbers_processes_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_pids() in (None, ME)
    monkeypatch.setenv("AIOGPULOCK_NVML_PIDS", "same")
    assert own_pids([1, 2]) == ME | {1, 2}
