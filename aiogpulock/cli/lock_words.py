"""What a lock is called, in which state it is, and who has it, in a few words each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from aiogpulock.cli.words import duration, plain, who
from aiogpulock.gpu.nvml import shared
from aiogpulock.gpu.records import NvmlError
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot
from aiogpulock.zombies import find_zombies

State: TypeAlias = Literal["free", "held", "handing over", "draining", "foreign", "dead", "expired"]
STYLES: dict[State, str] = {"held": "green", "free": "dim", "foreign": "yellow", "dead": "red", "expired": "red"}

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
        return "free"
    return {"granted": "handing over", "draining": "draining"}.get(lock.phase or "", "held")  # type: ignore[return-value]


def holder_words(lock: LockSnapshot, held_for: float | None) -> str:
    """held by alice@h1 pid 812 "train.py" 2m10s."""
    if lock.foreign:
        return f'held by another program: "{plain(lock.value or "")}"'
    if lock.task_name is None:
        return "held by nobody"
    since = f" {duration(held_for)}" if held_for is not None else ""
    return f'held by {who(lock.user, lock.host, lock.pid)} "{plain(lock.task_name)}"{since}'


async def gpu_names(manager: GpuLockManager, locks: list[LockSnapshot]) -> Callable[[str], str]:
    """How GPUs are called on this host: by index where NVML knows them, else by the beginning of their UUID."""
    indices: dict[str, str] = {}
    is_uuid = any(_is_uuid(lock.gpu_id) for lock in locks)
    if is_uuid and manager.settings.gpu_lock.gpu_memory.nvml != "off":
        try:
            devices = await shared().devices()
        except NvmlError:
            devices = ()
        indices = {device.uuid: str(device.index) for device in devices if device.index is not None}

    def name(gpu_id: str) -> str:
        short = f"{gpu_id[:_UUID_SHOWN]}…" if _is_uuid(gpu_id) else gpu_id
        return indices.get(gpu_id, short)

    return name


def _is_uuid(gpu_id: str) -> bool:
    return gpu_id.startswith(("GPU-", "MIG-")) and len(gpu_id) > _UUID_SHOWN
