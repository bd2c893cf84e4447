"""A simulated driver for every test of the GPU side."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pynvml  # noqa: F401 - pytester forgets modules that its test imported, and a second pynvml cannot end the first
import pytest
import redis

from aiogpulock import GpuLockManager, admission, episode
from aiogpulock.gpu import numbering
from aiogpulock.gpu.nvml import shared
from tests.gpu.processes import Told
from tests.helpers import wait_until
from tests.nvml_sim import Simulation, build
from tests.servers import RealServer


@pytest.fixture(scope="session")
def driver_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On LD_LIBRARY_PATH, this folder is a host with a driver. In this process the library is loaded."""
    folder = tmp_path_factory.mktemp("driver")
    build(folder)
    return folder


@pytest.fixture
def sim(driver_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """Two idle GPUs of 80 GiB. NVML numbers processes as the tests do, also where these run in a container."""
    simulation = Simulation(tmp_path / "nvml", gpus=2)
    monkeypatch.setenv("NVML_SIM_STATE", str(simulation.path))
    monkeypatch.setenv("AIOGPULOCK_NVML_PIDS", "same")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(numbering, "BOUND", tmp_path / "no sysfs")
    episode._episodes.clear()
    admission._blind.clear()
    shared()._totals.clear()
    yield simulation
    simulation.close()
    shared().close()
    wait_until(lambda: shared()._thread is None, description="the thread ends")


@contextmanager
def no_new_threads() -> Iterator[None]:
    """As in a process that has as many as it may."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


@pytest.fixture
async def gpu_manager(sim: Simulation, redis_url: str, redis_cleanup: redis.Redis) -> AsyncIterator[GpuLockManager]:
    """A manager that asks the simulated driver."""
    async with GpuLockManager(redis_url, gpu_memory={"nvml": "auto"}, restart_grace=0) as manager:
        yield manager


@pytest.fixture
def start_holder(driver_folder: Path, sim: Simulation, server: RealServer) -> Iterator[Callable[..., Told]]:
    """Starts processes of `tests.gpu.holder`; the keywords are their ``gpu_memory``."""
    with ExitStack() as stack:

        def start(**memory: Any) -> Told:
            settings = {"restart_grace": 0, "gpu_memory": {"nvml": "auto", **memory}}
            arguments = (server.url, msgspec.json.encode(settings).decode())
            return stack.enter_context(Told("holder", *arguments, LD_LIBRARY_PATH=str(driver_folder)))

        yield start
