"""``python -m tests.gpu.hardware CHECK [URL]``: one check on the real GPU 0; prints its figures as a line of JSON.

In a process of its own, since the tests' process has the simulated driver loaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiogpulock import GpuLockManager, Lease
from aiogpulock.gpu.nvml import Nvml, shared
from tests.gpu.cuda import Cuda

GiB, MiB = 1 << 30, 1 << 20
Figures = dict[str, Any]


async def _gpu() -> str:
    return next(device.uuid for device in await shared().devices() if device.index == 0)


async def _used(uuid: str) -> int:
    return (await shared().read(uuid, processes=False)).used


async def _until_back(uuid: str, before: int, slack: int = 64 * MiB) -> float:
    """Seconds until the device holds no more than before."""
    begun = time.monotonic()
    while await _used(uuid) > before + slack:
        assert time.monotonic() - begun < 120, "the memory did not come back"
        await asyncio.sleep(0.002)
    return round(time.monotonic() - begun, 4)


def _child(size: int) -> subprocess.Popen[bytes]:
    """A process that has allocated `size` bytes, and ends when its stdin is closed."""
    code = f"from tests.gpu.cuda import Cuda; kept = Cuda().allocate({size}); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


async def idle_memory(_: str) -> Figures:
    uuid = await _gpu()
    second, first = await shared().read(uuid), await shared().read(uuid, version=1)
    assert second.total == first.total
    assert first.used >= second.used
    figures = {"v2 used": second.used, "v1 used": first.used, "reserved": second.reserved, "total": second.total}
    return figures | {"listed": len(second.processes or ())}


async def call_times(_: str) -> Figures:
    """Milliseconds: initialisation, and the median of 100 readings without and with the process list."""
    begun = time.monotonic()
    uuid = next(device.uuid for device in await Nvml().devices() if device.index == 0)
    figures: Figures = {"init and list": round(1000 * (time.monotonic() - begun), 3)}
    for name, processes in (("memory", False), ("memory and processes", True)):
        times = []
        for _number in range(100):
            begun = time.monotonic()
            await shared().read(uuid, processes=processes)
            times.append(time.monotonic() - begun)
        figures[name] = round(1000 * sorted(times)[50], 3)
    return figures


async def context_size(_: str) -> Figures:
    uuid = await _gpu()
    before = await _used(uuid)
    cuda = Cuda()
    reading = await shared().read(uuid)
    own = reading.bytes_of(frozenset({os.getpid()}))
    assert reading.used > before
    return {"device": reading.used - before, "own figure": own, "cuda uuid": cuda.uuid}


async def uuid_is_cudas(_: str) -> Figures:
    uuid = await _gpu()
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    assert Cuda().uuid == uuid
    return {"uuid": uuid}


async def reclaim_curves(_: str) -> Figures:
    """Seconds from the end of a process, by itself and by SIGKILL, until its memory is back."""
    uuid = await _gpu()
    before, figures = await _used(uuid), {}
    total = (await shared().read(uuid, processes=False)).total
    for size in (GiB, 20 * GiB, 70 * GiB):
        if size > total - before - 2 * GiB:
            continue
        for how in ("exit", "SIGKILL"):
            child = _child(size)
            if how == "exit":
                child.communicate()
            else:
                child.kill()
                child.wait()
            figures[f"{size // GiB} GiB, {how}"] = await _until_back(uuid, before)
    return figures


async def _report(lease: Lease) -> Any:
    while lease.memory_report is None:
        await asyncio.sleep(0.01)
    return lease.memory_report


async def leak_is_named(url: str) -> Figures:
    """256 MiB above the tolerance and the allowance for a context."""
    async with GpuLockManager(url, gpu_memory={"nvml": "required"}, restart_grace=0) as manager:
        async with manager.lock(0) as lease:
            cuda = Cuda()
            kept = cuda.allocate(1024 * MiB)
        leak = await _report(lease)
        cuda.free(kept)
        async with manager.lock(0, gpu_memory={"policy": "hold"}) as lease:
            cuda.free(cuda.allocate(1024 * MiB))
        clean = await _report(lease)
    assert leak.status in ("not_freed", "unverifiable"), leak
    assert clean.status in ("freed", "unverifiable"), clean
    return {"leak": leak.status, "bytes": leak.bytes, "clean": clean.status, "why": leak.reason}


async def turns(url: str) -> Figures:
    """20 holds of 1 GiB in turn with another process; no false leak."""
    statuses: list[str] = []
    cuda = Cuda()
    async with GpuLockManager(url, gpu_memory={"nvml": "required"}, restart_grace=0) as manager:
        for _ in range(20):
            async with manager.lock(0) as lease:
                cuda.free(cuda.allocate(GiB))
                await asyncio.sleep(0.05)
            statuses.append((await _report(lease)).status)
    assert "not_freed" not in statuses, statuses
    return {"verdicts": sorted(set(statuses))}


async def two_processes_take_turns(url: str) -> Figures:
    command = [sys.executable, "-m", "tests.gpu.hardware", "turns", url]
    pair = [await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE) for _ in range(2)]
    outputs = [(await process.communicate())[0] for process in pair]
    assert all(process.returncode == 0 for process in pair)
    return {"verdicts": [json.loads(output)["verdicts"] for output in outputs]}


CHECKS: dict[str, Callable[[str], Awaitable[Figures]]] = {
    check.__name__: check
    for check in (
        idle_memory, call_times, context_size, uuid_is_cudas, reclaim_curves, leak_is_named, two_processes_take_turns,
    )
}  # fmt: skip


async def _main(check: str, url: str) -> None:
    figures = await {**CHECKS, "turns": turns}[check](url)
    print(json.dumps({"driver": await shared().driver_version()} | figures))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2]))
