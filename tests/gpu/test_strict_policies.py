"""Policies ``hold``, ``raise``, ``quarantine``: the release waits for the memory, and says what did not come back."""

from __future__ import annotations

import asyncio
import gc
import pickle
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import redis

from aiogpulock import (
    DeviceQuarantinedError,
    GpuLockManager,
    Lease,
    LeaseLostError,
    LockTimeoutError,
    MemoryNotFreedError,
    sync,
)
from aiogpulock.episode import episode_on
from aiogpulock.gpu import reclaim
from aiogpulock.keys import lock_keys
from aiogpulock.models import LockSnapshot
from tests.gpu.looks import wait_for_looks
from tests.gpu.processes import Told
from tests.gpu.test_report import counting, report_of
from tests.nvml_sim import GiB, MiB, Simulation, uuid
from tests.unit.support import eventually


def memory(policy: str, settle_time: float = 0.15, **more: Any) -> dict[str, Any]:
    return {"policy": policy, "settle_time": settle_time, **more}


async def snapshot(manager: GpuLockManager) -> LockSnapshot:
    (lock,) = await manager.status()
    return lock


@pytest.mark.parametrize("policy", ["hold", "raise"])
async def test_a_clean_hold_is_judged_before_it_is_handed_on(
    gpu_manager: GpuLockManager, sim: Simulation, policy: str
) -> None:
    async with gpu_manager.lock(0, gpu_memory=memory(policy)) as lease:
        sim.use(0, GiB)  # at once: the first look was before the body
        sim.use(0, 0)
    assert lease.memory_report is not None
    assert lease.memory_report.status == "freed"


@pytest.mark.parametrize(("context", "status"), [("512MiB", "not_freed"), ("1GiB", "freed_except_context")])
async def test_a_context_may_be_larger_than_usual(
    gpu_manager: GpuLockManager, sim: Simulation, context: str, status: str
) -> None:
    async with gpu_manager.lock(0, gpu_memory=memory("hold", context=context)) as lease:
        sim.use(0, 800 * MiB)
    assert lease.memory_report is not None
    assert lease.memory_report.status == status


