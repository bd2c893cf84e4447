"""What a simulated driver cannot show, on a real and otherwise idle GPU 0: ``pytest -m gpu -s tests/gpu``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.hardware import CHECKS
from tests.servers import RealServer

ROOT = Path(__file__).parents[2]
DRIVER = Path("/proc/driver/nvidia/version")


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(not DRIVER.exists(), reason="no NVIDIA driver on this host (/proc/driver/nvidia/version)")
@pytest.mark.parametrize("check", CHECKS)
def test_on_real_hardware(check: str, server: RealServer) -> None:
    env = {key: value for key, value in os.environ.items() if key != "AIOGPULOCK_GPU_MEMORY_NVML"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.hardware", check, server.url],
        env={**env, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    print(f"\n{check}: {done.stdout.strip()}")
