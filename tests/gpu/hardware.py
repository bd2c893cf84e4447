"""``python -m tests.gpu.hardware CHECK URL``: one check on GPU 0; prints its figures as a line of JSON.

In a process of its own, since the tests' process may have the simulated driver loaded. What can be asked depends on
where it runs: in a container NVML numbers processes as the host does, or lists none, and only the device can be judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pynvml

from aiogpulock import GpuLockManager, Lease, MemoryReport
from aiogpulock.gpu.nvml import shared
from aiogpulock.gpu.verify import own_pids
from tests.gpu.cuda import Cuda

GiB, MiB = 1 << 30, 1 << 20
Figures = dict[str, Any]

LONG_ENOUGH = 0.5
"""Seconds of a body: where only the whole device can be judged, the library looks twice, 0.25 s apart."""


class Bench(NamedTuple):
    """GPU 0, and a Redis."""

    uuid: str
    url: str
    first_call: float
    """Seconds for NVML's initialisation and the list of devices."""

    def manager(self) -> GpuLockManager:
        return GpuLockManager(self.url, gpu_memory={"nvml": "required"}, restart_grace=0)

    async def used(self) -> int:
        return (await shared().read(self.uuid, processes=False)).used

    async def until_back(self, before: int, slack: int = 64 * MiB) -> float:
        """Seconds until the device holds no more than before."""
        begun = time.monotonic()
        while (now := await self.used()) > before + slack:
            assert time.monotonic() - begun < 120, f"{now - before} bytes did not come back"
            await asyncio.sleep(0.002)
        return round(time.monotonic() - begun, 4)

    async def own(self) -> int | None:
        """What NVML says that this process uses; None: it does not tell, as in a container."""
        pids = own_pids()
        return (await shared().read(self.uuid)).bytes_of(pids) or None if pids else None


