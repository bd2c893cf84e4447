"""Policy ``report``, the default: the lock is handed on at once, and the memory is verified behind it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis
from redis.asyncio.connection import AbstractConnection

from aiogpulock import GpuLockManager, Lease, LeaseLostError, verdicts
from aiogpulock.caretaker import Caretaker
from aiogpulock.episode import episode_on
from aiogpulock.gpu.nvml import shared
from aiogpulock.gpu.report import MemoryReport
from aiogpulock.scripts import Scripts
from tests.gpu.conftest import no_new_threads
from tests.gpu.looks import behind_the_devices_figure, wait_for_looks
from tests.gpu.processes import Told
from tests.helpers import wait_until
from tests.nvml_sim import GiB, MiB, Simulation, uuid
from tests.unit.support import eventually

QUICK = {"settle_time": 0.1}
NAMED, CLEAN = ("not_freed", "unverifiable"), ("freed", "unverifiable")
"""A body that begins at once: on a busy machine the device's own figure comes too late, too."""


async def report_of(lease: Lease) -> MemoryReport:
    report: MemoryReport = await eventually(lambda: lease.memory_report, description="the verdict")
    return report


async def leak(manager: GpuLockManager, sim: Simulation, size: int, **memory: Any) -> Lease:
    """One hold that leaves `size` bytes behind. It blocks the event loop from its first line to its last."""
    async with manager.lock(0, task_name="leaky", gpu_memory=QUICK | memory) as lease:
        if memory.get("policy") != "off":
            wait_for_looks()
        sim.use(0, size)
    return lease


