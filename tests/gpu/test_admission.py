"""What is asked of the GPU before the body: free memory, nobody else, and what a crash or a leak left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis

from aiogpulock import (
    ConfigError,
    DeviceBusyError,
    DeviceQuarantinedError,
    GpuLockManager,
    LeaseLostError,
    LockTimeoutError,
)
from aiogpulock.gpu.nvml import shared
from aiogpulock.gpu.records import NvmlError
from aiogpulock.models import Alert, LockSnapshot, quarantine_of
from tests.gpu.processes import Told, start_stranger
from tests.nvml_sim import GiB, MiB, Simulation, uuid
from tests.unit.support import eventually

STRANGER = 4_000_000
"""A pid that no process has."""


def asked(settle_time: float = 0.15, **more: Any) -> dict[str, Any]:
    return {"settle_time": settle_time, **more}


async def snapshot(manager: GpuLockManager) -> LockSnapshot:
    (lock,) = await manager.status()
    return lock


async def held(manager: GpuLockManager) -> bool:
    return any(lock.phase == "held" for lock in await manager.status())


@pytest.fixture
def stranger(sim: Simulation) -> Iterator[int]:
    """A living process that uses 9 GiB of GPU 0, holds no lock, and was started by somebody else."""
    pid = start_stranger()
    sim.use(0, 9 * GiB, pid=pid)
    yield pid
    os.kill(pid, signal.SIGKILL)


# require_free


async def test_enough_free_memory_lets_the_body_begin(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    sim.use(0, 9 * GiB, pid=STRANGER)
    async with gpu_manager.lock(0, gpu_memory=asked(require_free="70GiB")):
        pass


async def test_too_little_free_memory_is_waited_for(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    sim.device(0).unattributed = 70 * GiB
    asyncio.get_running_loop().call_later(0.2, setattr, sim.device(0), "unattributed", 0)
    begun = time.monotonic()
    async with gpu_manager.lock(0, gpu_memory=asked(30, require_free="20GiB")):
        assert time.monotonic() - begun >= 0.19


async def test_who_is_refused_hands_the_lock_on_and_learns_who_has_the_memory(
    gpu_manager: GpuLockManager, sim: Simulation, stranger: int
) -> None:
    with pytest.raises(DeviceBusyError) as caught:
        await gpu_manager.lock(0, gpu_memory=asked(require_free="75GiB")).acquire()
    (process,) = caught.value.processes
    assert (process.pid, process.bytes, process.name) == (stranger, 9 * GiB, "sleep")
    assert process.started is not None
    assert abs(process.started - time.time()) < 60
    assert "70.5 GiB of 80.0 GiB are free, and 75.0 GiB are required" in str(caught.value)
    assert f"pid {stranger} (sleep) with 9216 MiB since 20" in str(caught.value)
    assert (await snapshot(gpu_manager)).value is None
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.processes) == (str(caught.value), caught.value.processes)


async def test_more_than_the_card_has_is_a_mistake_of_the_settings(gpu_manager: GpuLockManager) -> None:
    holder = await gpu_manager.lock(0).acquire_for("a holder")
    with pytest.raises(ConfigError, match=r"require_free: 100\.0 GiB are more than the whole GPU has \(80\.0 GiB"):
        await gpu_manager.lock(0, max_wait_time=5, gpu_memory=asked(60, require_free="100GiB")).acquire()
    await holder.release()


async def test_the_size_of_a_card_that_did_not_answer_before_the_queue_is_told_after_it(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    holder = await gpu_manager.lock(0, gpu_memory={"policy": "off"}).acquire_for("a holder")
    calls = sim.call("by_uuid")
    calls.error = 10
    waiting = asyncio.create_task(gpu_manager.lock(0, gpu_memory=asked(60, require_free="100GiB")).acquire())

    async def queued() -> bool:
        return (await snapshot(gpu_manager)).waiters == 1

    await eventually(queued, description="it queues")
    calls.error = 0
    await holder.release()
    with pytest.raises(ConfigError, match="more than the whole GPU has"):
        await waiting
    assert (await snapshot(gpu_manager)).value is None


@pytest.mark.parametrize("longest", [0, 0.4])
async def test_a_driver_that_hangs_before_the_queue_takes_no_more_than_the_wait(
    gpu_manager: GpuLockManager, sim: Simulation, longest: float
) -> None:
    holder = await gpu_manager.lock(0, gpu_memory={"policy": "off"}).acquire_for("a holder")
    begun = time.monotonic()
    with sim.hung("memory_v2"), pytest.raises(LockTimeoutError, match=r"held by '.*a holder'"):
        await gpu_manager.lock(0, max_wait_time=longest, gpu_memory=asked(require_free="20GiB")).acquire()
    assert longest <= time.monotonic() - begun < 1.5
    await holder.release()


async def test_a_look_that_hangs_takes_no_more_than_the_wait(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    async with gpu_manager.lock(0, gpu_memory={"policy": "off"}):
        pass
    begun = time.monotonic()
    with sim.hung("compute"), pytest.raises(DeviceBusyError, match="its memory cannot be read: NVML: no memory"):
        await gpu_manager.lock(0, max_wait_time=0.3, gpu_memory=asked(on_busy="wait")).acquire()
    assert time.monotonic() - begun < 1.5
    assert (await snapshot(gpu_manager)).value is None


async def test_a_first_look_that_hangs_delays_the_body_by_no_more_than_the_wait(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    async with gpu_manager.lock(0, gpu_memory={"policy": "off"}):
        pass
    begun = time.monotonic()
    with sim.hung("compute"):
        async with gpu_manager.lock(0, max_wait_time=0.3, gpu_memory=asked(policy="hold")):
            assert time.monotonic() - begun < 1.5


async def test_the_size_of_a_card_is_asked_once(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    lock = gpu_manager.lock(0, gpu_memory=asked(require_free="100GiB", policy="off"))
    for _ in range(3):
        with pytest.raises(ConfigError, match="more than the whole GPU has"):
            await lock.acquire()
    assert sim.call("memory_v2").count == 1


async def test_who_does_not_wait_leaves_the_size_to_the_next(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    holder = await gpu_manager.lock(0, gpu_memory={"policy": "off"}).acquire_for("a holder")
    lock = gpu_manager.lock(0, max_wait_time=0, gpu_memory=asked(require_free="100GiB", policy="off"))
    with pytest.raises(LockTimeoutError):
        await lock.acquire()
    await eventually(lambda: shared()._totals, description="the answer that nobody waited for")
    with pytest.raises(ConfigError, match="more than the whole GPU has"):
        await lock.acquire()
    await holder.release()


# on_busy


async def test_raise_refuses_a_busy_gpu_and_an_idle_context_is_not_busy(
    gpu_manager: GpuLockManager, sim: Simulation, stranger: int
) -> None:
    lock = gpu_manager.lock(0, gpu_memory=asked(on_busy="raise"))
    with pytest.raises(DeviceBusyError, match="processes use it that do not hold its lock") as caught:
        await lock.acquire()
    assert [process.pid for process in caught.value.processes] == [stranger]
    sim.use(0, 400 * MiB, pid=stranger)
    async with lock:
        pass


async def test_the_memory_of_the_holder_and_its_children_is_not_foreign(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    sim.use(0, 9 * GiB)
    with subprocess.Popen(["sleep", "60"]) as child:  # noqa: ASYNC220 - it starts nothing that waits
        sim.use(0, 9 * GiB, pid=child.pid)
        async with gpu_manager.lock(0, gpu_memory=asked(on_busy="raise")):
            pass
        child.kill()


async def test_companions_count_as_the_holder(sim: Simulation, redis_url: str, stranger: int) -> None:
    async with (
        GpuLockManager(redis_url, companions=[stranger], gpu_memory={"nvml": "auto"}, restart_grace=0) as manager,
        manager.lock(0, gpu_memory=asked(on_busy="raise")) as lease,
    ):
        sim.use(0, 12 * GiB, pid=stranger)
    report = await eventually(lambda: lease.memory_report, description="the verdict")
    assert (report.status, report.bytes) == ("not_freed", 3 * GiB)


async def test_wait_keeps_the_lock_until_the_others_are_gone_and_says_once_for_what_it_waits(
    gpu_manager: GpuLockManager, sim: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    sim.use(0, 9 * GiB, pid=STRANGER)
    waiting = asyncio.create_task(gpu_manager.lock(0, gpu_memory=asked(on_busy="wait")).acquire())
    await eventually(lambda: held(gpu_manager), description="the lock is held")
    await asyncio.sleep(0.6)  # longer than settle_time, and some looks more
    assert not waiting.done()
    text = f"is held and waits: Simulated GPU {uuid(0)}: processes use it that do not hold its lock: pid {STRANGER}"
    assert caplog.text.count(text) == 1
    sim.use(0, 0, pid=STRANGER)
    await (await waiting).release()


async def test_an_answer_that_fails_does_not_clear_the_way(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    sim.use(0, 9 * GiB, pid=STRANGER)
    waiting = asyncio.create_task(gpu_manager.lock(0, gpu_memory=asked(on_busy="wait")).acquire())
    await eventually(lambda: held(gpu_manager), description="the lock is held")
    await eventually(lambda: sim.call("compute").count >= 2, description="it has looked")
    calls = sim.call("by_uuid")
    calls.error, before = 10, calls.count
    await eventually(lambda: calls.count >= before + 3, description="it has asked in vain")
    assert not waiting.done()
    sim.use(0, 0, pid=STRANGER)
    calls.error = 0
    await (await waiting).release()


async def test_wait_is_bounded_by_what_is_left_of_max_wait_time(
    gpu_manager: GpuLockManager, sim: Simulation, stranger: int
) -> None:
    holder = await gpu_manager.lock(0).acquire_for("a holder")
    asyncio.get_running_loop().call_later(0.4, lambda: asyncio.ensure_future(holder.release()))
    begun = time.monotonic()
    with pytest.raises(DeviceBusyError):
        await gpu_manager.lock(0, max_wait_time=0.8, gpu_memory=asked(on_busy="wait")).acquire()
    assert 0.75 <= time.monotonic() - begun < 5
    assert (await snapshot(gpu_manager)).value is None


async def test_the_heartbeat_goes_on_while_the_gpu_is_waited_for(redis_url: str, sim: Simulation) -> None:
    sim.use(0, 9 * GiB, pid=STRANGER)
    short = {"interval": 0.1, "timeout": 1.5}
    async with GpuLockManager(redis_url, heartbeat=short, restart_grace=0, gpu_memory={"nvml": "auto"}) as manager:
        asyncio.get_running_loop().call_later(3, lambda: sim.use(0, 0, pid=STRANGER))
        async with manager.lock(0, gpu_memory=asked(on_busy="wait")) as lease:
            lease.check()


async def test_a_lease_that_is_taken_away_meanwhile_is_lost(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    sim.use(0, 9 * GiB, pid=STRANGER)
    waiting = asyncio.create_task(gpu_manager.lock(0, gpu_memory=asked(on_busy="wait")).acquire())

    async def forced() -> bool:
        return await gpu_manager.force_release(0)

    await asyncio.sleep(0.05)
    await eventually(forced, description="the holder is ended")
    with pytest.raises(LeaseLostError):
        await waiting


async def test_a_cancelled_wait_leaves_nothing_behind(
    gpu_manager: GpuLockManager, sim: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    sim.use(0, 9 * GiB, pid=STRANGER)
    waiting = asyncio.create_task(gpu_manager.lock(0, gpu_memory=asked(on_busy="wait")).acquire())
    await eventually(lambda: "is held and waits" in caplog.text, description="it waits for the memory alone")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await snapshot(gpu_manager)).value is None
    assert len(gpu_manager.owners) == 0


OTHERS_USE_IT = "others use the GPU"


@pytest.mark.parametrize("policy", ["report", "off"])
async def test_warn_names_the_others_once_and_ignore_does_not(
    gpu_manager: GpuLockManager, sim: Simulation, stranger: int, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    for on_busy, count in (("ignore", 0), ("warn", 1), ("warn", 1)):
        memory = asked(0.05, on_busy=on_busy, policy=policy)
        async with gpu_manager.lock(0, task_name="mine", gpu_memory=memory):
            await asyncio.sleep(0.3)
            await eventually(lambda: caplog.text.count(OTHERS_USE_IT) >= count, description="they are named")  # noqa: B023
        assert caplog.text.count(OTHERS_USE_IT) == count
    assert f"is held by mine, and others use the GPU: pid {stranger} (sleep) with 9216 MiB" in caplog.text
    known = gpu_manager.caretaker._others._known
    assert [pid for pid, _ in known[uuid(0)]] == [stranger]
    sim.use(0, 0, pid=stranger)
    async with gpu_manager.lock(0, gpu_memory=asked(0.05)):
        await eventually(lambda: not known[uuid(0)], description="who has left is forgotten")


async def test_who_stays_is_named_although_each_hold_is_short(
    gpu_manager: GpuLockManager, sim: Simulation, stranger: int, caplog: pytest.LogCaptureFixture
) -> None:
    lock = gpu_manager.lock(0, gpu_memory=asked(0.5))
    begun = time.monotonic()
    while time.monotonic() - begun < 1.5 or (OTHERS_USE_IT not in caplog.text and time.monotonic() - begun < 30):
        async with lock:
            await asyncio.sleep(0.05)
    assert caplog.text.count(OTHERS_USE_IT) == 1


async def test_a_holder_before_who_is_still_giving_memory_back_is_not_named(
    gpu_manager: GpuLockManager, sim: Simulation, stranger: int, caplog: pytest.LogCaptureFixture
) -> None:
    others = gpu_manager.caretaker._others
    for bytes_of_it in (9 * GiB, 0, 9 * GiB):
        sim.use(0, bytes_of_it, pid=stranger)
        async with gpu_manager.lock(0, gpu_memory=asked(0.3)):
            await asyncio.sleep(0.05)
            await eventually(lambda: not others._looks, description="it has looked")
        await asyncio.sleep(0.35)
    assert list(others._seen) == [uuid(0)]
    assert OTHERS_USE_IT not in caplog.text


async def test_a_process_whose_memory_the_driver_does_not_tell_is_foreign_all_the_same(
    gpu_manager: GpuLockManager, sim: Simulation, stranger: int
) -> None:
    sim.list_processes(0, "no_bytes")
    with pytest.raises(DeviceBusyError, match="memory not told"):
        await gpu_manager.lock(0, gpu_memory=asked(on_busy="raise")).acquire()


@pytest.mark.parametrize("listing", ["nothing", "zero_bytes", "a container's"])
async def test_where_others_cannot_be_told_nobody_counts_as_foreign_and_the_log_says_so_once(
    gpu_manager: GpuLockManager,
    sim: Simulation,
    stranger: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    listing: Any,
) -> None:
    if listing == "a container's":
        monkeypatch.setattr("aiogpulock.gpu.verify._in_the_initial_namespace", lambda *_: False)
        monkeypatch.delenv("AIOGPULOCK_NVML_PIDS")
    else:
        sim.list_processes(0, listing)
    said = "(not checked: on_busy): NVML does not tell here whose the 9.0 GiB in use are"
    for on_busy, count in (("warn", 0), ("raise", 1), ("wait", 1)):
        async with gpu_manager.lock(0, gpu_memory=asked(on_busy=on_busy)):
            assert caplog.text.count(said) == count


async def test_a_context_of_that_size_does_not_use_the_gpu(
    gpu_manager: GpuLockManager, sim: Simulation, stranger: int
) -> None:
    sim.use(0, 800 * MiB, pid=stranger)
    with pytest.raises(DeviceBusyError):
        await gpu_manager.lock(0, gpu_memory=asked(on_busy="raise")).acquire()
    async with gpu_manager.lock(0, gpu_memory=asked(on_busy="raise", context="1GiB")):
        pass


@pytest.mark.parametrize("code", [9, 3, 6])
async def test_where_nobody_can_ever_look_a_gpu_is_held_with_one_warning_or_refused_where_nvml_is_required(
    gpu_manager: GpuLockManager, sim: Simulation, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    async with gpu_manager.lock(0):
        pass
    sim.call("by_uuid").error = code
    for _ in range(2):
        async with gpu_manager.lock(0, gpu_memory=asked(60, require_free="1GiB")):
            assert caplog.text.count("is held without a look at the GPU (not checked: require_free): NVML") == 1
    with pytest.raises(NvmlError):
        await gpu_manager.lock(0, gpu_memory=asked(require_free="1GiB", nvml="required")).acquire()
    assert (await snapshot(gpu_manager)).value is None


@pytest.mark.parametrize(
    ("code", "demand"),
    [
        (4, {"on_busy": "wait"}),
        (10, {"require_free": "1GiB"}),
        (15, {"on_busy": "raise"}),
        (16, {"on_busy": "wait"}),
        (999, {"on_busy": "wait", "require_free": "1GiB"}),
    ],
)
async def test_a_driver_that_does_not_answer_lets_nobody_in_who_asks_for_something(
    gpu_manager: GpuLockManager, sim: Simulation, code: int, demand: dict[str, str]
) -> None:
    async with gpu_manager.lock(0):
        pass
    sim.call("by_uuid").error = code
    with pytest.raises(DeviceBusyError, match=rf"handed on: .* its memory cannot be read: NVML .*code {code}"):
        await gpu_manager.lock(0, max_wait_time=1, gpu_memory=asked(**demand)).acquire()
    with pytest.raises(NvmlError):
        await gpu_manager.lock(0, max_wait_time=1, gpu_memory=asked(**demand, nvml="required")).acquire()
    assert (await snapshot(gpu_manager)).value is None


async def test_one_failed_answer_is_asked_again(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    async with gpu_manager.lock(0):
        pass
    sim.use(0, 70 * GiB, pid=STRANGER)
    calls = sim.call("by_uuid")
    calls.error, before = 10, calls.count
    waiting = asyncio.create_task(gpu_manager.lock(0, gpu_memory=asked(on_busy="wait")).acquire())
    await eventually(lambda: calls.count >= before + 2, description="it has asked in vain")
    calls.error = 0
    await eventually(lambda: calls.count >= before + 5, description="it has looked")
    assert not waiting.done()
    sim.use(0, 0, pid=STRANGER)
    await (await waiting).release()


async def test_a_strict_policy_that_asks_for_nothing_waits_for_no_sick_driver(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    async with gpu_manager.lock(0):
        pass
    sim.call("by_uuid").error = 999
    begun = time.monotonic()
    async with gpu_manager.lock(0, gpu_memory=asked(60, policy="hold")):
        assert time.monotonic() - begun < 30
        sim.call("by_uuid").error = 0  # or the release would ask it for a minute


# after a crash


@pytest.mark.integration
@pytest.mark.parametrize("policy", ["off", "report"])
def test_after_a_crash_the_next_holder_waits_for_the_memory_of_the_dead(
    start_holder: Callable[..., Told], sim: Simulation, policy: str
) -> None:
    """Under every policy: the dead cannot verify."""
    holder, other = start_holder(policy=policy), start_holder(policy=policy)
    sim.reap(after_ms=300)
    holder.do("acquire")
    holder.do("use", size=9 * GiB)
    other.begin_to("acquire")
    time.sleep(0.1)
    killed = time.clock_gettime(time.CLOCK_BOOTTIME)
    holder.kill()
    assert other.answer()["at"] - killed >= 0.28
    assert sim.device(0).unattributed == 0


async def test_the_memory_of_the_dead_is_waited_for_also_by_who_would_not_wait_for_the_lock(
    gpu_manager: GpuLockManager, sim: Simulation, redis_cleanup: redis.Redis
) -> None:
    async with gpu_manager.lock(0):
        pass
    redis_cleanup.hset(f"{{gpu_lock:{uuid(0)}}}:fence", "dirty", "1")
    sim.device(0).unattributed = 20 * GiB
    asyncio.get_running_loop().call_later(0.3, setattr, sim.device(0), "unattributed", 0)
    async with gpu_manager.lock(0, max_wait_time=0, gpu_memory=asked(30)):
        assert sim.device(0).unattributed == 0


async def test_what_a_crash_left_for_good_is_warned_of_and_not_waited_for_for_ever(
    gpu_manager: GpuLockManager, sim: Simulation, redis_cleanup: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with gpu_manager.lock(0):
        pass
    redis_cleanup.hset(f"{{gpu_lock:{uuid(0)}}}:fence", "dirty", "1")  # as the reaper of a dead holder leaves it
    sim.device(0).unattributed = 9 * GiB
    async with gpu_manager.lock(0, gpu_memory=asked(0.2)):
        assert "9.0 GiB are in use by no process that NVML lists" in caplog.text


@pytest.mark.parametrize("listing", ["no_bytes", "zero_bytes", "hidden"])
async def test_after_a_crash_memory_that_the_driver_tells_of_nobody_is_not_taken_for_nothing(
    gpu_manager: GpuLockManager,
    sim: Simulation,
    stranger: int,
    redis_cleanup: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    listing: Any,
) -> None:
    async with gpu_manager.lock(0):
        pass
    redis_cleanup.hset(f"{{gpu_lock:{uuid(0)}}}:fence", "dirty", "1")
    if listing == "hidden":
        sim.call("compute").error = 4
    else:
        sim.list_processes(0, listing)
    begun = time.monotonic()
    async with gpu_manager.lock(0, gpu_memory=asked(0.3, on_busy="ignore")):
        assert time.monotonic() - begun >= 0.3
        assert "9.0 GiB are in use, and NVML does not tell how much of it is of living processes" in caplog.text
    sim.use(0, 0, pid=stranger)
    redis_cleanup.hset(f"{{gpu_lock:{uuid(0)}}}:fence", "dirty", "1")
    async with gpu_manager.lock(0, gpu_memory=asked(60, on_busy="ignore")):
        assert time.monotonic() - begun < 30, "nothing is in use, so nobody left anything"


@pytest.mark.parametrize("code", [9, 15])
async def test_a_dirty_grant_that_nobody_can_look_at_is_warned_of_once_and_stays_dirty(
    gpu_manager: GpuLockManager,
    sim: Simulation,
    redis_cleanup: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    async with gpu_manager.lock(0):
        pass
    fence = f"{{gpu_lock:{uuid(0)}}}:fence"
    redis_cleanup.hset(fence, "dirty", "1")
    sim.call("by_uuid").error = code
    for _ in range(2):
        async with gpu_manager.lock(0, gpu_memory=asked(0.05)):
            pass
        assert redis_cleanup.hget(fence, "dirty") == "1"
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    blind = "held without a look at the GPU (not checked: what a holder that died may have left, on_busy)"
    assert [blind in text for text in warnings] == ([True] if code == 9 else [False, False])
    assert all("cannot be read" in text for text in warnings if code == 15)


async def test_whoever_says_that_nobody_looks_is_not_warned_that_nobody_did(
    gpu_manager: GpuLockManager, redis_cleanup: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with gpu_manager.lock(0, gpu_memory={"nvml": "off"}) as lease:
            fence = f"{{{lease.key}}}:fence"
        redis_cleanup.hset(fence, "dirty", "1")  # as after a crash
    said = [record for record in caplog.records if "without a look" in record.message]
    assert all(record.levelno < logging.WARNING for record in said)


async def test_a_free_name_means_no_gpu_and_nobody_is_warned(
    gpu_manager: GpuLockManager, redis_cleanup: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with gpu_manager.lock("my-box"):
        pass
    redis_cleanup.hset("{gpu_lock:my-box}:fence", "dirty", "1")
    async with gpu_manager.lock("my-box"):
        assert "without a look" not in caplog.text


async def test_after_a_crash_children_of_the_dead_that_still_compute_are_waited_for_and_then_named(
    gpu_manager: GpuLockManager,
    sim: Simulation,
    redis_cleanup: redis.Redis,
    stranger: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with gpu_manager.lock(0):
        pass
    fence = f"{{gpu_lock:{uuid(0)}}}:fence"
    redis_cleanup.hset(fence, "dirty", "1")
    async with gpu_manager.lock(0, gpu_memory=asked(0.2)):
        assert f"processes use it that do not hold its lock: pid {stranger} (sleep)" in caplog.text
    redis_cleanup.hset(fence, "dirty", "1")
    caplog.clear()
    waiting, looks = asyncio.create_task(gpu_manager.lock(0, gpu_memory=asked(60)).acquire()), sim.call("compute").count
    await eventually(lambda: sim.call("compute").count > looks + 1, description="it has looked")
    assert not waiting.done()
    sim.use(0, 0, pid=stranger)
    await (await waiting).release()
    assert "processes use it" not in caplog.text


# quarantine


async def quarantine(manager: GpuLockManager, sim: Simulation) -> None:
    """A holder leaves 1 GiB."""
    async with manager.lock(0, task_name="leaky", gpu_memory=asked(policy="quarantine")) as lease:
        sim.use(0, GiB)
    assert lease.memory_report is not None
    assert lease.memory_report.status == "not_freed"


async def test_a_leak_quarantines_the_gpu_until_a_holder_finds_it_free(
    gpu_manager: GpuLockManager, sim: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    await quarantine(gpu_manager, sim)
    assert caplog.records[-1].levelno >= logging.WARNING
    report = await gpu_manager.health_check()
    assert (report.quarantined_gpus, report.status) == ((uuid(0),), "warning")
    reason = (await snapshot(gpu_manager)).quarantine
    assert reason == f"'leaky' (pid {os.getpid()}) left 1024 MiB: the process keeps 1024 MiB more than before"
    with pytest.raises(DeviceQuarantinedError) as caught:
        await gpu_manager.lock(0, gpu_memory=asked()).acquire()
    assert caught.value.reason == reason
    assert (await snapshot(gpu_manager)).value is None
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.reason) == (str(caught.value), reason)
    sim.use(0, 0)
    async with gpu_manager.lock(0, gpu_memory=asked()):
        pass
    assert (await snapshot(gpu_manager)).quarantine is None
    assert "lifted" in [event.event for event in await gpu_manager.history(0)]
    async with gpu_manager.lock(0, gpu_memory=asked()):
        pass


async def test_what_crept_up_is_quarantined_until_all_of_it_is_back(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    sim.use(0, 2 * GiB)  # a warm model
    lock = gpu_manager.lock(0, gpu_memory=asked(policy="quarantine"))
    for number in range(1, 5):
        async with lock as lease:
            sim.use(0, 2 * GiB + number * 250 * MiB)
    assert lease.memory_report is not None
    assert lease.memory_report.status == "not_freed"
    for left in (1000, 780):
        sim.use(0, 2 * GiB + left * MiB)
        with pytest.raises(DeviceQuarantinedError, match="a little was left by each"):
            await lock.acquire()
    sim.use(0, 2 * GiB + 750 * MiB)  # less than the verdict would be given for
    async with lock:
        assert (await snapshot(gpu_manager)).quarantine is None


async def test_a_clean_hold_quarantines_nothing(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    async with gpu_manager.lock(0, gpu_memory=asked(policy="quarantine")):
        sim.use(0, GiB)
        sim.use(0, 0)
    assert (await snapshot(gpu_manager)).quarantine is None


async def test_wait_waits_for_the_memory_and_raise_does_not_even_look(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    await quarantine(gpu_manager, sim)
    with pytest.raises(DeviceQuarantinedError):
        await gpu_manager.lock(0, max_wait_time=0.3, gpu_memory=asked(on_quarantine="wait")).acquire()
    waiting = asyncio.create_task(gpu_manager.lock(0, gpu_memory=asked(0, on_quarantine="wait")).acquire())
    await eventually(lambda: held(gpu_manager), description="the lock is held")
    await asyncio.sleep(0.2)
    assert not waiting.done()
    sim.use(0, 0)
    with pytest.raises(LockTimeoutError):
        await gpu_manager.lock(0, max_wait_time=0, gpu_memory=asked(on_quarantine="raise")).acquire_for("another")
    await (await waiting).release()


async def test_raise_refuses_at_once(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    await quarantine(gpu_manager, sim)
    sim.use(0, 0)
    with pytest.raises(DeviceQuarantinedError):
        await gpu_manager.lock(0, gpu_memory=asked(on_quarantine="raise")).acquire()


async def test_an_operator_lifts_a_quarantine(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    assert not await gpu_manager.lift_quarantine(0)
    await quarantine(gpu_manager, sim)
    assert await gpu_manager.lift_quarantine(0, reason="rebooted the card", actor="ann")
    async with gpu_manager.lock(0):
        pass
    events = {event.event: event for event in await gpu_manager.history(0)}
    assert (events["lifted"].reason, events["lifted"].actor) == ("rebooted the card", "ann")


async def test_who_cannot_look_is_refused(gpu_manager: GpuLockManager, sim: Simulation, redis_url: str) -> None:
    await quarantine(gpu_manager, sim)
    async with GpuLockManager(redis_url, gpu_memory={"nvml": "off"}, restart_grace=0) as blind:
        with pytest.raises(DeviceQuarantinedError, match="nobody can look whether that has changed"):
            await blind.lock(0).acquire()


async def test_a_process_that_has_the_leakers_pid_now_does_not_keep_the_gpu_in_quarantine(
    gpu_manager: GpuLockManager, sim: Simulation, redis_cleanup: redis.Redis
) -> None:
    await quarantine(gpu_manager, sim)
    fence = f"{{gpu_lock:{uuid(0)}}}:fence"
    told = quarantine_of(redis_cleanup.hget(fence, "quarantine"))
    assert told is not None
    ((pid, started),) = told.processes
    earlier = msgspec.structs.replace(told, processes=((pid, started - 1),))
    redis_cleanup.hset(fence, "quarantine", msgspec.json.encode(earlier))
    async with gpu_manager.lock(0, gpu_memory=asked(30)):
        assert not redis_cleanup.hexists(fence, "quarantine")


async def test_hosts_that_share_a_lock_by_its_index_keep_a_quarantine_for_each_device(
    gpu_manager: GpuLockManager, sim: Simulation, redis_url: str, redis_cleanup: redis.Redis
) -> None:
    memory = asked(policy="quarantine")
    async with gpu_manager.lock(0, identity="logical", gpu_memory=memory):
        sim.use(0, GiB)
    fence = "{gpu_lock:0}:fence"
    ours = redis_cleanup.hget(fence, "quarantine")
    theirs = ours.replace(uuid(0), uuid(77)).replace("1024 MiB", "77 MiB")
    redis_cleanup.hset(fence, "quarantine", f"{theirs}\n{ours}")
    lock = gpu_manager.lock(0, identity="logical", gpu_memory=asked())
    with pytest.raises(DeviceQuarantinedError, match="left 1024 MiB"):
        await lock.acquire()
    assert [text in str((await snapshot(gpu_manager)).quarantine) for text in ("1024 MiB", "77 MiB")] == [True, True]
    sim.use(0, 0)
    async with lock:
        assert redis_cleanup.hget(fence, "quarantine") == theirs, "it is not ours to lift"
    assert not await gpu_manager.lift_quarantine(0), "nor an operator's of this host"
    async with GpuLockManager(redis_url, gpu_memory={"nvml": "off"}, restart_grace=0) as anybody:
        assert await anybody.lift_quarantine("0")
    assert not redis_cleanup.hexists(fence, "quarantine")


async def test_the_alert_comes_after_the_release_that_tells_of_the_quarantine(
    redis_url: str, sim: Simulation, redis_cleanup: redis.Redis
) -> None:
    fence, seen = f"{{gpu_lock:{uuid(0)}}}:fence", list[tuple[str, bool]]()

    def hook(alert: Alert) -> None:
        seen.append((alert.type, bool(redis_cleanup.hexists(fence, "quarantine"))))

    async with GpuLockManager(redis_url, gpu_memory={"nvml": "auto"}, restart_grace=0, alert_hook=hook) as manager:
        await quarantine(manager, sim)
    assert seen == [("gpu_quarantined", True)]
