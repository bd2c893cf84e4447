"""The command line as users run it: processes, their output, and what is left of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.helpers import wait_until
from tests.nvml_sim import Simulation

ROOT = str(Path(__file__).parents[2])
COMMAND = (sys.executable, "-P", "-m", "aiogpulock")
PATIENCE = 60.0  # seconds; wide, since machines that run tests are busy
MARK = "AGL_SHELL_TEST"


class Shell:
    """Starts the command line with one server; every process below carries a mark, and ends with the shell."""

    def __init__(self, url: str) -> None:
        self.mark = str(time.monotonic_ns())
        self.env = {
            **os.environ,
            "PYTHONPATH": ROOT,
            "REDIS_URL": url,
            MARK: self.mark,
            "COLUMNS": "80",
            "AIOGPULOCK_RESTART_GRACE": "1",
        }
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        env = {**self.env, **options.pop("env", {})}
        process = subprocess.Popen([*COMMAND, *arguments], env=env, **{**settings, **options})
        self._started.append(process)
        return process

    def run(self, *arguments: str, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """To its end."""
        env = {**self.env, **options.pop("env", {})}
        return subprocess.run(
            [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=PATIENCE, env=env, **options
        )

    def marked(self, start: str = "") -> list[psutil.Process]:
        """Every live process that was started from here, whoever its parent is, whose command line begins so."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self.mark and " ".join(process.cmdline()).startswith(start):
                    found.append(process)
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            process.kill()
        try:
            wait_until(lambda: not self.marked(), description="every process has ended", timeout=10)
        finally:
            for left in self.marked():
                with contextlib.suppress(psutil.Error):
                    left.kill()
            for process in self._started:
                process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The line of stdout that has `text`."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}: {process.stderr and process.stderr.read()}")


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def driver_variables(folder: Path, sim: Simulation) -> dict[str, str]:
    """What makes a process see the simulated driver."""
    return {
        "LD_LIBRARY_PATH": str(folder),
        "NVML_SIM_STATE": str(sim.path),
        "AIOGPULOCK_GPU_MEMORY_NVML": "auto",
    }
