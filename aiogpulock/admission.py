"""From a wish to a hold that may begin: the acquisition, and what is asked of the GPU around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiogpulock.acquisition import Acquisition, Wish
from aiogpulock.caretaker import STRICT
from aiogpulock.lease import Hold
from aiogpulock.leaving import leave, reason_for

if TYPE_CHECKING:
    from aiogpulock.manager import GpuLockManager


async def admitted(manager: GpuLockManager, wish: Wish) -> Hold:
    """Acquire, with the GPU's memory looked after. Raises what `Acquisition.run` raises."""
    caretaker, memory = manager.caretaker, wish.settings.gpu_memory
    before = caretaker.expect(wish.gpu, memory)
    hold = await Acquisition(manager, wish).run()
    caretaker.begin(hold, memory, before)
    if memory.policy in STRICT:
        try:
            await caretaker.looked(hold)
        except BaseException as error:
            await leave(manager, hold, reason_for(error))
            raise
    return hold
