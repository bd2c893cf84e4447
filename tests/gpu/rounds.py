"""``python -m tests.gpu.rounds URL``: holds GPU 0 once per line of stdin, which is a namespace, and tells when.

A fresh namespace is a host on which nobody has locked a GPU yet.
"""

from __future__ import annotations

import asyncio
import json
import sys

from aiogpulock import GpuLockManager, clock


async def hold_once(url: str, namespace: str) -> dict[str, object]:
    manager = GpuLockManager(url, redis={"namespace": namespace}, gpu_memory={"nvml": "auto"}, restart_grace=0)
    async with manager, manager.lock(0) as lease:
        begun = clock.now()
        await asyncio.sleep(0.002)
        return {"key": lease.key, "from": begun, "to": clock.now()}


def main(url: str) -> None:
    with asyncio.Runner() as runner:
        sys.stdout.write("{}\n")
        sys.stdout.flush()
        for line in sys.stdin:
            sys.stdout.write(json.dumps(runner.run(hold_once(url, line.strip()))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
