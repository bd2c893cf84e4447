"""An id is locked as the device that it means: by its UUID where NVML is there, and by one key on the whole host."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest
import redis

from aiogpulock import GpuLockManager, InvalidGpuError, LockTimeoutError, NestedLockError, clock
from aiogpulock.gpu import finder, numbering
from aiogpulock.gpu.aliases import ONE_NAME, alias_key
from aiogpulock.gpu.nvml import shared
from aiogpulock.gpu.records import Gpu, NvmlError
from aiogpulock.liveness import boot_id
from tests.gpu.looks import wait_for_looks
from tests.gpu.processes import Told
from tests.nvml_sim import GiB, Simulation, uuid
from tests.servers import RealServer
from tests.unit.support import eventually

ALIASES = alias_key("gpu_lock", boot_id())


async def test_a_lease_names_its_device(gpu_manager: GpuLockManager) -> None:
    async with gpu_manager.lock(0) as lease:
        assert lease.gpu == Gpu(uuid(0), uuid(0), 0, "Simulated GPU")
        assert (str(lease.gpu), lease.key) == (uuid(0), f"gpu_lock:{uuid(0)}")
        assert lease.env() == {
            "AIOGPULOCK_GPU": uuid(0),
            "AIOGPULOCK_TOKEN": str(lease.fencing_token),
            "AIOGPULOCK_WITHIN": lease.holder_id,
            "CUDA_VISIBLE_DEVICES": uuid(0),
            "NVIDIA_VISIBLE_DEVICES": uuid(0),
        }


@pytest.mark.parametrize("gpu_id", ["cuda:0", uuid(0), uuid(0).lower(), "GPU-a0000000"])
async def test_all_names_of_a_device_are_one_lock(gpu_manager: GpuLockManager, gpu_id: str) -> None:
    async with gpu_manager.lock(0):
        with pytest.raises(NestedLockError):
            await gpu_manager.lock(gpu_id).acquire()


async def test_cuda_names_count_what_the_program_sees(
    gpu_manager: GpuLockManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    async with gpu_manager.lock("cuda:0") as lease, gpu_manager.lock(0) as other:
        assert (lease.gpu.index, other.gpu.index) == (1, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    async with gpu_manager.lock("cuda:0") as lease:
        assert lease.gpu.index == 0


async def test_a_known_device_costs_no_call_and_no_command(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    async with gpu_manager.lock(0):
        pass
    asked, redis_client = sim.call("count").count, gpu_manager.parts.client
    seen: list[Any] = []
    exchange = redis_client._exchange

    async def counted(commands: Any) -> Any:
        seen.extend(commands)
        return await exchange(commands)

    redis_client._exchange = counted  # type: ignore[method-assign]
    async with gpu_manager.lock(0):
        pass
    assert sim.call("count").count == asked
    assert [command[0] for command in seen] == ["EVALSHA"]


async def test_many_first_acquisitions_list_the_devices_once(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    async def one() -> None:
        async with gpu_manager.lock(0):
            pass

    await asyncio.gather(*(one() for _ in range(50)))
    assert sim.call("count").count == 1


@pytest.mark.parametrize(
    ("gpu_id", "message"),
    [
        (7, "there is no GPU 7 on this host: NVML has 0 and 1"),
        ("GPU-a000", f"fits {uuid(0)} and {uuid(1)}: write more of the UUID"),
        ("GPU-b000", "is the beginning of no known UUID"),
        ("cuda:2", "there is no GPU 2"),
    ],
)
async def test_an_id_that_means_no_device_is_refused_and_the_others_are_named(
    gpu_manager: GpuLockManager, gpu_id: int | str, message: str
) -> None:
    with pytest.raises(InvalidGpuError) as caught:
        await gpu_manager.lock(gpu_id).acquire()
    assert message in str(caught.value)


async def test_a_gpu_in_mig_mode_is_refused_and_its_mig_devices_are_not(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    mig = sim.add_mig(0, 1)
    with pytest.raises(InvalidGpuError, match="is in MIG mode"):
        await gpu_manager.lock(0).acquire()
    async with gpu_manager.lock(mig) as lease:
        assert lease.gpu == Gpu(mig, mig, None, "Simulated GPU MIG 1g.10gb")
        assert lease.env()["CUDA_VISIBLE_DEVICES"] == mig


async def test_a_gpu_whose_mig_mode_cannot_be_read_is_refused_beside_its_mig_devices(
    gpu_manager: GpuLockManager, sim: Simulation
) -> None:
    mig = sim.add_mig(0, 1)
    sim.call("mig_mode").error = 999
    async with gpu_manager.lock(mig) as lease:
        assert lease.gpu == Gpu(mig, mig, None, "Simulated GPU MIG 1g.10gb")
        for gpu_id in (0, uuid(0)):
            with pytest.raises(InvalidGpuError, match="GPU 0 cannot be locked while its MIG mode cannot be read"):
                await gpu_manager.lock(gpu_id, max_wait_time=0).acquire()


@pytest.mark.parametrize("use", ["auto", "required"])
async def test_a_gpu_whose_uuid_cannot_be_read_is_locked_by_no_name_until_it_can(
    gpu_manager: GpuLockManager,
    sim: Simulation,
    redis_cleanup: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    use: Literal["auto", "required"],
) -> None:
    finder._noticed.clear()
    sim.device(0).error = 999
    for gpu_id in (0, "cuda:0", uuid(0), uuid(0)[:12], uuid(16, "MIG"), 0):
        with pytest.raises(InvalidGpuError, match=r"UUID cannot be read.*code 999.*NVML is asked again") as caught:
            await gpu_manager.lock(gpu_id, gpu_memory={"nvml": use}).acquire()
        assert "nvidia-smi" in str(caught.value)
        gpu_manager.parts.finder._listed = finder.Listed(0.0, None)  # the minute is over
    assert not redis_cleanup.keys("*gpu_lock:*")
    async with gpu_manager.lock(1, gpu_memory={"nvml": use}) as lease:
        assert lease.gpu.uuid == uuid(1)
    assert ["cannot be read" in line.message for line in caplog.records if line.levelno >= logging.WARNING] == [True]
    known = gpu_manager.parts.finder
    assert 0 < known._listed.until - clock.now() <= 60
    assert all(until - clock.now() <= 60 for until, _ in known._found.values())
    sim.device(0).error = 0
    known._listed = finder.Listed(0.0, None)
    for gpu_id in (0, uuid(0)):
        async with gpu_manager.lock(gpu_id) as lease:
            assert lease.gpu == Gpu(uuid(0), uuid(0), 0, "Simulated GPU")


async def test_the_gpu_of_another_host_may_be_locked(gpu_manager: GpuLockManager) -> None:
    async with gpu_manager.lock(uuid(77)) as lease:
        assert lease.gpu == Gpu(uuid(77), uuid(77), remote=True)


async def test_without_nvml_the_index_is_the_name_and_one_notice_says_so(
    gpu_manager: GpuLockManager, sim: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    finder._noticed.clear()
    sim.call("init").error = 9
    async with gpu_manager.lock(0) as lease, gpu_manager.lock(1):
        assert lease.gpu == Gpu("0", index=0)
        assert lease.env()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert lease.env()["CUDA_VISIBLE_DEVICES"] == "0"
    notices = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(notices) == 1
    assert "the NVIDIA driver is not loaded" in notices[0]


async def test_in_a_container_that_sees_some_gpus_a_number_is_its_own(
    gpu_manager: GpuLockManager, redis_cleanup: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        (tmp_path / f"0000:{number}7:00.0").mkdir()
    monkeypatch.setattr(numbering, "BOUND", tmp_path)
    async with gpu_manager.lock(0) as lease:
        assert lease.gpu == Gpu(uuid(0), uuid(0), 0, "Simulated GPU")
    assert redis_cleanup.hgetall(ALIASES) == {uuid(0): uuid(0), ONE_NAME: "UUID"}


async def test_a_container_with_one_mig_device_locks_it_beside_programs_that_know_numbers_alone(
    gpu_manager: GpuLockManager, sim: Simulation, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a container runtime shows it: the GPU, in MIG mode; of its MIG devices the one; no other GPU of the host."""
    for number in range(2):
        (tmp_path / f"0000:{number}7:00.0").mkdir()
    monkeypatch.setattr(numbering, "BOUND", tmp_path)
    sim.add_mig(0, 0)
    sim.device(0, 0).error = 4
    mig = sim.add_mig(0, 1)
    sim._state.gpus = 1
    async with (
        GpuLockManager(redis_url, gpu_memory={"nvml": "off"}, restart_grace=0) as without_nvml,
        without_nvml.lock(1),
        gpu_manager.lock(mig) as lease,
    ):
        wait_for_looks()
        sim.device(0, 1).unattributed = 2 * GiB
    assert lease.gpu == Gpu(mig, mig, None, "Simulated GPU MIG 1g.10gb")
    report = await eventually(lambda: lease.memory_report, description="the verdict")
    assert report.status == "not_freed"


