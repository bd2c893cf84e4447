"""SIGTERM in a holder or waiter: leave in order, then die of the signal as without us.

Installed only in the main thread and only where nobody else handles SIGTERM; servers and workers that do, end their
tasks themselves. Like Ctrl-C it waits for a native call to return.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import weakref
from types import FrameType
from typing import TYPE_CHECKING

from aiogpulock import clock
from aiogpulock.leaving import finish, leave_all

if TYPE_CHECKING:
    from aiogpulock.manager import GpuLockManager

LEAVE_SECONDS = 5.0
"""How long bodies and waiters may take to end."""

_managers: weakref.WeakSet[GpuLockManager] = weakref.WeakSet()
_installed_in = 0
_left = False
"""Everything was left in order; only the main thread can give the signal back its default."""


def cover(manager: GpuLockManager) -> None:
    """See to it that SIGTERM frees what `manager` holds."""
    global _installed_in
    _managers.add(manager)
    # Ours may have been inherited by a fork: then it is this process's from now on.
    free = signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _on_sigterm)
    if threading.current_thread() is threading.main_thread() and free:
        signal.signal(signal.SIGTERM, _on_sigterm)
        _installed_in = os.getpid()


def forget(manager: GpuLockManager) -> None:
    """`manager` is closed; with the last one the handler goes."""
    _managers.discard(manager)
    if (
        not _managers
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is _on_sigterm
    ):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    busy = [manager for manager in _managers if _is_busy(manager)]
    if _left or not busy or os.getpid() != _installed_in:
        _die()
        return
    remaining = set(busy)
    for manager in busy:
        manager.running_loop.call_soon_threadsafe(_start_leaving, manager, remaining)


def _is_busy(manager: GpuLockManager) -> bool:
    """Whether it has something to leave, and a loop to do it; in a forked child the parent's loop does not run."""
    return not manager.unusable and len(manager.owners) > 0 and manager.running_loop.is_running()


def _die() -> None:
    """Of the signal; from another thread by way of the main one, where its handler comes here again."""
    global _left
    _left = True
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    if os.getpid() == 1 and threading.current_thread() is threading.main_thread():
        os._exit(128 + signal.SIGTERM)  # the kernel spares the first process of a container


def wait_for_the_end() -> None:
    """In a thread whose wait was cancelled by SIGTERM: the process ends here, without a traceback."""
    if _leaving:
        time.sleep(LEAVE_SECONDS)


def _start_leaving(manager: GpuLockManager, remaining: set[GpuLockManager]) -> None:
    task = asyncio.ensure_future(_leave_all(manager, remaining))
    _leaving.add(task)
    task.add_done_callback(_leaving.discard)


_leaving: set[asyncio.Future[None]] = set()


async def _leave_all(manager: GpuLockManager, remaining: set[GpuLockManager]) -> None:
    """Cancel bodies and waiters, wait for them, release what is left, and die when every manager has."""
    for task in manager.owners.tasks():
        task.cancel("SIGTERM")
    deadline = clock.now() + LEAVE_SECONDS
    while manager.owners.tasks() and clock.now() < deadline:
        try:
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            continue  # asyncio.run cancels this task too when the main one has ended
    try:
        for hold in manager.holds.all():
            hold.dirty = True  # its body has not ended
        await finish(lambda: leave_all(manager, "cancelled"))
    finally:
        remaining.discard(manager)
        if not remaining:
            _die()
