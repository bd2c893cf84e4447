"""``python -m tests.gpu.rounds URL``: holds GPU 0 once per line of stdin, each time on a host of that name; tells when.

A new host, which is another boot id, is one on which nobody has locked a GPU yet.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from aiogpulock import GpuLockManager, clock
from aiogpulock.gpu import numbering
from aiogpulock.gpu.aliases import Aliases
from aiogpulock.gpu.finder import Finder
from aiogpulock.gpu.nvml import shared


async def hold_once(manager: GpuLockManager, host: str) -> dict[str, object]:
    parts = manager.parts
    aliases = Aliases(parts.client.execute_many, manager.namespace, host)
    parts.finder = Finder(shared(), aliases, 5.0, connected=lambda: parts.inbox.healthy, later=parts.errands.add)
    asked = clock.now()
    async with manager.lock(0) as lease:
        begun = clock.now()
        await asyncio.sleep(0.002)
        return {"key": lease.key, "asked": asked, "from": begun, "to": clock.now()}


async def main(url: str) -> None:
    reader = asyncio.StreamReader()
    pipe = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with GpuLockManager(url, gpu_memory={"nvml": "auto"}, restart_grace=0) as manager:
        print("{}", flush=True)
        while line := await reader.readline():
            print(json.dumps(await hold_once(manager, line.decode().strip())), flush=True)
    pipe[0].close()


if __name__ == "__main__":
    numbering.BOUND = Path("/nonexistent")  # a machine with real GPUs does not change what the simulated ones mean
    asyncio.run(main(sys.argv[1]))