async def test_a_free_name_asks_no_driver(gpu_manager: GpuLockManager, sim: Simulation) -> None:
    async with gpu_manager.lock("my-box") as lease:
        assert (lease.gpu, lease.key) == (Gpu("my-box"), "gpu_lock:my-box")
        assert "CUDA_VISIBLE_DEVICES" not in lease.env()
    assert sim.call("init").count == 0


async def test_a_driver_that_starts_slowly_takes_no_more_than_the_wait_and_serves_the_next_one(
    gpu_manager: GpuLockManager, sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "DRIVER_STARTS", 0.1)
    lock = gpu_manager.lock(0, max_wait_time=0.3)
    begun = time.monotonic()
    with sim.hung("init"):
        with pytest.raises(
            LockTimeoutError, match=r"the NVIDIA driver has not told within 0\.1 s which GPUs there are"
        ):
            await lock.acquire()
        assert time.monotonic() - begun < 1.5
    async with gpu_manager.lock(0) as lease:
        assert lease.gpu.uuid == uuid(0)
    assert sim.call("count").count == 1


async def test_a_driver_that_hangs_is_given_up_by_all_who_wait_for_a_short_time_together(
    gpu_manager: GpuLockManager, sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "DRIVER_STARTS", 0.1)
    monkeypatch.setattr(shared(), "_init_deadline", 3.0)
    with sim.hung("init"):
        for _ in range(3):
            with pytest.raises(LockTimeoutError):
                await gpu_manager.lock(0, max_wait_time=0).acquire()
        await asyncio.sleep(3.0)
        async with gpu_manager.lock(0, max_wait_time=0) as lease:
            assert (lease.gpu.id, lease.gpu.uuid) == ("0", None)


