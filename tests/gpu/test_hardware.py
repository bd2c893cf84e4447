"""What a simulated driver cannot show, on a real and otherwise idle GPU 0: ``pytest -m gpu -s tests/gpu``.

The checks themselves are tried on the simulated driver, so that they run at first try where there is a real one.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.hardware import CHECKS
from tests.nvml_sim import Simulation, build_cuda
from tests.servers import RealServer

ROOT = Path(__file__).parents[2]
DRIVER = [Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg")]
NAMES = [check.__name__ for check in CHECKS]


def figures_of(check: str, url: str, **env: str) -> dict[str, Any]:
    theirs = {key: value for key, value in os.environ.items() if key != "AIOGPULOCK_GPU_MEMORY_NVML"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.hardware", check, url],
        env={**theirs, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


@pytest.fixture
def one_at_a_time() -> Iterator[None]:
    """Each check takes the whole GPU for its own, also under ``pytest -n``."""
    with (Path(tempfile.gettempdir()) / f"aiogpulock-hardware-{os.getuid()}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.gpu
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not any(path.exists() for path in DRIVER), reason=f"no NVIDIA driver here: none of {DRIVER}")
@pytest.mark.parametrize("check", NAMES)
def test_on_real_hardware(check: str, server: RealServer, one_at_a_time: None) -> None:
    print(f"\n{check}: {json.dumps(figures_of(check, server.url))}")


# the checks themselves


@pytest.mark.parametrize(
    ("check", "listing"),
    [*((check, "all") for check in NAMES), ("leak_is_named", "nothing"), ("two_processes_take_turns", "nothing")],
)
def test_the_checks_pass_on_the_simulated_driver(
    check: str, listing: Any, driver_folder: Path, sim: Simulation, server: RealServer
) -> None:
    """Where NVML lists all processes, and where it lists none, as in some containers."""
    build_cuda(driver_folder)
    sim.reap(after_ms=20)
    sim.list_processes(0, listing)
    figures = figures_of(check, server.url, LD_LIBRARY_PATH=str(driver_folder))
    assert (figures["gpu"], figures["driver"]) == ("Simulated GPU", "simulated")
    assert figures.get("own figures", listing == "all") == (listing == "all")
