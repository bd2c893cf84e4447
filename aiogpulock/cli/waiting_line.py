"""The line that a waiting `run` shows on a terminal: place, expected wait, holder."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from aiogpulock.cli.app import CLEAR_LINE, Screen
from aiogpulock.cli.lock_words import holder_words
from aiogpulock.cli.session import usual_hold
from aiogpulock.cli.words import duration, fit, ordinal, plain
from aiogpulock.errors import GpuLockError
from aiogpulock.history import expected_wait
from aiogpulock.liveness import this_process
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot
from aiogpulock.zombies import in_line, waits

PATIENCE = 0.3
"""Seconds that pass in silence: most waits are over by then."""
LOOK_EVERY = 2.0
"""Seconds between two looks at the queue."""


class Place(NamedTuple):
    """Where a waiter stood when it looked last."""

    lock: LockSnapshot
    position: int
    typical: float | None
    """Seconds of a usual hold."""
    seen_at: float

    def line(self, gpu: str, now: float) -> str:
        """As a person reads it; `now` on the clock of `seen_at`."""
        held_for = None if self.lock.age is None else self.lock.age + now - self.seen_at
        eta = expected_wait(self.typical, self.position, held_for)
        parts = [
            f"waiting for gpu {plain(gpu)}",
            f"{ordinal(self.position)} of {waits(self.lock)}",
            *([f"~{duration(eta)}"] if eta is not None else []),
            holder_words(self.lock, held_for),
        ]
        return " · ".join(parts)


@contextmanager
def waiting_line(manager: GpuLockManager, gpu: str) -> Iterator[None]:
    """Show the line while the body waits, on stderr, if that is a terminal.

    Its end awaits nothing: a lease that the body got is not held up, nor lost to a cancellation.
    """
    if not sys.stderr.isatty():
        yield
        return
    showing = asyncio.create_task(_show(manager, gpu))
    try:
        yield
    finally:
        showing.cancel()
        _write("")


async def _show(manager: GpuLockManager, gpu: str) -> None:
    await asyncio.sleep(PATIENCE)
    place: Place | None = None
    next_look = 0.0
    while True:
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + LOOK_EVERY
            with suppress(GpuLockError):
                place = await _look(manager, gpu) or place
        _write(place.line(gpu, time.monotonic()) if place else f"waiting for gpu {plain(gpu)}")
        await asyncio.sleep(1)


async def _look(manager: GpuLockManager, gpu: str) -> Place | None:
    """Find this process among those who wait."""
    me = this_process().host, os.getpid()
    lock = await manager.scripts.snapshot(await manager.keys_of(gpu))
    for position, waiter in enumerate(in_line(lock), start=1):
        if (waiter.host, waiter.pid) == me:
            return Place(lock, position, await usual_hold(manager, lock), time.monotonic())
    return None


def _write(line: str) -> None:
    """Over the line before; it must not wrap. A terminal that is gone is no reason to stop."""
    with suppress(OSError):
        shown = fit(line, os.get_terminal_size(sys.stderr.fileno()).columns - 1)
        if shown or Screen.transient:
            sys.stderr.write(f"{CLEAR_LINE}{shown}")
            sys.stderr.flush()
        Screen.transient = bool(shown)
