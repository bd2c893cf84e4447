"""What NVML told, as frozen records. Sizes are bytes."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from aiogpulock.errors import GpuLockError

NvmlStatus: TypeAlias = Literal[
    "no_nvml", "gpu_lost", "not_found", "not_supported", "no_permission", "timeout", "wedged", "unknown"
]
"""Why there is no reading; the memory verdict of each is ``unverifiable``.

no_nvml: no library (12), driver not loaded (9), library and driver of different versions (18) · gpu_lost: fell off the
bus (15) or needs a reset (16) · not_found: no such device here (6, 28) · not_supported: the device or the driver has no
such figure (3, 13, 25) · no_permission (4) · timeout: the driver said so (10), or other calls took the time · wedged: a
call did not come back within its deadline · unknown: everything else (999).
"""


class NvmlError(GpuLockError):
    """NVML could not be asked; `status` says why, `code` is NVML's own (None: it gave none)."""

    def __init__(self, status: NvmlStatus, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code

    @property
    def lasts(self) -> bool:
        """Nobody can look here; what else a driver answers may be otherwise a moment later."""
        return self.status in ("no_nvml", "not_found", "not_supported")


class Gpu(msgspec.Struct, frozen=True):
    """What a lease is for. `str()` gives the id."""

    id: str
    """What the lock is named by: a UUID; an index where NVML is not there; or a free name."""
    uuid: str | None = None
    index: int | None = None
    """NVML's index on this host, from 0."""
    name: str | None = None
    """The model, as NVML tells it."""
    remote: bool = False
    """A UUID that NVML does not know here: the device of another host."""

    def __str__(self) -> str:
        return self.id

    def env(self) -> dict[str, str]:
        """Variables that show this device, and no other, to a program that is started with them."""
        if self.uuid is not None:
            return {"CUDA_VISIBLE_DEVICES": self.uuid, "NVIDIA_VISIBLE_DEVICES": self.uuid}
        if self.index is None:
            return {}
        index = str(self.index)  # CUDA's own order is another one
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": index, "NVIDIA_VISIBLE_DEVICES": index}


class GpuDevice(msgspec.Struct, frozen=True):
    """One GPU of this host, or one MIG device of it."""

    uuid: str
    """Empty: it cannot be read, `fault` says why."""
    index: int | None
    """NVML's index, from 0; None for a MIG device."""
    name: str
    mig_enabled: bool = False
    parent: str | None = None
    """UUID of the GPU that a MIG device is part of."""
    fault: str = ""
    """Why its UUID or its MIG mode cannot be read: nobody can tell then what overlaps with it."""


class ProcessMemory(msgspec.Struct, frozen=True):
    """A process on a GPU, as NVML numbers it: inside a container these are the host's pids."""

    pid: int
    bytes: int | None
    """None: the driver does not tell."""


class GpuProcess(msgspec.Struct, frozen=True):
    """A process on a GPU, as a person would look for it: without arguments, without environment."""

    pid: int
    bytes: int | None
    """None: the driver does not tell."""
    name: str = ""
    """Its command, at most 15 characters; empty: it cannot be read here."""
    started: float | None = None
    """Epoch seconds."""

    def __str__(self) -> str:
        size = f"{self.bytes / (1 << 20):.0f} MiB" if self.bytes is not None else "memory not told"
        since = f" since {datetime.fromtimestamp(self.started).isoformat(' ', 'seconds')}" if self.started else ""
        return f"pid {self.pid}{f' ({self.name})' if self.name else ''} with {size}{since}"


class MemoryReading(msgspec.Struct, frozen=True):
    """The memory of one device at one moment."""

    uuid: str
    at: float
    """By `clock.now`."""
    total: int
    used: int
    """Without what the driver reserves under `version` 2, with it under 1: compare readings of one version only."""
    reserved: int | None
    version: Literal[1, 2]
    processes: tuple[ProcessMemory, ...] | None
    """None: not asked, or the driver does not tell. An empty list proves nothing."""
    used_at: float = float("inf")
    """By `clock.now`: `used` was read by then. The list came after it, some ms later."""

    @property
    def free(self) -> int:
        """Neither in use nor reserved by the driver."""
        return self.total - self.used - (self.reserved or 0)

    def bytes_of(self, pids: frozenset[int]) -> int | None:
        """What these processes use together; None if that is not known. One that is not listed uses nothing."""
        if self.processes is None:
            return None
        sizes = [process.bytes for process in self.processes if process.pid in pids]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def nobodys(self) -> int | None:
        """In use by no listed process; on an empty list that is all of it. None: not known."""
        if self.processes is None or (self.processes and not self.tells_processes):
            return None
        sizes = [process.bytes for process in self.processes]
        return None if None in sizes else self.used - sum(size for size in sizes if size is not None)

    @property
    def tells_processes(self) -> bool:
        """Whether the process list explains anything: with memory in use it is neither empty nor all zero."""
        return bool(self.processes) and any(process.bytes for process in self.processes or ())
