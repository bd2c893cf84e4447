"""What a lock is called, in which state it is, and who has it, in a few words each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from aiogpulock.cli.words import duration, plain, who
from aiogpulock.gpu.nvml import shared
from aiogpulock.gpu.records import GpuDevice, NvmlError
from aiogpulock.history import expected_wait
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot
from aiogpulock.zombies import find_zombies, in_line

State: TypeAlias = Literal["free", "held", "handing over", "draining", "foreign", "dead", "expired", "quarantined"]
STYLES: dict[State, str] = {
    "held": "green",
    "free": "dim",
    "foreign": "yellow",
    "dead": "red",
    "expired": "red",
    "quarantined": "red",
}

_UUID_SHOWN = 12


def state_of(lock: LockSnapshot) -> State:
    """dead: its processes have ended · expired: no beat for a whole lease · foreign: another program's value."""
    kinds = {zombie.kind for zombie in find_zombies(lock)}
    if "process_gone" in kinds:
        return "dead"
    if "heartbeat_stale" in kinds:
        return "expired"
    if lock.foreign:
        return "foreign"
    if lock.holder_id is None or "leftover" in kinds:
        return "quarantined" if lock.quarantine else "free"
    return {"granted": "handing over", "draining": "draining"}.get(lock.phase or "", "held")  # type: ignore[return-value]


def is_free(lock: LockSnapshot) -> bool:
    """Whether the next to ask gets it. A seat of the dead is passed over, and stays for a while."""
    return state_of(lock) in ("free", "dead", "expired", "quarantined") and not in_line(lock)


def task_words(lock: LockSnapshot) -> str:
    """What the lock is held for; or why nobody should hold it."""
    state = state_of(lock)
    if state == "quarantined":
        return lock.quarantine or ""
    return "" if state == "free" else (lock.value if lock.foreign else lock.task_name) or ""


def holder_words(lock: LockSnapshot, held_for: float | None) -> str:
    """held by alice@h1 pid 812 "train.py" 2m10s."""
    if lock.foreign:
        return f'held by another program: "{plain(lock.value or "")}"'
    if lock.task_name is None:
        return "held by nobody"
    since = f" {duration(held_for)}" if held_for is not None else ""
    return f'held by {who(lock.user, lock.host, lock.pid)} "{plain(lock.task_name)}"{since}'


def expected_waits(lock: LockSnapshot, typical: float | None) -> list[float | None]:
    """Of each in the queue; None: it is not known, or passed over."""
    places = _places(lock)
    return [
        expected_wait(typical, place, lock.age) if (place := places.get(waiter.waiter_id)) else None
        for waiter in lock.queue
    ]


QUEUE_HEADS = (">#", "TASK", "WHO", ">WAITED", ">EXPECTED")


def queue_rows(lock: LockSnapshot, typical: float | None) -> list[tuple[str, ...]]:
    """Below `QUEUE_HEADS`: who waits. Who is passed over has no place."""
    places = _places(lock)
    return [
        (
            str(places.get(waiter.waiter_id, "")),
            waiter.task_name,
            who(waiter.user, waiter.host, waiter.pid),
            duration(lock.at - waiter.since),
            _expected(eta, passed_over=waiter.waiter_id not in places and waiter.waiter_id != lock.holder_id),
        )
        for waiter, eta in zip(lock.queue, expected_waits(lock, typical), strict=True)
    ]


def _places(lock: LockSnapshot) -> dict[str, int]:
    """From 1, by the waiter's id."""
    return {waiter.waiter_id: place for place, waiter in enumerate(in_line(lock), start=1)}


def _expected(eta: float | None, *, passed_over: bool) -> str:
    if passed_over:
        return "does not answer"
    return f"~{duration(eta)}" if eta is not None else ""


async def known_devices(manager: GpuLockManager, gpu_ids: Sequence[str]) -> Sequence[GpuDevice]:
    """What NVML lists here, if any of the locks needs it for its name."""
    if manager.settings.gpu_lock.gpu_memory.nvml == "off" or not any(map(_is_uuid, gpu_ids)):
        return ()
    try:
        return await shared().devices()
    except NvmlError:
        return ()


def gpu_name(gpu_id: str, devices: Sequence[GpuDevice]) -> str:
    """How a GPU is called on this host: by index where NVML knows it, else by the beginning of its UUID."""
    for device in devices:
        if device.uuid == gpu_id and device.index is not None:
            return str(device.index)
    return f"{gpu_id[:_UUID_SHOWN]}…" if _is_uuid(gpu_id) else gpu_id


def _is_uuid(gpu_id: str) -> bool:
    return gpu_id.startswith(("GPU-", "MIG-")) and len(gpu_id) > _UUID_SHOWN