@pytest.mark.parametrize("code", [999, 9, 12])
async def test_a_driver_that_did_not_answer_is_asked_again_after_a_minute_and_meanwhile_nobody_waits_for_it(
    gpu_manager: GpuLockManager, sim: Simulation, code: int
) -> None:
    """Nor is one that was not there: a driver may be loaded, or its container made ready, later than a service."""
    sim.call("count").error = code
    for _ in range(3):
        async with gpu_manager.lock(0) as lease:
            assert lease.gpu.uuid is None
    assert sim.call("count").count == 1
    sim.call("count").error = 0
    listed = gpu_manager.parts.finder._listed
    assert 0 < listed.until - clock.now() <= 60
    gpu_manager.parts.finder._listed = finder.Listed(0.0, None)  # the minute is over
    gpu_manager.parts.finder.forget()
    async with gpu_manager.lock(0) as lease:
        assert lease.gpu == Gpu("0", uuid(0), 0, "Simulated GPU"), "by the first word, and with its device again"


@pytest.mark.parametrize("code", [9, 12, 15, 18, 3, 10, 999])
async def test_where_nvml_is_required_a_lock_without_it_is_refused_before_it_queues(
    gpu_manager: GpuLockManager, sim: Simulation, redis_cleanup: redis.Redis, code: int
) -> None:
    sim.call("count").error = code
    with pytest.raises(NvmlError, match="nvml is 'required'") as caught:
        await gpu_manager.lock(0, gpu_memory={"nvml": "required"}).acquire()
    assert caught.value.code == code
    assert not redis_cleanup.keys("*gpu_lock:*")
    sim.call("count").error = 0
    async with gpu_manager.lock(0, gpu_memory={"nvml": "required"}) as lease:
        assert lease.gpu.uuid == uuid(0)


async def test_identity_logical_locks_the_index_and_uuid_refuses_to_disagree(gpu_manager: GpuLockManager) -> None:
    async with gpu_manager.lock(0, identity="logical") as lease:
        assert lease.gpu == Gpu("0", uuid(0), 0, "Simulated GPU")
    with pytest.raises(InvalidGpuError, match="disagrees with identity 'uuid'"):
        await gpu_manager.lock(0, identity="uuid").acquire()
    async with gpu_manager.lock(0) as lease:
        assert lease.gpu.id == "0", "auto follows the first word"


# operators


async def test_an_operator_may_name_the_device_as_the_programs_do(
    gpu_manager: GpuLockManager, redis_url: str, redis_cleanup: redis.Redis
) -> None:
    lease = await gpu_manager.lock(0).acquire()
    async with GpuLockManager(redis_url, gpu_memory={"nvml": "off"}) as without_driver:
        assert await without_driver.force_release(0)
    await eventually(lease.lost.is_set, description="the holder is told")
    assert [event.event for event in await gpu_manager.history("cuda:0")] == ["forced"]


