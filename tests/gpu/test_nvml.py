"""NVML off the event loop: readings, deadlines, and every error of the driver."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiogpulock.episode import _episodes, episode_on, known_episode
from aiogpulock.gpu.nvml import Nvml, shared
from aiogpulock.gpu.records import MemoryReading, NvmlError, ProcessMemory
from tests.gpu.conftest import no_new_threads
from tests.helpers import wait_until
from tests.nvml_sim import GiB, MiB, Simulation, uuid


@pytest.fixture
def nvml(sim: Simulation) -> Iterator[Nvml]:
    nvml = Nvml(deadline=0.2, init_deadline=0.5)
    yield nvml
    sim.close()
    nvml.close()
    wait_until(lambda: nvml._thread is None, description="the thread ends")


async def refused(nvml: Nvml) -> NvmlError:
    with pytest.raises(NvmlError) as caught:
        await nvml.read(uuid(0))
    return caught.value


async def test_a_reading_has_memory_and_processes(sim: Simulation, nvml: Nvml) -> None:
    sim.use(0, 3 * GiB, pid=4242)
    reading = await nvml.read(uuid(0))
    assert (reading.used, reading.total, reading.version) == (3 * GiB, 80 * GiB, 2)
    assert reading.processes == (ProcessMemory(4242, 3 * GiB),)
    assert (await nvml.read(uuid(0), processes=False)).processes is None


async def test_every_gpu_is_listed_with_its_mig_devices_after_it(sim: Simulation, nvml: Nvml) -> None:
    mig = sim.add_mig(0, 2)
    devices = await nvml.devices()
    assert [(d.uuid, d.index, d.mig_enabled, d.parent) for d in devices] == [
        (uuid(0), 0, True, None),
        (mig, None, False, uuid(0)),
        (uuid(1), 1, False, None),
    ]


@pytest.mark.parametrize(("code", "fault"), [(4, None), (15, "fallen off the bus")])
async def test_a_mig_device_that_cannot_be_read_does_not_hide_the_others(
    sim: Simulation, nvml: Nvml, code: int, fault: str | None
) -> None:
    """A container that was given one of them may not look at the rest."""
    sim.add_mig(0, 1)
    mig = sim.add_mig(0, 2)
    sim.device(0, 1).error = code
    devices = await nvml.devices()
    assert [d.uuid for d in devices if not d.fault] == [uuid(0), mig, uuid(1)]
    assert [fault for fault in (d.fault for d in devices) if fault] == ([] if fault is None else [devices[1].fault])
    assert fault is None or fault in devices[1].fault


async def test_mig_devices_that_cannot_be_listed_hide_no_gpu(sim: Simulation, nvml: Nvml) -> None:
    sim.add_mig(0, 1)
    sim.call("mig_max").error = 999
    first, parts, second = await nvml.devices()
    assert (first.uuid, first.mig_enabled, second.uuid) == (uuid(0), True, uuid(1))
    assert (parts.parent, parts.uuid) == (uuid(0), "")
    assert "999" in parts.fault


async def test_a_gpu_whose_mig_mode_cannot_be_read_is_listed_with_what_is_known(sim: Simulation, nvml: Nvml) -> None:
    mig = sim.add_mig(0, 1)
    sim.call("mig_mode").error = 999
    devices = await nvml.devices()
    assert [(d.uuid, d.index, d.parent) for d in devices] == [
        (uuid(0), 0, None),
        (mig, None, uuid(0)),
        (uuid(1), 1, None),
    ]
    assert ["999" in d.fault for d in devices] == [True, False, True]


async def test_one_sick_gpu_does_not_hide_the_others(sim: Simulation, nvml: Nvml) -> None:
    sim.device(0).error = 15
    sick, healthy = await nvml.devices()
    assert "fallen off the bus" in sick.fault
    assert healthy.uuid == uuid(1)


@pytest.mark.parametrize(
    ("code", "status"),
    [(12, "no_nvml"), (9, "no_nvml"), (18, "no_nvml"), (15, "gpu_lost"), (3, "not_supported"), (10, "timeout"),
     (999, "unknown"), (16, "gpu_lost"), (4, "no_permission"), (28, "not_found"), (17, "unknown")],
)  # fmt: skip
@pytest.mark.parametrize("call", ["init", "by_uuid", "memory_v1"])
async def test_every_error_code_has_its_status(sim: Simulation, nvml: Nvml, code: int, status: str, call: str) -> None:
    sim.call("memory_v2").error = 13
    sim.call(call).error = code
    error = await refused(nvml)
    assert (error.status, error.code) == (status, code)
    sim.call(call).error = 0
    assert (await nvml.read(uuid(0))).used == 512 * MiB


async def test_the_first_version_of_the_memory_call_stands_in_where_the_second_is_missing(
    sim: Simulation, nvml: Nvml
) -> None:
    sim.call("memory_v2").error = 3
    reading = await nvml.read(uuid(0))
    assert (reading.version, reading.used, reading.reserved) == (1, 512 * MiB, None)
    with pytest.raises(NvmlError, match="no such figure"):
        await nvml.read(uuid(0), version=2)


@pytest.mark.parametrize(("call", "code"), [("compute", 3), ("compute", 4), ("graphics", 4)])
async def test_a_process_list_that_the_driver_keeps_for_itself_is_none_and_not_empty(
    sim: Simulation, nvml: Nvml, call: str, code: int
) -> None:
    sim.call(call).error = code
    assert (await nvml.read(uuid(0))).processes is None


async def test_a_device_without_a_list_of_graphics_processes_has_its_other_list(sim: Simulation, nvml: Nvml) -> None:
    sim.use(0, GiB, pid=4242)
    sim.call("graphics").error = 3
    assert (await nvml.read(uuid(0))).processes == (ProcessMemory(4242, GiB),)


async def test_bytes_that_the_driver_does_not_tell_are_unknown_and_not_zero(sim: Simulation, nvml: Nvml) -> None:
    sim.use(0, GiB, pid=4242)
    assert (await nvml.read(uuid(0))).bytes_of(frozenset({4242})) == GiB
    sim.list_processes(0, "no_bytes")
    assert (await nvml.read(uuid(0))).bytes_of(frozenset({4242})) is None
    assert not (await nvml.read(uuid(0))).tells_processes


async def test_a_device_without_memory_of_its_own_is_not_supported(sim: Simulation, nvml: Nvml) -> None:
    sim.device(0).total = 0
    assert (await refused(nvml)).status == "not_supported"


async def test_a_wedged_driver_is_refused_at_once_starts_no_more_threads_and_may_come_back(
    sim: Simulation, nvml: Nvml
) -> None:
    await nvml.read(uuid(0))
    with sim.hung("memory_v2"):
        assert (await refused(nvml)).status == "wedged"
        started = time.monotonic()
        for _ in range(20):
            assert (await refused(nvml)).status == "wedged"
        assert time.monotonic() - started < 2, "they do not wait for 0.2 s each"
        assert nvml.threads_started == 1
    wait_until(lambda: not nvml.wedged, description="the driver answers again")
    assert (await nvml.read(uuid(0))).used == 0


async def test_an_error_that_comes_when_nobody_waits_any_more_is_not_complained_of(
    sim: Simulation, nvml: Nvml, caplog: pytest.LogCaptureFixture
) -> None:
    sim.call("by_uuid").error = 999
    with sim.hung("by_uuid"), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await nvml.read(uuid(0))
    await nvml.driver_version()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_process_that_can_start_no_thread_is_told_so_and_the_next_call_tries_again(
    sim: Simulation, nvml: Nvml
) -> None:
    with no_new_threads():
        error = await refused(nvml)
        assert (error.status, str(error)) == (
            "unknown",
            "NVML: no thread to ask the driver in: can't start new thread",
        )
    assert (await nvml.read(uuid(0))).used == 0
    assert nvml.threads_started == 1


async def test_a_slow_driver_stalls_nobody_on_the_event_loop(sim: Simulation, nvml: Nvml) -> None:
    sim.call("memory_v2").delay_ms = 100
    call = asyncio.create_task(nvml.read(uuid(0)))
    turns = 0
    while not call.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert turns >= 3
    assert (await call).used == 0


async def test_a_queue_of_calls_is_no_wedge(sim: Simulation, nvml: Nvml) -> None:
    await nvml.read(uuid(0))
    sim.call("memory_v2").delay_ms = 60
    results = await asyncio.gather(*(nvml.read(uuid(0)) for _ in range(8)), return_exceptions=True)
    assert any(isinstance(result, MemoryReading) for result in results)
    assert {error.status for error in results if isinstance(error, NvmlError)} == {"timeout"}
    assert not nvml.wedged


async def test_nvml_is_started_by_the_first_call_and_shut_down_when_idle(sim: Simulation) -> None:
    nvml = Nvml(idle=0.05)
    assert sim.open_handles == 0
    await nvml.read(uuid(0))
    assert sim.call("init").count == 1
    wait_until(lambda: sim.open_handles == 0, description="idle shutdown")
    wait_until(lambda: nvml._thread is None, description="the thread ends")
    await nvml.read(uuid(0))
    assert sim.call("init").count == 2
    wait_until(lambda: nvml._thread is None, description="the thread ends again")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child_starts_nvml_anew(sim: Simulation, nvml: Nvml) -> None:
    await nvml.read(uuid(0))
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            loop = asyncio.new_event_loop()
            asyncio.events._set_running_loop(None)
            reading = loop.run_until_complete(nvml.read(uuid(0)))
            os.write(write_end, str(reading.used).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    assert await asyncio.to_thread(os.read, read_end, 100) == b"0"
    os.close(read_end)
    await asyncio.to_thread(os.waitpid, child, 0)
    assert sim.call("init").count == 2
    assert nvml.threads_started == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child_begins_with_nothing_before_its_threads_ask_at_once(sim: Simulation, nvml: Nvml) -> None:
    """What is forgotten at the first question may be what another thread has just made."""
    await nvml.read(uuid(0))
    assert episode_on(uuid(0)) is known_episode(uuid(0))
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, repr((nvml._thread, known_episode(uuid(0)), list(_episodes))).encode())
        os._exit(0)
    os.close(write_end)
    assert await asyncio.to_thread(os.read, read_end, 100) == b"(None, None, [])"
    os.close(read_end)
    await asyncio.to_thread(os.waitpid, child, 0)


def test_a_program_ends_although_a_call_hangs(sim: Simulation, driver_folder: Path) -> None:
    code = (
        "import asyncio; from aiogpulock.gpu.nvml import Nvml, NvmlError\n"
        "async def main():\n"
        "    try: await Nvml(init_deadline=0.1).devices()\n"
        "    except NvmlError as error: print(error.status)\n"
        "asyncio.run(main())"
    )
    env = os.environ | {"LD_LIBRARY_PATH": str(driver_folder)}
    with sim.hung("init"):
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=env, capture_output=True, timeout=20, check=True
        )
    assert done.stdout == b"wedged\n"


async def test_without_a_driver_the_reason_is_said(sim: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVML_SIM_STATE")
    nvml = Nvml(idle=0.01)
    error = await refused(nvml)
    assert (error.status, str(error)) == ("no_nvml", "NVML start: the NVIDIA driver is not loaded (code 9)")
    wait_until(lambda: nvml._thread is None, description="the thread ends")


async def test_all_parts_of_a_process_share_one_thread(sim: Simulation) -> None:
    assert shared() is shared()
    before = shared().threads_started
    assert len(await shared().devices()) == 2
    await shared().driver_version()
    assert shared().threads_started == before + 1
    shared().close()
    wait_until(lambda: shared()._thread is None, description="the thread ends")
