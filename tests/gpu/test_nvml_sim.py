"""The simulated driver, through the real nvidia-ml-py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from tests.helpers import wait_until
from tests.nvml_sim import GiB, MiB, Simulation, uuid


@pytest.fixture
def nvml(sim: Simulation) -> Iterator[None]:
    pynvml.nvmlInit()
    yield
    pynvml.nvmlShutdown()


@pytest.mark.usefixtures("nvml")
def test_nvidia_ml_py_reads_devices_memory_and_processes(sim: Simulation) -> None:
    sim.use(1, 3 * GiB, pid=4242)
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetUUID(handle) == uuid(1)
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).used == 3 * GiB + 512 * MiB
    assert pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used == 3 * GiB
    (process,) = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    assert (process.pid, process.usedGpuMemory) == (4242, 3 * GiB)
    sim.list_processes(1, "no_bytes")
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle)[0].usedGpuMemory is None


@pytest.mark.usefixtures("nvml")
def test_a_mig_device_has_a_uuid_and_a_parent(sim: Simulation) -> None:
    name = sim.add_mig(0, 1)
    handle = pynvml.nvmlDeviceGetHandleByUUID(name)
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    assert pynvml.nvmlDeviceGetUUID(parent) == uuid(0)
    assert pynvml.nvmlDeviceGetMigMode(parent) == [1, 1]


@pytest.mark.usefixtures("nvml")
def test_an_error_is_raised_by_the_call_it_was_set_for(sim: Simulation) -> None:
    sim.call("count").error = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetCount()


@pytest.mark.usefixtures("nvml")
def test_memory_of_a_killed_process_comes_back_late(sim: Simulation) -> None:
    child_code = (
        "import sys, time; from pathlib import Path; from tests.nvml_sim import Simulation\n"
        "Simulation(Path(sys.argv[1])).use(0, 5 << 30); print('ready', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", child_code, str(sim.path)]
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def used() -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used)

    sim.reap(after_ms=300)
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert used() == 5 * GiB
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: not pynvml.nvmlDeviceGetComputeRunningProcesses(handle), description="it leaves the list")
        assert used() == 5 * GiB
        wait_until(lambda: used() == 0, description="the driver gives the memory back")
