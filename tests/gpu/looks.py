"""Looks at the device that nobody awaits: under ``report`` a body may begin before its first look."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiogpulock import GpuLockManager, clock
from aiogpulock.gpu.nvml import shared
from aiogpulock.scripts import load_script
from tests.helpers import wait_until
from tests.nvml_sim import Simulation


def wait_for_looks() -> None:
    """Until those begun so far are over: the driver's thread answers in turn. Blocks the event loop meanwhile."""
    last = shared().devices()
    wait_until(lambda: last.answer is not None or last.failed, description="the driver answers", interval=0.001)


@contextmanager
def behind_the_devices_figure(manager: GpuLockManager, sim: Simulation) -> Iterator[None]:
    """The lock is asked for when the device's own figure has been read, if a look begins; the list may come later."""
    client, lists, acquire = manager.parts.client, sim.call("compute").count, load_script("acquire").sha
    exchange = client._exchange

    async def late(commands: Any) -> Any:
        begun = clock.now()
        while acquire in commands[0] and sim.call("compute").count == lists and clock.now() < begun + 0.5:
            await asyncio.sleep(0.001)
        return await exchange(commands)

    client._exchange = late  # type: ignore[method-assign]
    yield
    client._exchange = exchange  # type: ignore[method-assign]