async def test_who_only_looks_says_no_first_word(
    gpu_manager: GpuLockManager, redis_url: str, redis_cleanup: redis.Redis
) -> None:
    async with GpuLockManager(redis_url, gpu_memory={"nvml": "off"}) as without_driver:
        assert not await without_driver.force_release(0)
        assert not await without_driver.history(7)
    assert not redis_cleanup.exists(ALIASES)
    async with gpu_manager.lock(0) as lease:
        assert lease.gpu.id == uuid(0)


async def test_an_operator_reaches_the_lock_of_a_name_that_means_no_device_now(
    gpu_manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "an older program", px=60_000)
    assert await gpu_manager.force_release(7)


# a restart of Redis


async def test_after_a_loss_of_data_the_aliases_are_said_again(own_server: RealServer, sim: Simulation) -> None:
    manager = GpuLockManager(own_server.url, gpu_memory={"nvml": "auto"}, restart_grace=1)
    async with manager, manager.lock(0) as lease:
        own_server.kill()
        own_server.start()
        both = {"0": uuid(0), uuid(0): uuid(0)}
        with own_server.client() as client:
            await eventually(lambda: client.hgetall(ALIASES) == both, description="the aliases are back")
        lease.check()


async def test_after_a_flush_everybody_soon_follows_the_first_word_again(
    gpu_manager: GpuLockManager, redis_url: str, redis_cleanup: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """No connection drops: the aliases are said again by those who use them."""
    async with gpu_manager.lock(0) as lease:
        assert lease.gpu.id == uuid(0)
    redis_cleanup.flushall()
    without_driver = GpuLockManager(redis_url, gpu_memory={"nvml": "off"}, restart_grace=0)
    async with without_driver, without_driver.lock(0) as lease:
        assert lease.gpu.id == "0"
    gpu_manager.parts.finder.SAY_AGAIN = 0.05  # type: ignore[misc]

    async def agreed() -> bool:
        async with gpu_manager.lock(0) as lease:
            return lease.gpu == Gpu("0", uuid(0), 0, "Simulated GPU")

    await eventually(agreed, description="one key again")
    assert "0 is locked as logical" in caplog.text


async def test_after_a_restart_a_newcomer_leaves_the_first_word_to_those_who_lost_theirs(
    own_server: RealServer, redis_url: str
) -> None:
    """Without this a program without NVML could lock the index while a holder of the UUID is about to come back."""
    own_server.kill()
    own_server.start()
    async with GpuLockManager(own_server.url, restart_grace=3) as newcomer:
        with pytest.raises(LockTimeoutError, match="Redis has just restarted"):
            await newcomer.lock(0, max_wait_time=0).acquire()
        with own_server.client() as client:
            waits = asyncio.create_task(newcomer.lock(0).acquire())
            await asyncio.sleep(0.5)
            assert not client.exists(ALIASES)
            client.hset(ALIASES, "0", uuid(0))  # somebody comes back
        lease = await waits
        assert lease.gpu == Gpu(uuid(0), uuid(0), 0)
        await lease.release()


# two processes of one host, one of them without NVML


@pytest.fixture
def both(driver_folder: Path, sim: Simulation, server: RealServer) -> Iterator[tuple[Told, Told]]:
    """A process with NVML, and one without it."""
    driver = {"LD_LIBRARY_PATH": str(driver_folder), "NVML_SIM_STATE": str(sim.path)}
    with ExitStack() as stack:
        yield (
            stack.enter_context(Told("rounds", server.url, **driver)),
            stack.enter_context(Told("rounds", server.url, LD_LIBRARY_PATH="")),
        )


@pytest.mark.integration
def test_with_and_without_nvml_never_both_hold_gpu_0_in_500_rounds(
    both: tuple[Told, Told], record_property: Callable[[str, object], None]
) -> None:
    """On a new host each time: either of the two processes first by some ms, or both at once."""
    keys, orders = Counter[str](), Counter[str]()
    for number in range(500):
        for late, process in enumerate(both if number % 2 else reversed(both)):
            time.sleep(0.001 * late * (number % 4))
            process.begin(f"host{number}")
        seeing, blind = (process.answer() for process in both)
        first, second = sorted((seeing, blind), key=lambda answer: answer["from"])
        assert first["key"] == second["key"], number
        assert first["to"] <= second["from"], number
        keys["index" if first["key"] == "gpu_lock:0" else "UUID"] += 1
        apart = seeing["asked"] - blind["asked"]
        orders["together" if abs(apart) < 0.0005 else "with NVML first" if apart < 0 else "without NVML first"] += 1
    record_property("locked by", dict(keys))
    record_property("asked", dict(orders))
    print(dict(keys), dict(orders))
    assert min(keys["index"], keys["UUID"]) >= 50, "each was first at times"
    assert all(orders[order] >= 20 for order in ("together", "with NVML first", "without NVML first")), orders