async def test_hold_waits_until_the_memory_is_back_and_others_see_it_draining(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    lease = await gpu_manager.lock(0, gpu_memory=memory("hold", 30)).acquire()
    sim.use(0, 9 * GiB)
    release = asyncio.create_task(lease.release())

    async def draining() -> bool:
        return (await snapshot(gpu_manager)).phase == "draining"

    await eventually(draining, description="the phase")
    with pytest.raises(LockTimeoutError, match="which waits for the GPU's memory to come back"):
        await gpu_manager.lock(0, task_name="next", max_wait_time=0.2).acquire_for("another")
    assert not release.done()
    sim.use(0, 0)
    await release
    assert lease.memory_report is not None
    assert (lease.memory_report.status, lease.memory_report.seconds > 0.2) == ("freed", True)
    assert (await snapshot(gpu_manager)).phase is None


async def test_hold_is_bounded_and_reports_the_leak(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    begun = time.monotonic()
    async with gpu_manager.lock(0, gpu_memory=memory("hold", 0.3)) as lease:
        sim.use(0, GiB)
    assert 0.3 <= time.monotonic() - begun < 5
    assert lease.memory_report is not None
    assert (lease.memory_report.status, lease.memory_report.bytes) == ("not_freed", GiB)
    assert (await snapshot(gpu_manager)).value is None


async def test_the_heartbeat_goes_on_while_the_memory_is_waited_for(redis_url: str, sim: Simulation) -> None:
    short = {"interval": 0.1, "timeout": 1.5}
    async with GpuLockManager(redis_url, heartbeat=short, restart_grace=0, gpu_memory={"nvml": "auto"}) as manager:
        lease = await manager.lock(0, gpu_memory=memory("hold", 3)).acquire()
        sim.use(0, GiB)
        await lease.release()  # longer than the lease
        assert lease.lost_reason is None
        assert lease.memory_report is not None
        assert lease.memory_report.status == "not_freed"


async def test_a_loss_ends_the_wait(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    lease = await gpu_manager.lock(0, gpu_memory=memory("hold", 60)).acquire()
    sim.use(0, GiB)
    release = asyncio.create_task(lease.release())
    await asyncio.sleep(0.05)
    assert await gpu_manager.force_release(0)
    with pytest.raises(LeaseLostError):
        await release
    assert lease.memory_report is not None
    assert lease.memory_report.status == "skipped"


async def test_a_cancellation_ends_the_wait_and_the_lock_is_free(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    lease = await gpu_manager.lock(0, gpu_memory=memory("hold", 60)).acquire()
    sim.use(0, GiB)
    release = asyncio.create_task(lease.release())
    await asyncio.sleep(0.05)
    release.cancel()
    with pytest.raises(asyncio.CancelledError):
        await release
    assert (await snapshot(gpu_manager)).value is None


def is_dirty(server: redis.Redis) -> bool:
    """Whether the next holder must look before its body begins."""
    return bool(server.hget(lock_keys(uuid(0), "gpu_lock").fence, "dirty") == "1")


@pytest.mark.parametrize("left", [0, GiB])
async def test_after_a_release_that_was_cancelled_the_next_holder_looks_if_the_memory_was_not_back(
    gpu_manager: GpuLockManager, sim: Simulation, redis_cleanup: redis.Redis, left: int
) -> None:
    lease = await gpu_manager.lock(0, gpu_memory=memory("raise", 60)).acquire()
    sim.device(0).unattributed = left
    with anyio.move_on_after(0):
        await lease.release()
    assert is_dirty(redis_cleanup) is bool(left)
    sim.device(0).unattributed = 0
    report = await eventually(lambda: lease.memory_report, description="the verdict, behind the hand-off")
    assert report.status == "freed"


async def test_a_driver_that_fails_for_a_while_is_asked_again_and_the_leak_quarantined(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    lease = await gpu_manager.lock(0, gpu_memory=memory("quarantine", 1)).acquire()
    sim.use(0, 9 * GiB)
    release = asyncio.create_task(lease.release())
    await asyncio.sleep(0.1)
    sim.call("by_uuid").error = 999
    await asyncio.sleep(0.3)
    assert not release.done()
    sim.call("by_uuid").error = 0
    await release
    assert lease.memory_report is not None
    assert (lease.memory_report.status, lease.memory_report.bytes) == ("not_freed", 9 * GiB)
    assert "left 9216 MiB" in ((await snapshot(gpu_manager)).quarantine or "")


@pytest.mark.parametrize("held_before", [False, True])
async def test_a_first_look_that_fails_is_taken_again_before_the_body_begins(
    gpu_manager: GpuLockManager, sim: Simulation, held_before: bool
) -> None:
    if held_before:
        async with gpu_manager.lock(0):
            pass
        await asyncio.sleep(0.1)
    sim.call("by_uuid").error = 999
    asyncio.get_running_loop().call_later(0.1, setattr, sim.call("by_uuid"), "error", 0)
    with pytest.raises(MemoryNotFreedError):
        async with gpu_manager.lock(0, gpu_memory=memory("raise", 1)):
            sim.use(0, 9 * GiB)
    async with gpu_manager.lock(0, gpu_memory=memory("raise")) as clean:
        pass
    assert clean.memory_report is not None
    assert clean.memory_report.status == "freed"


@pytest.mark.parametrize("policy", ["raise", "quarantine"])
async def test_a_clean_hold_answers_for_nothing_that_an_earlier_one_left(
    gpu_manager: GpuLockManager, sim: Simulation, policy: str
) -> None:
    """That one is told of it, when every look since has found it."""
    async with gpu_manager.lock(0) as first:
        wait_for_looks()
    await report_of(first)
    async with gpu_manager.lock(0) as guilty:
        wait_for_looks()
        sim.use(0, 3 * GiB)
    await eventually(lambda: episode_on(uuid(0))._standing, description="the leak is seen")
    for _ in range(2):
        async with gpu_manager.lock(0, gpu_memory=memory(policy, 0.5)) as clean:
            pass
        assert clean.memory_report is not None
        assert clean.memory_report.status == "freed"
        await asyncio.sleep(0.6)
    assert (await snapshot(gpu_manager)).quarantine is None
    report = guilty.memory_report
    assert report is not None
    assert (report.status, report.bytes) == ("not_freed", 3 * GiB)
    with pytest.raises(MemoryNotFreedError):
        async with gpu_manager.lock(0, gpu_memory=memory("raise")):
            sim.use(0, 5 * GiB)


async def test_memory_that_comes_back_while_the_driver_fails_is_found_back(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    lease = await gpu_manager.lock(0, gpu_memory=memory("quarantine", 30)).acquire()
    sim.use(0, 9 * GiB)
    sim.call("by_uuid").error = 999
    release = asyncio.create_task(lease.release())
    await asyncio.sleep(0.1)
    sim.use(0, 0)
    sim.call("by_uuid").error = 0
    await release
    assert lease.memory_report is not None
    assert lease.memory_report.status == "freed"


@pytest.mark.parametrize(("code", "dirty"), [(15, True), (3, False)])
async def test_where_the_driver_did_not_answer_to_the_end_the_next_holder_looks(
    gpu_manager: GpuLockManager, sim: Simulation, redis_cleanup: redis.Redis, code: int, *, dirty: bool
) -> None:
    """Where nobody can ever look the next holder cannot either."""
    async with gpu_manager.lock(0, gpu_memory=memory("hold")) as lease:
        sim.call("by_uuid").error = code
    assert lease.memory_report is not None
    assert lease.memory_report.status == "unverifiable"
    assert f"(code {code})" in lease.memory_report.reason
    assert is_dirty(redis_cleanup) is dirty


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_a_release_under_quarantine_that_is_cancelled_leaves_its_quarantine(
    gpu_manager: GpuLockManager, sim: Simulation, how: str
) -> None:
    lease = await gpu_manager.lock(0, gpu_memory=memory("quarantine", 60)).acquire()
    sim.use(0, GiB)
    if how == "task":
        release = asyncio.create_task(lease.release())
        await asyncio.sleep(0.05)
        release.cancel()
        await asyncio.wait([release])
        assert release.cancelled()
    else:  # cancels at every await
        with anyio.move_on_after(0):
            await lease.release()
    lock = await snapshot(gpu_manager)
    assert lock.value is None
    assert "left 1024 MiB" in (lock.quarantine or "")


async def test_a_release_under_quarantine_that_is_cancelled_tells_nothing_of_a_clean_hold(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    lease = await gpu_manager.lock(0, gpu_memory=memory("quarantine", 60)).acquire()
    with anyio.move_on_after(0):
        await lease.release()
    lock = await snapshot(gpu_manager)
    assert (lock.value, lock.quarantine) == (None, None)


async def test_what_a_child_keeps_quarantines_the_gpu_until_the_child_is_gone(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60")
    async with gpu_manager.lock(0, gpu_memory=memory("quarantine")):
        sim.use(0, GiB, pid=child.pid)
    assert "processes that the holder started keep 1024 MiB" in ((await snapshot(gpu_manager)).quarantine or "")
    with pytest.raises(DeviceQuarantinedError):
        await gpu_manager.lock(0, gpu_memory=memory("report")).acquire()
    child.kill()
    await child.wait()
    sim.use(0, 0, pid=child.pid)
    async with gpu_manager.lock(0, gpu_memory=memory("report")):
        assert (await snapshot(gpu_manager)).quarantine is None


async def test_in_a_container_the_body_waits_until_it_is_known_whether_others_drain(
    gpu_manager: GpuLockManager, sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOGPULOCK_NVML_PIDS")
    monkeypatch.setattr("aiogpulock.gpu.verify._in_the_initial_namespace", lambda *_: False)
    sim.device(0).unattributed = 20 * GiB

    async def drain() -> None:
        await eventually(lambda: sim.call("memory_v2").count, description="the first look")
        await asyncio.sleep(0.05)
        sim.device(0).unattributed = 0

    draining = asyncio.create_task(drain())
    async with gpu_manager.lock(0, gpu_memory=memory("hold")) as lease:
        sim.use(0, 20 * GiB)  # as much as was given back: the device alone would look untouched
        await asyncio.sleep(0.35)
    await draining
    assert lease.memory_report is not None
    assert lease.memory_report.status == "unverifiable"


async def test_nobody_is_told_of_draining_where_the_memory_is_back_at_once(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    async with gpu_manager.lock(0, gpu_memory=memory("hold")):
        pass
    lease = await gpu_manager.lock(0, gpu_memory=memory("hold")).acquire()
    seen, urgent = [], gpu_manager.parts._urgent_client
    urgent._exchange = counting(urgent._exchange, seen)  # type: ignore[method-assign]
    await lease.release()
    assert [command[0] for command in seen] == ["EVALSHA"], "the release alone"


async def test_a_leaked_lease_keeps_nobody_waiting_for_its_memory(
    gpu_manager: GpuLockManager, sim: Simulation, redis_cleanup: redis.Redis
) -> None:
    """Its release is an errand, and others wait behind it. The next holder looks."""
    lease = await gpu_manager.lock(0, gpu_memory=memory("hold", 60)).acquire()
    sim.use(0, GiB)
    with pytest.warns(ResourceWarning, match="was never released"):
        del lease
        gc.collect()

    async def free() -> bool:
        return (await snapshot(gpu_manager)).value is None

    begun = time.monotonic()
    await eventually(free, description="the release")
    assert time.monotonic() - begun < 20
    assert is_dirty(redis_cleanup)


# raise


async def test_raise_tells_the_one_who_left_the_memory_after_the_release(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    with pytest.raises(MemoryNotFreedError) as caught:
        async with gpu_manager.lock(0, gpu_memory=memory("raise")):
            sim.use(0, GiB)
    assert (caught.value.report.status, caught.value.report.bytes) == ("not_freed", GiB)
    assert "keeps 1024 MiB more than before" in str(caught.value)
    assert (await snapshot(gpu_manager)).value is None
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.report) == (str(caught.value), caught.value.report)


async def test_the_bodys_own_exception_comes_out_with_the_leak_as_a_note(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with gpu_manager.lock(0, gpu_memory=memory("raise")):
            sim.use(0, GiB)
            raise ZeroDivisionError
    assert caught.value.__notes__[0].startswith("MemoryNotFreedError: ")


async def test_a_cancelled_body_stays_cancelled(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    async def body() -> None:
        async with gpu_manager.lock(0, gpu_memory=memory("raise")):
            sim.use(0, GiB)
            await asyncio.sleep(60)

    task = asyncio.create_task(body())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_nobody_could_tell_is_not_raised(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    async with gpu_manager.lock(0, gpu_memory=memory("raise")) as lease:
        sim.call("by_uuid").error = 15
    assert lease.memory_report is not None
    assert lease.memory_report.status == "unverifiable"


def test_threads_are_told_too(sim: Simulation, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("AIOGPULOCK_GPU_MEMORY_NVML", "auto")
    monkeypatch.setenv("AIOGPULOCK_RESTART_GRACE", "0")
    try:
        with pytest.raises(MemoryNotFreedError), sync.gpu_lock(0, gpu_memory=memory("raise")):
            sim.use(0, GiB)
        with pytest.raises(ZeroDivisionError) as caught, sync.gpu_lock(0, gpu_memory=memory("raise")):
            sim.use(0, 3 * GiB)
            raise ZeroDivisionError
        assert caught.value.__notes__[0].startswith("MemoryNotFreedError: ")
    finally:
        sync.close()


# reclaimers


async def test_the_caches_of_imported_libraries_are_given_back_before_the_verdict(
    gpu_manager: GpuLockManager, sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True, set_device=lambda _device: None, empty_cache=lambda: sim.use(0, 0)
    )
    monkeypatch.setattr(reclaim, "with_a_context", lambda: [0])
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    told: list[str] = []
    lock = gpu_manager.lock(0, cleanup=lambda: told.append("hook"), gpu_memory=memory("raise", cleanup=["gc", "torch"]))
    async with lock as lease:
        sim.use(0, 9 * GiB)
    assert told == ["hook"]
    assert lease.memory_report is not None
    assert lease.memory_report.status == "freed"


@pytest.mark.parametrize("policy", ["off", "hold"])
async def test_a_reclaimer_that_fails_is_counted_and_harms_nothing(
    gpu_manager: GpuLockManager, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    def fails() -> bool:
        raise RuntimeError("CUDA error")

    monkeypatch.setitem(reclaim.RECLAIMERS, "torch", fails)
    async with gpu_manager.lock(0, gpu_memory=memory(policy, cleanup=["torch"])):
        pass

    async def counted() -> bool:
        return (await snapshot(gpu_manager)).stats.get("cleanup_failures") == 1

    await eventually(counted, description="the counter")


# two processes


@pytest.mark.integration
def test_a_reclaim_of_300_ms_after_sigkill_delays_the_next_holder_under_hold(
    start_holder: Callable[..., Told], sim: Simulation
) -> None:
    """The same as `test_report.test_a_slow_reclaim_delays_nobody`, under the other policy."""
    holder, other = start_holder(policy="hold"), start_holder()
    sim.reap(after_ms=300)
    holder.do("acquire")
    killed = holder.do("kill_a_child", size=9 * GiB)
    other.begin_to("acquire")
    holder.do("release")
    assert other.answer()["at"] - killed["at"] >= 0.28
    assert holder.do("report")["status"] == "freed"
    assert sim.device(0).unattributed == 0


async def test_where_nobody_can_look_nothing_is_waited_for(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    lock = gpu_manager.lock("my-box", gpu_memory=memory("hold", 60))
    begun = time.monotonic()
    async with lock as lease:
        pass
    assert time.monotonic() - begun < 5
    assert lease.memory_report is not None
    assert lease.memory_report.status == "unverifiable"


async def test_a_second_release_waits_for_the_first_and_hands_nothing_on(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    hooks: list[str] = []
    lock = gpu_manager.lock(0, cleanup=lambda: hooks.append("hook"), gpu_memory=memory("hold", 30))
    lease = await lock.acquire()
    sim.use(0, 9 * GiB)
    first = asyncio.create_task(lease.release())

    async def draining() -> bool:
        return (await snapshot(gpu_manager)).phase == "draining"

    await eventually(draining, description="the phase")
    second = asyncio.create_task(lease.release())
    await asyncio.sleep(0.1)
    assert (await draining(), second.done(), hooks) == (True, False, ["hook"])
    second.cancel()  # who gives up waiting ends nothing
    await asyncio.gather(second, return_exceptions=True)
    third = asyncio.create_task(lease.release())
    await asyncio.sleep(0)
    assert await draining()
    sim.use(0, 0)
    await asyncio.gather(first, third)
    assert (await snapshot(gpu_manager)).value is None
    assert hooks == ["hook"]


@pytest.mark.parametrize("in_a_task", [False, True])
async def test_a_clean_up_hook_may_release_the_lease_itself(
    gpu_manager: GpuLockManager, caplog: pytest.LogCaptureFixture, in_a_task: bool
) -> None:
    leases: list[Lease] = []
    after: list[str | None] = []

    async def hook() -> None:
        await (asyncio.gather(leases[0].release()) if in_a_task else leases[0].release())
        after.append((await snapshot(gpu_manager)).phase)

    leases.append(await gpu_manager.lock(0, cleanup=hook).acquire())
    await asyncio.wait_for(leases[0].release(), 5)
    assert after == ["held"], "it is a part of the release that called it, and comes once"
    assert (await snapshot(gpu_manager)).value is None
    assert not caplog.messages, "the hook did not fail"
