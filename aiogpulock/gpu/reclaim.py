"""Gives memory back before it is verified: the caches of libraries that the program itself has imported, no others.

They run in a thread, on the devices alone on which the program has a context. A failure is logged, told to the caller
to be counted, and harms nothing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from aiogpulock import clock
from aiogpulock.gpu.contexts import with_a_context

logger = logging.getLogger(__name__)

Outcome = Literal["done", "not_imported", "failed", "late"]


class Reclaimed(msgspec.Struct, frozen=True):
    """What one reclaimer did."""

    name: str
    outcome: Outcome
    seconds: float
    error: str = ""


def _gc() -> bool:
    gc.collect()
    return True


def _torch() -> bool:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return False
    for device in with_a_context() if torch.cuda.is_initialized() else ():
        torch.cuda.set_device(device)  # of this thread, which ends: setting it back to 0 would make a context there
        torch.cuda.empty_cache()
    return True


def _cupy() -> bool:
    cupy: Any = sys.modules.get("cupy")
    if cupy is None:
        return False
    for device in with_a_context():
        cupy.cuda.Device(device).use()
        cupy.get_default_memory_pool().free_all_blocks()  # of the current device alone
        cupy.get_default_pinned_memory_pool().free_all_blocks()
    return True


RECLAIMERS: dict[str, Callable[[], bool]] = {"gc": _gc, "torch": _torch, "cupy": _cupy}
"""By the name in ``gpu_memory.cleanup``; each answers whether its module was there."""


_overdue: threading.Thread | None = None
"""The thread of a reclaimer that hangs: until it comes back, no other one is started."""


async def reclaim(names: Sequence[str], *, timeout: float = 10.0) -> tuple[Reclaimed, ...]:
    """Run the reclaimers in this order, `timeout` seconds for all of them. Never raises but for cancellation.

    The thread is a daemon: a reclaimer that hangs in the driver does not keep the program from ending. While one hangs,
    all are "late" at once.
    """
    global _overdue
    if _overdue is not None and _overdue.is_alive():
        return tuple(Reclaimed(name, "late", 0.0, "an earlier reclaimer hangs") for name in names)
    results: list[Reclaimed] = []
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def finished() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    def work() -> None:
        try:
            for name in names:
                results.append(_run(name))  # noqa: PERF401 - what is done by the timeout is reported
        finally:
            finished()

    thread = threading.Thread(target=work, name="aiogpulock-reclaim", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # the process has too many
        return tuple(Reclaimed(name, "failed", 0.0, str(error)) for name in names)
    try:
        async with asyncio.timeout(timeout):
            await done.wait()
    except TimeoutError:
        pass
    so_far = tuple(results)  # all of them, if it was the event loop that came late
    late = names[len(so_far) :]
    if late:
        _overdue = thread
        logger.warning("the reclaimer %s did not end within %g s", late[0], timeout)
    return (*so_far, *(Reclaimed(name, "late", timeout) for name in late))


def _run(name: str) -> Reclaimed:
    started = clock.now()
    try:
        there = RECLAIMERS[name]()
    except Exception as error:
        logger.exception("the reclaimer %s failed", name)
        return Reclaimed(name, "failed", clock.now() - started, f"{type(error).__name__}: {error}")
    return Reclaimed(name, "done" if there else "not_imported", clock.now() - started)
