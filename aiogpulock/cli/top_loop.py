"""`top`: look, draw, wait, until q."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import AsyncIterator, Iterator, Sequence

from rich.live import Live

from aiogpulock.cli.exits import SIGNALLED
from aiogpulock.cli.session import usual_hold
from aiogpulock.cli.tables import make_console, show
from aiogpulock.cli.top_view import Queue, Scene, picture
from aiogpulock.errors import GpuLockError
from aiogpulock.gpu.nvml import shared
from aiogpulock.gpu.records import GpuDevice, MemoryReading, NvmlError
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot

HISTORY_EVERY = 10.0
"""Seconds between two looks at how long holds usually take."""


async def print_once(manager: GpuLockManager) -> None:
    """One picture, for a pipe."""
    show(picture(await _Observer(manager).look()))


async def watch(manager: GpuLockManager, interval: float) -> None:
    """A picture every `interval` seconds, until the user has seen enough."""
    observer, console = _Observer(manager), make_console()
    async with _quit_key() as quitting, _ended_by(quitting):
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="ellipsis") as live:
            while not quitting.is_set():
                live.update(picture(await observer.look()), refresh=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(quitting.wait(), interval)


class _Observer:
    def __init__(self, manager: GpuLockManager) -> None:
        self._manager = manager
        self._typical: dict[str, float | None] = {}
        self._typical_at = float("-inf")
        self._locks: tuple[LockSnapshot, ...] = ()

    async def look(self) -> Scene:
        """What can be seen now; what cannot be seen is told, and what was seen last stays."""
        trouble = ""
        try:
            self._locks, unreadable = await self._manager.look()
            trouble = " · ".join(unreadable.values())
            await self._learn()
        except GpuLockError as error:
            trouble = str(error)
        devices, readings, no_memory = await self._memory()
        return Scene(
            server=self._manager.server or "",
            at=time.time(),
            locks=self._locks,
            queues=tuple(Queue(lock, self._typical.get(lock.gpu_id)) for lock in self._locks if lock.queue),
            devices=devices,
            readings=readings,
            trouble=trouble,
            no_memory=no_memory,
        )

    async def _learn(self) -> None:
        if time.monotonic() - self._typical_at < HISTORY_EVERY:
            return
        self._typical_at = time.monotonic()
        for lock in self._locks:
            self._typical[lock.gpu_id] = await usual_hold(self._manager, lock)

    async def _memory(self) -> tuple[Sequence[GpuDevice], dict[str, MemoryReading], str]:
        if self._manager.settings.gpu_lock.gpu_memory.nvml == "off":
            return (), {}, "gpu_memory.nvml is off"
        readings: dict[str, MemoryReading] = {}
        try:
            devices = [device for device in await shared().devices() if device.uuid]
            for device in devices:
                with contextlib.suppress(NvmlError):  # this one has no such figure
                    readings[device.uuid] = await shared().read(device.uuid, processes=False)
        except NvmlError as error:
            return (), {}, str(error)
        return devices, readings, ""


@contextlib.asynccontextmanager
async def _quit_key() -> AsyncIterator[asyncio.Event]:
    """Set when q is typed; without a keyboard, never."""
    quitting = asyncio.Event()
    if not sys.stdin.isatty():
        yield quitting
        return
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()

    def typed() -> None:
        with contextlib.suppress(OSError):
            if b"q" in os.read(keyboard, 1024).lower():  # what was typed at once, an arrow before it for one
                quitting.set()

    with _single_keys(keyboard):
        loop.add_reader(keyboard, typed)
        try:
            yield quitting
        finally:
            loop.remove_reader(keyboard)


@contextlib.asynccontextmanager
async def _ended_by(quitting: asyncio.Event) -> AsyncIterator[None]:
    """SIGTERM and SIGHUP leave the terminal as it was; then the process ends with the usual status."""
    loop, received = asyncio.get_running_loop(), list[int]()

    def end(signum: int) -> None:
        received.append(signum)
        quitting.set()

    for signum in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, end, signum)
    yield
    if received:
        sys.exit(SIGNALLED + received[0])


@contextlib.contextmanager
def _single_keys(keyboard: int) -> Iterator[None]:
    """Keys come one by one and unseen; Ctrl-C goes on to work."""
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