@contextlib.contextmanager
def child(work: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has allocated, by the Python code `work`, and ends when its stdin is closed."""
    code = f"import sys; from tests.gpu.cuda import Cuda; cuda = Cuda(); {work}"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline(), "the child could not allocate: its error is above"
            yield process
        finally:
            process.kill()


def keeps(size: int) -> str:
    return f"kept = cuda.allocate({size}); print(flush=True); sys.stdin.read()"


COMPUTES = f"""
import select
kept = cuda.allocate({GiB})
print(flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    cuda.fill(kept, {GiB})
"""


# the checks


async def idle_memory(bench: Bench) -> Figures:
    second, first = await shared().read(bench.uuid), await shared().read(bench.uuid, version=1)
    assert second.total == first.total
    assert first.used >= second.used, "the first version counts what the driver reserves"
    figures = {"v2 used": second.used, "v1 used": first.used, "reserved": second.reserved, "total": second.total}
    lists = {name: _list_answers(bench.uuid, name) for name in ("Compute", "Graphics")}
    return figures | {"listed": None if second.processes is None else len(second.processes), "lists": lists}


def _list_answers(uuid: str, name: str) -> str:
    """Each list of processes may be unknown to a device, such as a MIG one."""
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return f"{len(getattr(pynvml, f'nvmlDeviceGet{name}RunningProcesses')(handle))} listed"
    except pynvml.NVMLError as error:
        return str(error)
    finally:
        pynvml.nvmlShutdown()


async def call_times(bench: Bench) -> Figures:
    """Milliseconds: initialisation; 100 readings without and with the process list, on an idle and on a busy device."""
    figures: Figures = {"init and list": _ms(bench.first_call)}
    for load, work in (("idle", None), ("busy", COMPUTES)):
        with child(work) if work else contextlib.nullcontext():
            for name, processes in (("memory", False), ("memory and processes", True)):
                times = sorted([await _timed(bench.uuid, processes) for _ in range(100)])
                figures[f"{name}, {load}"] = {"median": _ms(times[50]), "worst": _ms(times[-1])}
    return figures


async def _timed(uuid: str, processes: bool) -> float:
    begun = time.monotonic()
    await shared().read(uuid, processes=processes)
    return time.monotonic() - begun


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


async def context_size(bench: Bench) -> Figures:
    before = await bench.used()
    cuda = Cuda()
    now = await bench.used()
    assert now > before
    assert cuda.uuid == bench.uuid
    return {"device": now - before, "own figure": await bench.own()}


async def uuid_is_cudas(bench: Bench) -> Figures:
    """CUDA takes NVML's UUID in CUDA_VISIBLE_DEVICES, and calls the device so."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == bench.uuid
    assert Cuda().uuid == bench.uuid
    return {"uuid": bench.uuid}


async def reclaim_curves(bench: Bench) -> Figures:
    """Seconds from the end of a process, by itself and by SIGKILL, until its memory is back."""
    before, figures = await bench.used(), {}
    total = (await shared().read(bench.uuid, processes=False)).total
    for size in (GiB, 20 * GiB, 70 * GiB):
        if size > total - before - 2 * GiB:
            continue
        for how in ("exit", "SIGKILL"):
            with child(keeps(size)) as process:
                assert await bench.used() >= before + size
                if how == "exit":
                    process.communicate()
                else:
                    process.kill()
                    process.wait()
                figures[f"{size // GiB} GiB, {how}"] = await bench.until_back(before)
    return figures


async def leak_is_named(bench: Bench) -> Figures:
    """A leak of 1 GiB: by a process that had no context before, by one that had, and none by one that cleans up.

    A leak under `hold` is always told. Behind a hand-off (`report`), and to say that nothing stayed, figures per
    process may be needed; and one that is there before the first look may have been loaded without the lock.
    """
    async with bench.manager() as manager:
        cold, (cuda, kept) = await _hold(manager, "hold", lambda: _leak(Cuda()))
        tells = await bench.own() is not None
        cuda.free(kept)
        warm, (_, kept) = await _hold(manager, "hold", lambda: _leak(cuda))
        cuda.free(kept)
        behind, (_, kept) = await _hold(manager, "report", lambda: _leak(cuda))
        cuda.free(kept)
        clean, _ = await _hold(manager, "hold", lambda: cuda.free(cuda.allocate(GiB)), settle_time=10)
        blocking, (_, kept) = await _hold(manager, "report", lambda: _leak(cuda), blocks=True)
        cuda.free(kept)
    verdicts = {"cold": cold, "warm": warm, "behind": behind, "blocking": blocking, "clean": clean}
    figures = {name: [one.status, one.bytes, one.reason] for name, one in verdicts.items()}
    assert cold.status == warm.status == "not_freed", figures
    assert (warm.bytes or 0) >= GiB - 64 * MiB, figures
    untold = () if tells else ("unverifiable",)
    assert behind.status in ("not_freed", *untold), figures
    assert blocking.status in ("not_freed", "unverifiable"), figures
    assert clean.status in ("freed", *untold), figures
    return {"own figures": tells, **figures}


def _leak(cuda: Cuda) -> tuple[Cuda, Any]:
    return cuda, cuda.allocate(GiB)


async def _hold(
    manager: GpuLockManager, policy: str, work: Callable[[], Any], *, settle_time: float = 1, blocks: bool = False
) -> tuple[MemoryReport, Any]:
    """`blocks`: the body allocates before it awaits anything, as most programs do."""
    async with manager.lock(0, gpu_memory={"policy": policy, "settle_time": settle_time}) as lease:
        if not blocks:
            await asyncio.sleep(LONG_ENOUGH)
        result = work()
        if blocks:
            await asyncio.sleep(LONG_ENOUGH)
    return await _report(lease), result


async def _report(lease: Lease) -> MemoryReport:
    async with asyncio.timeout(30):
        while lease.memory_report is None:
            await asyncio.sleep(0.01)
    return lease.memory_report


async def turns(bench: Bench) -> Figures:
    """20 holds of 1 GiB in turn with another process; no false leak."""
    cuda, statuses = Cuda(), list[str]()
    async with bench.manager() as manager:
        for _ in range(20):
            async with manager.lock(0) as lease:
                cuda.free(cuda.allocate(GiB))
                await asyncio.sleep(0.05)
            statuses.append((await _report(lease)).status)
        tells = await bench.own() is not None
    assert "not_freed" not in statuses, statuses
    assert "freed" in statuses or not tells, statuses
    return {"own figures": tells, **{status: statuses.count(status) for status in sorted(set(statuses))}}


async def two_processes_take_turns(bench: Bench) -> Figures:
    command = [sys.executable, "-m", "tests.gpu.hardware", "turns", bench.url]
    pair = [await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE) for _ in range(2)]
    outputs = [(await process.communicate())[0] for process in pair]
    assert all(process.returncode == 0 for process in pair), "an error of one of them is above"
    return {"each": [json.loads(output) for output in outputs]}


Check = Callable[[Bench], Awaitable[Figures]]
CHECKS: Sequence[Check] = (
    idle_memory, call_times, context_size, uuid_is_cudas, reclaim_curves, leak_is_named, two_processes_take_turns,
)  # fmt: skip


async def main(name: str, url: str) -> None:
    check = {one.__name__: one for one in (*CHECKS, turns)}[name]
    begun = time.monotonic()
    devices = await shared().devices()
    bench = Bench(next(one.uuid for one in devices if one.index == 0), url, time.monotonic() - begun)
    gpu = next(one for one in devices if one.index == 0)
    assert gpu.uuid, gpu.fault
    assert not gpu.mig_enabled, "GPU 0 is in MIG mode: these checks are for a whole GPU"
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid  # CUDA may count otherwise than NVML; children follow
    figures = await check(bench)
    print(json.dumps({"gpu": gpu.name, "driver": await shared().driver_version()} | figures))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
