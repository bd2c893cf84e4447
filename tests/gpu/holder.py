"""``python -m tests.gpu.holder URL SETTINGS``: holds GPUs as it is told, and "allocates" in the simulated driver.

One JSON command per line of stdin, one JSON answer per line of stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from aiogpulock import GpuLockError, GpuLockManager, Lease, clock
from aiogpulock.gpu import numbering
from tests.gpu.looks import wait_for_looks
from tests.nvml_sim import Simulation


class Holder:
    def __init__(self, manager: GpuLockManager, sim: Simulation) -> None:
        self._manager = manager
        self._sim = sim
        self._leases: list[Lease] = []

    async def acquire(self, **options: Any) -> dict[str, Any]:
        """`held`, or `error`: what the acquisition raised."""
        begun = clock.now()
        try:
            lease = await self._manager.lock(0, **options).acquire()
        except GpuLockError as error:
            return {"error": type(error).__name__, "text": str(error), "seconds": clock.now() - begun}
        self._leases.append(lease)
        return {"held": lease.holder_id, "at": clock.now(), "seconds": clock.now() - begun}

    async def acquire_and_use(self, size: int) -> dict[str, Any]:
        """The first line of the body allocates."""
        held = await self.acquire()
        self._sim.use(0, size)
        return held

    async def release(self) -> dict[str, Any]:
        begun = clock.now()
        try:
            await self._leases[-1].release()
        except GpuLockError as error:
            return {"error": type(error).__name__, "text": str(error), "seconds": clock.now() - begun}
        return {"at": clock.now(), "seconds": clock.now() - begun}

    async def look(self) -> dict[str, Any]:
        """Wait for the first look of the last hold."""
        wait_for_looks()
        return {}

    async def use(self, size: int) -> dict[str, Any]:
        self._sim.use(0, size)
        return {}

    async def kill_a_child(self, size: int) -> dict[str, Any]:
        """A child uses `size` bytes, and dies."""
        with subprocess.Popen(["sleep", "60"]) as child:  # noqa: ASYNC220 - it starts nothing that waits
            self._sim.use(0, size, pid=child.pid, watched=True)
            child.kill()
        return {"child": child.pid, "at": clock.now()}

    async def report(self) -> dict[str, Any]:
        """The verdict on the last hold, waited for."""
        while (report := self._leases[-1].memory_report) is None:
            await asyncio.sleep(0.002)
        answer: dict[str, Any] = msgspec.to_builtins(report)
        return answer

    async def turns(self, count: int, size: int, hold: float) -> dict[str, Any]:
        """Hold `count` times in turn with others, `size` bytes each; answers with the verdicts."""
        lock = self._manager.lock(0)
        for _ in range(count):
            async with lock as lease:
                self._sim.use(0, size)
                await asyncio.sleep(hold)
                self._sim.use(0, 0)
            self._leases.append(lease)
        await self.report()
        return {"reports": [msgspec.to_builtins(lease.memory_report) for lease in self._leases]}


async def main(url: str, settings: dict[str, Any]) -> None:
    reader = asyncio.StreamReader()
    pipe = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    sim = Simulation(Path(os.environ["NVML_SIM_STATE"]))
    async with GpuLockManager(url, **settings) as manager:
        holder = Holder(manager, sim)
        print("{}", flush=True)
        while line := await reader.readline():
            command = json.loads(line)
            print(json.dumps(await getattr(holder, command.pop("do"))(**command)), flush=True)
    pipe[0].close()


if __name__ == "__main__":
    numbering.BOUND = Path("/nonexistent")  # a machine with real GPUs does not change what the simulated ones mean
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
