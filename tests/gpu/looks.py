"""Looks at the device that nobody awaits: under ``report`` a body may begin before its first look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aiogpulock import GpuLockManager, episode
from aiogpulock.gpu import _driver
from aiogpulock.gpu.nvml import shared
from aiogpulock.scripts import load_script
from tests.helpers import wait_until
from tests.nvml_sim import uuid
from tests.unit.support import eventually


def wait_for_looks() -> None:
    """Until those begun so far, if any, are over: the driver's thread answers in turn. Blocks the event loop."""
    last = shared().devices()
    wait_until(lambda: last.answer is not None or last.failed, description="the driver answers", interval=0.001)
    assert not last.failed


@contextmanager
def behind_the_devices_figure(manager: GpuLockManager) -> Iterator[None]:
    """Lock 0 is asked for when the first look has read the device's own figure, and reads the list of processes.

    Between two holds of one stretch there is no first look, and nothing is waited for.
    """
    client, acquire, listing = manager.parts.client, load_script("acquire").sha, False
    exchange, processes = client._exchange, _driver._processes

    def listed(handle: Any) -> Any:
        nonlocal listing
        listing = True
        try:
            return processes(handle)
        finally:
            listing = False

    async def late(commands: Any) -> Any:
        look = episode.episode_on(uuid(0))._expected
        if acquire in commands[0] and look is not None:
            call = look._first._call
            # The thread does one call after the other: what lists while this one runs, or later, is behind its figure.
            await eventually(lambda: call.done() or (call.running() and listing), description="the device's figure")
        return await exchange(commands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_exchange", late)
        patch.setattr(_driver, "_processes", listed)
        patch.setattr(episode, "STALE", 60)
        yield
