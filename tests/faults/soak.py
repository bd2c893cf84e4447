"""``python -m tests.faults.soak``: no faults, many holds; what may not grow does not. Ends with 1 if something did.

Compared are the means of the last third and of the second third of the time, with a margin: the first third warms up.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from aiogpulock import clock
from aiogpulock.manager import COMMAND_CONNECTIONS, URGENT_CONNECTIONS
from tests.faults.arena import Arena
from tests.faults.zygote import ForkedWorker
from tests.helpers import left_behind
from tests.servers import RealServer

TASKS = 3  # of each worker
EMERGENCIES = 0.01  # share of all holds that may need an emergency release


class Sample(NamedTuple):
    """All workers together; the keys without those that an unused lock keeps for a while."""

    keys: float
    connections: float
    tasks: float
    open_files: float
    """But those connections."""
    memory_mib: float


MARGINS = Sample(keys=1.0, connections=0.5, tasks=2.0, open_files=2.0, memory_mib=2.0)
"""By how much the last third may lie above the second one."""
POOL = COMMAND_CONNECTIONS + URGENT_CONNECTIONS + 2
"""Connections of one worker, with its inbox and its guard: a pool opens each when it is first needed, and keeps it."""


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def take(arena: Arena) -> Sample:
    asked_at = clock.now()
    workers: list[ForkedWorker] = list(arena.workers.values())
    for worker in workers:
        worker.tell("sample")
    tasks = sum(worker.said_since("sample", asked_at)["tasks"] for worker in workers)
    keys = left_behind(arena.client.keys("*"))
    connections = sum(info["name"].startswith("aiogpulock") for info in arena.client.client_list())
    files = sum(len(os.listdir(f"/proc/{worker.pid}/fd")) for worker in workers)  # noqa: PTH208 - a count
    return Sample(
        keys=len(keys) + arena.client.hlen(arena.lock.key("waiters")),
        connections=connections,
        tasks=tasks,
        open_files=files - connections,
        memory_mib=sum(resident_mib(worker.pid) for worker in workers),
    )


def soak(seconds: float, workers: int) -> tuple[list[Sample], list[str], int, int]:
    """Samples, violations, holds, emergency releases."""
    samples: list[Sample] = []
    with RealServer() as server:
        arena = Arena(
            "soak", workers=workers, server=server, settings={"heartbeat": {"interval": 1.0, "timeout": 10.0}}
        )
        try:
            arena.fill()
            for worker in arena.workers.values():
                worker.expect("ready")
                worker.tell("contend", tasks=TASKS - 1)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(max(0.1, min(1.0, seconds / 60)))
                samples.append(take(arena))
            report = arena.finish()
        finally:
            arena.close()
    stats = [event["stats"] for worker in arena.workers.values() if (event := worker.find("closed"))]
    emergencies = sum(each["emergency_releases"] for each in stats)
    return samples, report["violations"] + arena.violations + unasked(arena), report["entries"], emergencies


def unasked(arena: Arena) -> list[str]:
    """What no worker may meet where nothing is wrong."""
    return [
        f"without a fault: {event['event']}, {event.get('reason') or event.get('error') or event.get('traceback')}"
        for event in (*arena.said("lost"), *arena.said("refused"), *arena.said("broken"))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    samples, violations, holds, emergencies = soak(options.seconds, options.workers)
    third = len(samples) // 3
    print(f"{'':14}{'second third':>14}{'last third':>14}{'margin':>10}")
    for name in Sample._fields:
        before = mean(getattr(sample, name) for sample in samples[third : 2 * third])
        after = mean(getattr(sample, name) for sample in samples[2 * third :])
        margin = getattr(MARGINS, name)
        flat = after <= before + margin or (name == "connections" and after <= options.workers * POOL)
        print(f"{name:14}{before:>14.1f}{after:>14.1f}{margin:>10.1f}{'' if flat else '  GREW'}")
        if not flat:
            violations.append(f"{name} grew from {before:.1f} to {after:.1f}")
    share = emergencies / max(1, holds)
    if share >= EMERGENCIES or not holds:
        violations.append(f"{emergencies} emergency releases in {holds} holds")
    print(f"\n{holds} holds in {options.seconds:g} s by {options.workers} workers, {emergencies} emergency releases")
    print(f"{len(violations)} violations")
    for violation in violations[:10]:
        print(violation)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
