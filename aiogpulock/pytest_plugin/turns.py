"""The leases that the tests of this process hold. Imported with the first marked test, and not before.

Leases live on the background event loop of `aiogpulock.sync`: no loop of a test is needed, and none that a test blocks,
or closes, can lose one.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from aiogpulock import background, clock, sync
from aiogpulock.config import GpuMemorySettings
from aiogpulock.default import PerLoop
from aiogpulock.errors import GpuLockError, InvalidGpuError
from aiogpulock.gpu import nvml
from aiogpulock.gpu.identity import Visible, locate
from aiogpulock.gpu.records import NvmlError
from aiogpulock.gpu.report import MemoryReport
from aiogpulock.lock import GpuLock
from aiogpulock.manager import GpuLockManager
from aiogpulock.pytest_plugin.mark import Wish
from aiogpulock.pytest_plugin.options import Options

VERDICT_SECONDS = 10.0
"""Beyond `settle_time`, a driver that hangs keeps no suite."""


@dataclass
class Turn:
    """A lease that a test holds; others of this process join it, such as a test within a wider fixture."""

    gpu_id: str
    """As the test calls it."""
    device: str
    """What it is locked by."""
    lease: sync.Lease
    memory: GpuMemorySettings
    """How its memory is verified."""
    first: str
    """The test that took it."""
    users: int = 1
    loss_told: bool = False


class Turns:
    """Takes GPUs for tests, and gives them back."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._find_manager = PerLoop(lambda: GpuLockManager(options.redis_url))
        self._turns: dict[str, Turn] = {}
        self._absent: dict[str, str] = {}

    def absence(self, gpu_id: str) -> str:
        """Why this GPU is not here; empty if it is, or if NVML is not to be asked. Raises `GpuLockError`."""
        if gpu_id not in self._absent:
            self._absent[gpu_id] = background.call(lambda: self._look(gpu_id))
        return self._absent[gpu_id]

    async def _look(self, gpu_id: str) -> str:
        settings = (await self._find_manager()).settings.gpu_lock
        if settings.gpu_memory.nvml == "off":
            return ""
        try:
            devices = await nvml.shared().devices()
        except NvmlError as error:
            if error.status == "no_nvml":
                return f"no GPU here: {error}"
            raise
        if not devices:
            return "no GPU here: the NVIDIA driver lists none"
        try:
            place = locate(gpu_id, devices, Visible.here())
        except InvalidGpuError as error:
            return str(error)
        return f"{gpu_id} is a GPU of another host" if place.remote else ""

    def lock(self, wish: Wish, task_name: str) -> sync.GpuLock:
        """Raises `ConfigError` for keywords that no lock takes."""
        keywords = {"task_name": task_name, **self._options.overrides, **wish.keywords}
        keywords["gpu_memory"] = self._memory(wish)
        return sync.GpuLock(GpuLock(wish.gpu_id, self._find_manager, **keywords))

    def _memory(self, wish: Wish) -> object:
        """Every test is verified, whatever programs do elsewhere, unless its own mark says otherwise."""
        policy = {"policy": "off" if self._options.leaks == "ignore" else "hold"}
        given = wish.keywords.get("gpu_memory", {})
        return {**policy, **given} if isinstance(given, Mapping) else given

    def take(self, wish: Wish, lock: sync.GpuLock, test: str) -> Turn:
        """Wait for a GPU, or join the turn that this process has on it. Raises `GpuLockError`."""
        device, memory = background.call(lambda: self._prepare(wish))
        turn = self._turns.get(device)
        if turn is None:
            turn = self._turns[device] = Turn(wish.gpu_id, device, lock.acquire(), memory, test)
        else:
            turn.lease.check()
            turn.users += 1
        return turn

    async def _prepare(self, wish: Wish) -> tuple[str, GpuMemorySettings]:
        """What the GPU is locked by, whatever it is called in the mark, and how its memory is verified."""
        manager = await self._find_manager()
        await manager.started()
        settings = manager.settings.gpu_lock.override(gpu_memory=self._memory(wish))
        gpu = await manager.find(wish.gpu_id, settings)
        return gpu.id, settings.gpu_memory

    def give_back(self, turn: Turn, test: str) -> str:
        """Release with the last user. Answers what is to be complained of `test`; empty: nothing.

        A loss is told once, to the first that ends with it. The verdict on the memory is waited for, so that no next
        test is accused of this one's leak.
        """
        turn.users -= 1
        try:
            if turn.users:
                turn.lease.check()
                return ""
            if self._turns.pop(turn.device, None) is not turn:
                return ""
            turn.lease.release()
        except GpuLockError as error:
            told, turn.loss_told = turn.loss_told, True
            return "" if told else str(error)
        report = background.call(lambda: _verdict(turn)) if turn.memory.policy != "off" else None
        if report is None or report.status != "not_freed":
            return ""
        by = test if test == turn.first else f"one of the tests from {turn.first} to {test}"
        leak = f"GPU {turn.gpu_id} was not given back whole by {by}: {report.reason}"
        if self._options.leaks == "warn":
            warnings.warn(pytest.PytestWarning(leak), stacklevel=1)
            return ""
        return leak

    def close(self) -> None:
        """Give back what an interrupted run still holds, and end the background thread."""
        for turn in list(self._turns.values()):
            turn.users = 1
            self.give_back(turn, turn.first)
        sync.close()


async def _verdict(turn: Turn) -> MemoryReport | None:
    deadline = clock.now() + turn.memory.settle_time + VERDICT_SECONDS
    while turn.lease.memory_report is None and clock.now() < deadline:
        await asyncio.sleep(0.005)
    report: MemoryReport | None = turn.lease.memory_report
    return report
