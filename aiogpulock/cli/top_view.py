"""How `top` looks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aiogpulock.cli.lock_words import QUEUE_HEADS, STYLES, gpu_name, queue_rows, state_of, task_words
from aiogpulock.cli.tables import Cell, make_table
from aiogpulock.cli.words import duration, plain, who
from aiogpulock.gpu.records import GpuDevice, MemoryReading
from aiogpulock.models import LockSnapshot

QUEUE_SHOWN = 5
BAR = 8
"""Columns."""
GIB = 1 << 30


class Queue(NamedTuple):
    """A lock with waiters."""

    lock: LockSnapshot
    typical: float | None
    """Seconds of a usual hold."""


class Scene(NamedTuple):
    """Everything at one moment."""

    server: str
    at: float
    """Epoch seconds, this host's clock."""
    locks: tuple[LockSnapshot, ...]
    queues: tuple[Queue, ...]
    devices: Sequence[GpuDevice]
    readings: dict[str, MemoryReading]
    trouble: str
    """Why there is no news from Redis, or of some of its locks."""
    no_memory: str
    """Why there is no memory to show."""


def picture(scene: Scene) -> RenderableType:
    """The scene as rich draws it."""
    clock = datetime.fromtimestamp(scene.at).strftime("%H:%M:%S")
    head = Text(f"aiogpulock · {plain(scene.server)} · {clock}", "bold", no_wrap=True, overflow="ellipsis")
    parts: list[RenderableType] = [head]
    if scene.trouble:
        parts.append(Text(plain(scene.trouble), "bold red"))
    parts += [Text(), _locks(scene)]
    for queue in scene.queues:
        parts += [Text(), *_queue(queue, gpu_name(queue.lock.gpu_id, scene.devices))]
    if scene.no_memory:
        parts += [Text(), Text(f"no GPU memory: {plain(scene.no_memory)}", "dim")]
    return Group(*parts)


def _locks(scene: Scene) -> Table:
    by_device = {device.uuid: device for device in scene.devices}
    by_index = {str(device.index): device for device in scene.devices if device.index is not None}
    rows: list[tuple[Cell, ...]] = []
    seen = set()
    for lock in scene.locks:
        device = by_device.get(lock.gpu_id) or by_index.get(lock.gpu_id)
        if device is not None:
            seen.add(device.uuid)
        rows.append((gpu_name(lock.gpu_id, scene.devices), *_lock_cells(lock), *_memory(device, scene)))
    rows += [
        (str(device.index), ("free", STYLES["free"]), "", "", "", "0", *_memory(device, scene))
        for device in scene.devices
        if device.uuid not in seen and device.index is not None
    ]
    heads = ["GPU", "STATE", ">FOR", "TASK", "HOLDER", ">WAIT"]
    return make_table([*heads, "MEMORY"] if scene.readings else heads, rows, gives_way=["TASK", "HOLDER"])


def _lock_cells(lock: LockSnapshot) -> tuple[Cell, ...]:
    state = state_of(lock)
    held = state not in ("free", "quarantined")
    return (
        (state, STYLES.get(state, "")),
        duration(lock.age) if held and lock.age is not None else "",
        task_words(lock),
        who(lock.user, lock.host, lock.pid) if held else "",
        str(lock.waiters),
    )


def _memory(device: GpuDevice | None, scene: Scene) -> tuple[Cell, ...]:
    if not scene.readings:
        return ()
    reading = scene.readings.get(device.uuid) if device is not None else None
    if reading is None or not reading.total:
        return ("",)
    share = reading.used / reading.total
    filled = min(BAR, round(share * BAR))
    bar = "█" * filled + "░" * (BAR - filled)
    return ((f"{bar} {reading.used / GIB:.1f}/{reading.total / GIB:.0f} GiB", "yellow" if share > 0.9 else ""),)


def _queue(queue: Queue, name: str) -> list[RenderableType]:
    lock = queue.lock
    usual = f" · usual hold {duration(queue.typical)}" if queue.typical is not None else ""
    title = Text(f"{lock.waiters} waiting for gpu {plain(name)}{usual}", "dim")
    rows = queue_rows(lock, queue.typical)[:QUEUE_SHOWN]
    return [title, make_table(QUEUE_HEADS, rows, gives_way=["TASK", "WHO"])]