async def test_a_clean_hold_is_told_to_be_freed(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    async with gpu_manager.lock(0, task_name="clean") as lease:
        sim.use(0, 9 * GiB)
        sim.use(0, 0)
    assert lease.memory_report is None, "the lock is not kept for a verdict"
    report = await report_of(lease)
    assert (report.status, report.bytes, report.gpu) == ("freed", 0, uuid(0))
    events = await eventually(lambda: memory_events(gpu_manager), description="the event")
    assert [(event.task_name, event.details["status"], event.reason) for event in events] == [
        ("clean", "freed", report.reason)
    ]
    assert events[0].fencing_token == lease.fencing_token


async def memory_events(manager: GpuLockManager) -> list[Any]:
    return [event for event in await manager.history(0) if event.event == "memory"]


async def test_a_leak_of_one_gib_is_named_on_the_lease_in_the_history_and_in_the_log(
    gpu_manager: GpuLockManager, sim: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    report = await report_of(await leak(gpu_manager, sim, GiB))
    assert (report.status, report.bytes) == ("not_freed", GiB)
    assert "leaky: not_freed, the process keeps 1024 MiB more than before" in caplog.messages[-1]
    line = caplog.records[-1]
    assert line.levelno == logging.WARNING
    assert [getattr(line, name) for name in ("memory_status", "memory_bytes", "memory_seconds")] == [
        report.status,
        report.bytes,
        report.seconds,
    ]
    events = await eventually(lambda: memory_events(gpu_manager), description="the event")
    assert (events[0].details["status"], events[0].details["bytes"]) == ("not_freed", str(GiB))
    (status,) = await gpu_manager.status()
    assert status.stats["memory_not_freed"] == 1


async def test_a_leak_is_named_that_was_there_before_the_first_look(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    """The second hold: what the process has when it is idle is known from the first."""
    async with gpu_manager.lock(0) as clean:
        pass
    assert (await report_of(clean)).status == "freed"
    sim.call("compute").delay_ms = 100
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        sim.use(0, GiB)
    report = await report_of(lease)
    assert (report.status in NAMED, report.bytes) == (True, GiB)


async def test_a_process_that_takes_the_lock_again_at_once_is_judged_after_its_last_hold(
    gpu_manager: GpuLockManager, sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(verdicts, "VERDICT_AFTER", 60)
        first = await leak(gpu_manager, sim, GiB)
        last = await gpu_manager.lock(0, gpu_memory=QUICK).acquire()
    await asyncio.sleep(0.05)
    await last.release()
    assert first.memory_report is not None
    assert (first.memory_report.status, first.memory_report.reason[:12]) == ("skipped", "same process")
    report = await report_of(last)
    assert (report.status, report.bytes) == ("not_freed", GiB), "compared with the time before the first hold"


async def test_a_verdict_under_way_ends_when_the_process_holds_the_lock_again(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    first = await leak(gpu_manager, sim, GiB, settle_time=60)
    await asyncio.sleep(0.1)
    assert first.memory_report is None
    async with gpu_manager.lock(0):
        sim.use(0, 0)
    assert first.memory_report is not None
    assert first.memory_report.status == "skipped"


async def test_a_loop_of_short_holds_does_not_ask_the_driver_each_time(
    gpu_manager: GpuLockManager, sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = gpu_manager.lock(0)
    with monkeypatch.context() as patch:
        patch.setattr(verdicts, "VERDICT_AFTER", 60)
        for _ in range(50):
            async with lock:
                pass
    async with lock as lease:
        pass
    assert sim.call("compute").count <= 5
    assert (await report_of(lease)).status == "freed"


@pytest.mark.parametrize("policy", ["off", "report"])
async def test_no_policy_adds_a_round_trip_to_the_hand_off(
    gpu_manager: GpuLockManager, sim: Simulation, policy: str
) -> None:
    lock = gpu_manager.lock(0, gpu_memory={"policy": policy})
    async with lock as first:
        pass
    if policy == "report":
        await report_of(first)
        await eventually(lambda: memory_events(gpu_manager), description="the verdict is over")
    parts, seen = gpu_manager.parts, []
    for client in (parts.client, parts._urgent_client):
        client._exchange = counting(client._exchange, seen)  # type: ignore[method-assign]
    lease = await lock.acquire()
    assert [command[0] for command in seen] == ["EVALSHA"]
    await lease.release()
    assert [command[0] for command in seen] == ["EVALSHA", "EVALSHA"]


def counting(exchange: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    async def counted(commands: Any) -> Any:
        seen.extend(commands)
        return await exchange(commands)

    return counted


async def test_under_off_no_driver_is_asked_about_memory(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    lease = await leak(gpu_manager, sim, GiB, policy="off", on_busy="ignore")
    await asyncio.sleep(0.1)
    assert lease.memory_report is None
    assert sim.call("memory_v2").count == 0


async def test_a_hold_under_off_is_not_taken_for_the_one_before(
    gpu_manager: GpuLockManager, sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(verdicts, "VERDICT_AFTER", 60)
        async with gpu_manager.lock(0) as clean:
            wait_for_looks()
        async with gpu_manager.lock(0, gpu_memory={"policy": "off"}):
            sim.use(0, 9 * GiB)
            await asyncio.sleep(0.05)
    sim.use(0, 0)
    assert clean.memory_report is not None
    assert clean.memory_report.status == "skipped"
    async with gpu_manager.lock(0) as after:
        wait_for_looks()
    assert (await report_of(after)).status == "freed"


async def test_where_nvml_is_off_a_uuid_is_not_looked_at_either(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    for policy in ("report", "hold"):
        async with gpu_manager.lock(uuid(0), gpu_memory={"nvml": "off", "policy": policy}) as lease:
            pass
        assert (await report_of(lease)).status == "unverifiable"
    assert sim.call("memory_v2").count == 0


async def test_the_gpu_of_another_host_is_unverifiable(gpu_manager: GpuLockManager) -> None:
    async with gpu_manager.lock(uuid(77)) as lease:
        pass
    report = await report_of(lease)
    assert (report.status, report.reason) == ("unverifiable", "remote: the GPU of another host")


@pytest.mark.parametrize("code", [12, 9, 15, 18, 3, 10, 999])
async def test_every_error_of_the_driver_is_unverifiable_and_harms_no_hold(
    gpu_manager: GpuLockManager, sim: Simulation, code: int
) -> None:
    async with gpu_manager.lock(0):
        pass
    sim.call("by_uuid").error = code
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        pass
    report = await report_of(lease)
    assert report.status == "unverifiable"
    assert f"(code {code})" in report.reason


async def test_a_process_that_can_start_no_thread_is_unverifiable_and_its_next_hold_is_looked_at(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    async with gpu_manager.lock(0):
        pass
    shared().close()
    wait_until(lambda: shared()._thread is None, description="the thread ends")
    with no_new_threads():
        async with gpu_manager.lock(0, gpu_memory={**QUICK, "cleanup": ["gc"]}) as unseen:
            pass
        report = await report_of(unseen)
    assert (report.status, report.reason[:37]) == ("unverifiable", "unknown: NVML: no thread to ask the d")
    async with gpu_manager.lock(0) as lease:
        pass
    assert (await report_of(lease)).status == "freed"


async def test_a_lost_lease_gets_no_verdict(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    lease = await gpu_manager.lock(0).acquire()
    assert await gpu_manager.force_release(0)
    await eventually(lease.lost.is_set, description="the loss")
    with pytest.raises(Exception, match="is lost"):
        await lease.release()
    assert (await report_of(lease)).status == "skipped"


async def test_a_manager_that_closes_gives_its_verdict_a_moment(sim: Simulation, redis_url: str) -> None:
    manager = GpuLockManager(redis_url, gpu_memory={"nvml": "auto"}, restart_grace=0)
    async with manager, manager.lock(0) as clean:
        pass
    assert clean.memory_report is not None
    assert clean.memory_report.status == "freed"
    begun = time.monotonic()
    async with GpuLockManager(redis_url, gpu_memory={"nvml": "auto"}, restart_grace=0) as manager:
        dirty = await leak(manager, sim, GiB, settle_time=60)
    assert time.monotonic() - begun < 5
    assert dirty.memory_report is not None
    assert (dirty.memory_report.status, dirty.memory_report.bytes) == ("not_freed", GiB)
    assert dirty.memory_report.reason.endswith("s after the release, when its manager was closed")


async def test_what_the_dead_left_may_come_back_after_a_manager_was_closed(sim: Simulation, redis_url: str) -> None:
    manager = GpuLockManager(redis_url, gpu_memory={"nvml": "auto"}, restart_grace=0)
    async with manager, manager.lock(0) as lease:
        wait_for_looks()
        sim.device(0).unattributed = GiB
    assert lease.memory_report is not None
    assert lease.memory_report.status == "unverifiable"
    sim.device(0).unattributed = 0


_never_closed: list[GpuLockManager] = []
"""Kept from the garbage collector: it would warn of their connections."""


def one_job(redis_url: str, body: Callable[[], None], settle_time: float = 60, *, left: bool = True) -> Lease:
    """`asyncio.run` with a manager of its own; without `left` it ends while it holds the lock."""

    async def job() -> Lease:
        memory = {"nvml": "auto", "settle_time": settle_time}
        beats = {"interval": 0.2, "timeout": 5}
        manager = GpuLockManager(redis_url, gpu_memory=memory, restart_grace=0, heartbeat=beats)
        if not left:
            _never_closed.append(manager)
        lease = await manager.lock(0).acquire()
        wait_for_looks()
        body()
        if left:
            await lease.release()
            await manager.close()
        return lease

    return asyncio.run(job())


def test_a_manager_for_each_event_loop_gets_its_verdicts(
    sim: Simulation, redis_url: str, redis_cleanup: redis.Redis
) -> None:
    clean, leaky, after = (one_job(redis_url, partial(sim.use, 0, size)) for size in (0, GiB, GiB))
    reports = [lease.memory_report for lease in (clean, leaky, after)]
    assert [report and report.status for report in reports] == ["freed", "not_freed", "freed"]


def test_a_hold_whose_event_loop_was_closed_hides_no_later_verdict(
    sim: Simulation, redis_url: str, redis_cleanup: redis.Redis
) -> None:
    dropped = one_job(redis_url, partial(sim.use, 0, GiB), left=False)
    after = one_job(redis_url, lambda: None)  # the guard thread has released the other
    assert dropped.memory_report is None
    assert after.memory_report is not None
    assert (after.memory_report.status, after.memory_report.bytes) == ("not_freed", GiB), "what the other left, too"


async def test_a_hold_that_begins_before_the_one_before_has_ended_is_judged_with_it(
    gpu_manager: GpuLockManager, sim: Simulation, redis_url: str
) -> None:
    """The reply to a release comes after another task has the lock."""
    async with GpuLockManager(redis_url, gpu_memory={"nvml": "auto"}, restart_grace=0) as slow:
        async with slow.lock("another"):
            pass  # the server knows the scripts
        first = await slow.lock(0, gpu_memory=QUICK).acquire()
        wait_for_looks()
        sim.use(0, GiB)
        urgent, replied = slow.parts._urgent_client, asyncio.Event()
        exchange = urgent._exchange

        async def late(commands: Any) -> Any:
            reply = await exchange(commands)
            await replied.wait()
            return reply

        urgent._exchange = late  # type: ignore[method-assign]
        release = asyncio.create_task(first.release())
        second = await gpu_manager.lock(0, gpu_memory=QUICK).acquire()
        replied.set()
        await release
        assert (await report_of(first)).status == "skipped"
        await second.release()
        report = await report_of(second)
        assert (report.status, report.bytes) == ("not_freed", GiB)


async def test_what_a_child_of_the_holder_keeps_is_the_holders(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60")
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        wait_for_looks()
        sim.use(0, GiB, pid=child.pid)
    report = await report_of(lease)
    child.kill()
    await child.wait()
    assert (report.status, report.bytes) == ("not_freed", GiB)


async def test_an_orphan_of_the_holder_that_was_seen_is_not_foreign(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    shell = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        "sleep 60 > /dev/null & echo $!; exec cat",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert shell.stdout is not None
    orphan = int(await shell.stdout.readline())
    sim.use(0, GiB, pid=orphan)
    async with gpu_manager.lock(0, gpu_memory={"settle_time": 0.5}) as lease:
        wait_for_looks()
        sim.use(0, 3 * GiB, pid=orphan)
    await eventually(lambda: episode_on(uuid(0))._idle, description="a look after the release")
    shell.kill()
    await shell.wait()
    report = await report_of(lease)
    os.kill(orphan, signal.SIGKILL)
    assert (report.status, report.bytes) == ("not_freed", 2 * GiB)


async def test_many_small_leaks_are_named_together(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    reports = []
    for number in range(1, 9):
        async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
            wait_for_looks()
            sim.use(0, number * 250 * MiB)
        reports.append(await report_of(lease))
    named = [number for number, report in enumerate(reports, 1) if report.status == "not_freed"]
    assert named == [4, 8], "more than the tolerance and a context, and then anew"
    assert reports[3].reason == "the process keeps 1000 MiB more than 4 holds ago: a little was left by each"


async def test_what_is_given_back_between_holds_does_not_creep_up(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    sim.use(0, 2 * GiB)  # a warm model
    reports = []
    for _ in range(6):
        async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
            wait_for_looks()
            sim.use(0, 2 * GiB + 250 * MiB)
        reports.append(await report_of(lease))
        sim.use(0, 2 * GiB)
        await asyncio.sleep(0.02)
    assert "not_freed" not in [report.status for report in reports]


async def test_a_hold_that_is_given_up_before_it_began_leaves_the_verdict_of_the_one_before(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    leaky = await leak(gpu_manager, sim, GiB, settle_time=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), gpu_manager.lock(0, gpu_memory={"require_free": "79.9GiB"}):
            pass
    assert (await report_of(leaky)).status == "not_freed"


async def test_a_model_loaded_without_the_lock_is_no_leak_of_the_next_hold(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    async with gpu_manager.lock(0) as clean:
        pass
    await report_of(clean)
    sim.use(0, 4 * GiB)
    await asyncio.sleep(0.1)
    sim.call("compute").delay_ms = 20
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        await asyncio.sleep(0.1)
    assert (await report_of(lease)).status in CLEAN


async def test_a_model_loaded_just_before_the_lock_was_asked_for_is_no_leak_either(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    """The list of processes comes late; what the device had before the hold does not."""
    async with gpu_manager.lock(0) as clean:
        pass
    await report_of(clean)
    sim.use(0, 4 * GiB)
    sim.call("compute").delay_ms = 20
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        await asyncio.sleep(0.1)
    assert (await report_of(lease)).status in CLEAN
    async with gpu_manager.lock(0, gpu_memory=QUICK) as leaky:
        sim.use(0, 5 * GiB)
    report = await report_of(leaky)
    assert (report.status in NAMED, report.bytes) == (True, GiB)


CASES = [("512MiB", True, 30), ("2GiB", True, 20), ("512MiB", False, 20)]


async def test_a_model_loaded_before_the_first_lock_of_a_process_is_no_leak(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    sim.call("compute").delay_ms = 20
    sim.use(0, 4 * GiB)
    await gpu_manager.status()
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        await asyncio.sleep(0.1)
    assert (await report_of(lease)).status in CLEAN


@pytest.mark.parametrize(("context", "held_before", "level"), CASES)
async def test_what_nobody_can_tell_apart_is_a_warning_if_it_may_be_a_leak(
    gpu_manager: GpuLockManager,
    sim: Simulation,
    caplog: pytest.LogCaptureFixture,
    context: str,
    level: int,
    *,
    held_before: bool,
) -> None:
    """Not where the process was never looked at before, and not where a context may be as large."""
    caplog.set_level(20)
    sim.use(0, GiB)
    if held_before:
        async with gpu_manager.lock(0) as clean:
            await asyncio.sleep(0.05)
        await report_of(clean)
    sim.use(0, 2300 * MiB)
    sim.call("compute").delay_ms = 100
    async with gpu_manager.lock(0, gpu_memory={**QUICK, "context": context}) as lease:
        sim.use(0, 2600 * MiB)  # the device's figure is not what it was
        wait_for_looks()
        sim.use(0, 2300 * MiB)
    report = await report_of(lease)
    assert report.status == "unverifiable"
    assert [told.levelno for told in caplog.records if report.reason in told.getMessage()] == [level]


async def test_what_was_given_back_just_before_the_lock_was_asked_for_hides_no_leak(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    sim.use(0, 3 * GiB)
    async with gpu_manager.lock(0) as clean:
        pass
    await report_of(clean)
    sim.use(0, GiB)
    sim.call("compute").delay_ms = 100
    with behind_the_devices_figure(gpu_manager):
        lease = await gpu_manager.lock(0, gpu_memory=QUICK).acquire()
    sim.use(0, 3 * GiB)
    await lease.release()
    report = await report_of(lease)
    assert (report.status, report.bytes) == ("not_freed", 2 * GiB)


async def test_on_an_idle_gpu_the_first_hold_of_a_process_is_judged_too(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    sim.call("compute").delay_ms = 100
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        await asyncio.sleep(0)
        sim.use(0, GiB)
    report = await report_of(lease)
    assert (report.status in NAMED, report.bytes) == (True, GiB)


async def test_a_look_that_fails_forgets_nothing_of_a_lost_hold(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    lost = await gpu_manager.lock(0).acquire()
    wait_for_looks()
    sim.use(0, GiB)
    assert await gpu_manager.force_release(0)
    await eventually(lost.lost.is_set, description="the loss")
    with pytest.raises(LeaseLostError):
        await lost.release()
    sim.call("by_uuid").error = 999
    async with gpu_manager.lock(0, gpu_memory=QUICK) as unseen:
        pass
    assert (await report_of(unseen)).status == "unverifiable"
    sim.call("by_uuid").error = 0
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        pass
    assert (await report_of(lease)).status == "not_freed"


async def test_a_lost_hold_hides_no_leak_from_the_next_verdict(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    lost = await gpu_manager.lock(0).acquire()
    wait_for_looks()
    sim.use(0, GiB)
    assert await gpu_manager.force_release(0)
    await eventually(lost.lost.is_set, description="the loss")
    with pytest.raises(LeaseLostError):
        await lost.release()
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        pass
    report = await report_of(lease)
    assert (report.status, report.bytes) == ("not_freed", GiB)


async def test_in_a_container_a_predecessor_that_drains_makes_no_leak_look_freed(
    gpu_manager: GpuLockManager, sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOGPULOCK_NVML_PIDS")
    monkeypatch.setattr("aiogpulock.gpu.verify._in_the_initial_namespace", lambda *_: False)
    sim.device(0).unattributed = 20 * GiB
    async with gpu_manager.lock(0, gpu_memory=QUICK) as lease:
        wait_for_looks()
        sim.use(0, 20 * GiB)
        sim.device(0).unattributed = 0
        await asyncio.sleep(0.25)  # the second look sees nothing of that
        wait_for_looks()
        sim.use(0, GiB)
    report = await report_of(lease)
    assert (report.status, report.reason[-46:]) == ("unverifiable", "memory of others drained since the lease began")


async def test_a_hung_driver_never_stalls_the_loop(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    """5 s; the lag is measured by a task that wants to run every 5 ms."""
    lags: list[float] = []

    async def measure() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.005)
            lags.append(time.monotonic() - begun - 0.005)

    measuring = asyncio.create_task(measure())
    async with gpu_manager.lock(0) as clean:
        pass
    await report_of(clean)
    holds, until = 0, time.monotonic() + 5
    with sim.hung("compute"):
        while time.monotonic() < until:
            async with gpu_manager.lock(0) as lease:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.05)
            holds += 1
    measuring.cancel()
    assert max(lags) < 0.5
    assert holds > 20
    report = await report_of(lease)
    assert (report.status, report.reason[:6]) == ("unverifiable", "wedged")


# two processes


def statuses(answers: list[dict[str, Any]]) -> set[str]:
    return {report["status"] for answer in answers for report in answer["reports"]}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("listing", "verdicts"), [("all", {"freed"}), ("nothing", {"unverifiable", "freed"})], ids=["figures", "none"]
)
def test_200_hand_offs_between_clean_processes_give_no_false_leak(
    start_holder: Callable[..., Told], sim: Simulation, listing: Any, verdicts: set[str]
) -> None:
    sim.list_processes(0, listing)
    count = 100 if listing == "all" else 10
    pair = [start_holder(), start_holder()]
    for process in pair:
        process.begin_to("turns", count=count, size=2 * GiB, hold=0.03)
    answers = [process.answer() for process in pair]
    assert sum(len(answer["reports"]) for answer in answers) == 2 * count
    assert statuses(answers) <= verdicts | {"skipped"}
    judged = [report for answer in answers for report in answer["reports"] if report["status"] != "skipped"]
    assert len(judged) >= count / 10, "a process that waits for the other long enough gets its verdict"


@pytest.mark.integration
@pytest.mark.parametrize("draining", [0, 20 * GiB])
def test_a_leak_is_named_beside_an_active_next_holder_and_after_a_draining_predecessor(
    start_holder: Callable[..., Told], sim: Simulation, draining: int
) -> None:
    leaky, other = start_holder(settle_time=0.3), start_holder()
    sim.device(0).unattributed = draining
    leaky.do("acquire")
    leaky.do("look")
    sim.device(0).unattributed = 0
    leaky.do("use", size=GiB)
    other.begin_to("acquire")
    leaky.do("release")
    other.answer()
    other.do("use", size=9 * GiB)
    report = leaky.do("report")
    assert (report["status"], report["bytes"]) == ("not_freed", GiB)
    other.do("use", size=0)
    other.do("release")
    assert other.do("report")["status"] == "freed"


@pytest.mark.integration
def test_a_slow_reclaim_delays_nobody(start_holder: Callable[..., Told], sim: Simulation) -> None:
    holder, other = start_holder(settle_time=2), start_holder()  # on a busy machine the other comes late
    sim.reap(after_ms=5000)
    holder.do("acquire")
    holder.do("look")
    holder.do("kill_a_child", size=9 * GiB)
    other.begin_to("acquire")
    holder.do("release")
    other.answer()
    assert sim.device(0).unattributed == 9 * GiB, "the next holder began beside it"
    report = holder.do("report")
    assert (report["status"], report["reason"][:18]) == ("unverifiable", "next holder active"), "whose it is, who knows"


@pytest.mark.integration
@pytest.mark.parametrize("waits", [0.2, 1.2])
def test_who_waited_for_the_lock_may_leak_with_its_first_line(
    start_holder: Callable[..., Told], sim: Simulation, waits: float
) -> None:
    holder, waiter = start_holder(), start_holder(settle_time=0.1)
    holder.do("acquire")
    waiter.begin_to("acquire_and_use", size=GiB)
    time.sleep(waits)
    sim.call("compute").delay_ms = 100
    holder.do("release")
    waiter.answer()
    waiter.do("release")
    report = waiter.do("report")
    assert (report["status"] in NAMED, report["bytes"]) == (True, GiB)


async def test_a_granted_waiter_sends_its_claim_before_it_asks_the_driver(
    gpu_manager: GpuLockManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it asks before the claim is answered: the body may allocate from then on."""
    steps: list[str] = []
    send, expect, claim = AbstractConnection.send_packed_command, Caretaker.expect, Scripts.acquire

    async def sent(*arguments: Any, **options: Any) -> None:
        await send(*arguments, **options)
        steps.append("sent")

    async def claimed(scripts: Scripts, *arguments: Any) -> Any:
        steps.clear()
        reply = await claim(scripts, *arguments)
        steps.append("answered")
        return reply

    def expected(*arguments: Any) -> None:
        steps.append("driver asked")
        expect(*arguments)

    first = await gpu_manager.lock(0).acquire()
    waiting = asyncio.create_task(gpu_manager.lock(0, max_wait_time=10).acquire())
    while not any(lock.waiters for lock in await gpu_manager.status()):
        await asyncio.sleep(0.01)
    monkeypatch.setattr(AbstractConnection, "send_packed_command", sent)
    monkeypatch.setattr(Caretaker, "expect", expected)
    monkeypatch.setattr(Scripts, "acquire", claimed)
    await first.release()
    await (await waiting).release()
    assert steps[:3] == ["sent", "driver asked", "answered"]
