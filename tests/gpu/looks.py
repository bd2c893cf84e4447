"""Looks at the device that nobody awaits: under ``report`` a body may begin before its first look."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aiogpulock import GpuLockManager, clock, episode
from aiogpulock.gpu.nvml import shared
from aiogpulock.scripts import load_script
from tests.helpers import wait_until
from tests.nvml_sim import Simulation


def wait_for_looks() -> None:
    """Until those begun so far, if any, are over: the driver's thread answers in turn. Blocks the event loop."""
    last = shared().devices()
    wait_until(lambda: last.answer is not None or last.failed, description="the driver answers", interval=0.001)


@contextmanager
def behind_the_devices_figure(manager: GpuLockManager, sim: Simulation) -> Iterator[None]:
    """The lock is asked for when the device's own figure has been read; the list of processes may come later.

    Where no look begins, as between two holds of one stretch, half a second is waited for it. No look is too old.
    """
    client, lists, acquire = manager.parts.client, sim.call("compute").count, load_script("acquire").sha
    exchange = client._exchange

    async def late(commands: Any) -> Any:
        until = clock.now() + 0.5
        while acquire in commands[0] and sim.call("compute").count == lists and clock.now() < until:
            await asyncio.sleep(0.001)
        return await exchange(commands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_exchange", late)
        patch.setattr(episode, "STALE", 60)
        yield
