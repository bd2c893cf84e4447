"""The blocking calls to NVML, in the thread of `nvml` alone. Nothing else imports nvidia-ml-py."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from aiogpulock import clock
from aiogpulock.gpu.records import GpuDevice, MemoryReading, NvmlError, NvmlStatus, ProcessMemory

UNINITIALIZED = 1

STATUS_OF_CODE: dict[int, tuple[NvmlStatus, str]] = {
    3: ("not_supported", "this device or driver has no such figure"),
    4: ("no_permission", "no permission"),
    6: ("not_found", "no such device on this host"),
    9: ("no_nvml", "the NVIDIA driver is not loaded"),
    10: ("timeout", "the NVIDIA driver timed out"),
    12: ("no_nvml", "libnvidia-ml.so.1 is not there: no NVIDIA driver on this host, or not in this container"),
    13: ("not_supported", "this driver has no such function"),
    15: ("gpu_lost", "the GPU has fallen off the bus"),
    16: ("gpu_lost", "the GPU needs a reset"),
    18: ("no_nvml", "the NVIDIA library and the loaded driver differ in version: reboot, or reload the driver"),
    25: ("not_supported", "this driver does not know this version of the call"),
    28: ("not_found", "no such GPU on this host"),
}
"""By NVML's code; any other is "unknown"."""

_NO_VERSION_2 = (2, 3, 13, 25, 999)
"""What drivers answer to the second version of the memory call where they lack it, WSL's among them."""


@contextlib.contextmanager
def _typed(what: str) -> Iterator[Any]:
    """Gives pynvml; its errors come out as `NvmlError`."""
    try:
        import pynvml
    except ImportError:
        raise NvmlError("no_nvml", "nvidia-ml-py is not installed") from None
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        code = int(error.value)
        status, text = STATUS_OF_CODE.get(code, ("unknown", "unknown error"))
        raise NvmlError(status, f"NVML {what}: {text} (code {code})", code) from None


def start() -> None:
    with _typed("start") as nvml:
        nvml.nvmlInit()


def stop() -> None:
    with _typed("shutdown") as nvml:
        nvml.nvmlShutdown()


def after_fork() -> None:
    """The parent's thread may have been inside: its lock is held by nobody now."""
    nvml: Any = sys.modules.get("pynvml")
    if nvml is not None:
        nvml.libLoadLock = threading.Lock()


def version() -> str:
    with _typed("driver version") as nvml:
        return str(nvml.nvmlSystemGetDriverVersion())


def devices() -> tuple[GpuDevice, ...]:
    with _typed("device count") as nvml:
        count = nvml.nvmlDeviceGetCount()
    return tuple(device for index in range(count) for device in _gpu(index))


def _gpu(index: int) -> Iterator[GpuDevice]:
    """One sick GPU does not hide the others."""
    try:
        with _typed(f"GPU {index}") as nvml:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    except NvmlError as error:
        yield GpuDevice("", index, "", fault=str(error))
        return
    mig, fault = _mig_mode(handle)
    yield GpuDevice(uuid, index, name, mig_enabled=mig, fault=fault)
    if mig or fault:
        yield from _mig_devices(handle, uuid)


def _mig_mode(handle: Any) -> tuple[bool, str]:
    """Whether it is on; and why that cannot be read."""
    try:
        with _typed("MIG mode") as nvml:
            return bool(nvml.nvmlDeviceGetMigMode(handle)[0]), ""
    except NvmlError as error:
        return False, "" if error.status == "not_supported" else str(error)


def _mig_devices(handle: Any, parent: str) -> Iterator[GpuDevice]:
    """Those that this process may use: a container has some of them. If they cannot be listed, one that says why."""
    try:
        with _typed("MIG devices") as nvml:
            most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except NvmlError as error:
        yield GpuDevice("", None, "", parent=parent, fault=str(error))
        return
    for index in range(most):
        try:
            with _typed(f"MIG device {index}") as nvml:
                mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                yield GpuDevice(nvml.nvmlDeviceGetUUID(mig), None, nvml.nvmlDeviceGetName(mig), parent=parent)
        except NvmlError as error:
            if error.status not in ("not_found", "no_permission"):
                yield GpuDevice("", None, "", parent=parent, fault=str(error))


def read(uuid: str, *, processes: bool, version: int | None) -> MemoryReading:
    with _typed(f"device {uuid}") as nvml:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    memory, seen = _memory(handle, uuid, version)
    used_at = clock.now()
    listed = _processes(handle) if processes else None
    if not memory.total:  # systems whose GPU shares the host's memory
        raise NvmlError("not_supported", f"NVML memory of {uuid}: the device has no memory of its own")
    return MemoryReading(
        uuid=uuid,
        at=clock.now(),
        total=int(memory.total),
        used=int(memory.used),
        reserved=int(memory.reserved) if seen == 2 else None,
        version=seen,
        processes=listed,
        used_at=used_at,
    )


def utilization(uuid: str) -> int:
    with _typed(f"utilization of {uuid}") as nvml:
        return int(nvml.nvmlDeviceGetUtilizationRates(nvml.nvmlDeviceGetHandleByUUID(uuid)).gpu)


def _memory(handle: Any, uuid: str, version: int | None) -> tuple[Any, Literal[1, 2]]:
    if version != 1:
        try:
            with _typed(f"memory of {uuid}") as nvml:
                return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2), 2
        except NvmlError as error:
            if version == 2 or error.code not in _NO_VERSION_2:
                raise
    with _typed(f"memory of {uuid}") as nvml:
        return nvml.nvmlDeviceGetMemoryInfo(handle), 1


def _processes(handle: Any) -> tuple[ProcessMemory, ...] | None:
    """One process may be on both lists, with the same figure. None if the driver keeps either for itself."""
    try:
        compute, graphics = _listed(handle, "nvmlDeviceGetComputeRunningProcesses"), _graphics(handle)
    except NvmlError as error:
        if error.status in ("not_supported", "no_permission"):
            return None
        raise
    found: dict[int, int | None] = {entry.pid: entry.usedGpuMemory for entry in compute}
    for entry in graphics:
        before = found.get(entry.pid, 0)
        known = before is not None and entry.usedGpuMemory is not None
        found[entry.pid] = max(before or 0, entry.usedGpuMemory or 0) if known else None
    if any(_is_mps(pid) for pid in found):
        return None  # the MPS server stands for all its clients: whose memory it is, the list does not tell
    return tuple(ProcessMemory(pid, size) for pid, size in sorted(found.items()))


def _is_mps(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").startswith("nvidia-cuda-mps")
    except OSError:
        return False


def _graphics(handle: Any) -> list[Any]:
    """A device that knows no such list has no such processes."""
    try:
        return _listed(handle, "nvmlDeviceGetGraphicsRunningProcesses")
    except NvmlError as error:
        if error.status == "not_supported":
            return []
        raise


def _listed(handle: Any, function: str) -> list[Any]:
    with _typed("process list") as nvml:
        call: Callable[[Any], list[Any]] = getattr(nvml, function)
        return call(handle)
