"""A simulated driver for every test of the GPU side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aiogpulock.gpu.nvml import shared
from tests.helpers import wait_until
from tests.nvml_sim import Simulation, build


@pytest.fixture(scope="session")
def driver_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On LD_LIBRARY_PATH, this folder is a host with a driver. In this process the library is loaded."""
    folder = tmp_path_factory.mktemp("driver")
    build(folder)
    return folder


@pytest.fixture
def sim(driver_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """Two idle GPUs of 80 GiB."""
    simulation = Simulation(tmp_path / "nvml", gpus=2)
    monkeypatch.setenv("NVML_SIM_STATE", str(simulation.path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield simulation
    simulation.close()
    shared().close()
    wait_until(lambda: shared()._thread is None, description="the thread ends")
