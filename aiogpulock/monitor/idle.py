"""Holders whose GPU has nothing to do: locks of this host, looked at through NVML."""

from __future__ import annotations

from collections.abc import Iterable

from aiogpulock import clock
from aiogpulock.gpu.nvml import Nvml
from aiogpulock.gpu.records import NvmlError
from aiogpulock.liveness import same_host
from aiogpulock.models import Alert, LockSnapshot

Hold = tuple[str, str]


class IdleWatch:
    """Remembers since when the GPU of each hold was at 0 % at every look. One that cannot be read is not idle."""

    NO_NVML_PAUSE = 600.0
    """Seconds without a further attempt after a host turned out to have no driver."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._idle_since: dict[Hold, float] = {}
        self._not_before = 0.0

    async def alerts(self, locks: Iterable[LockSnapshot], limit: float) -> list[Alert]:
        """One alert for each lease whose GPU was idle for `limit` seconds."""
        leases = {
            (lock.key, lock.holder_id or ""): lock
            for lock in locks
            if lock.phase == "held" and lock.process is not None and same_host(lock.process)
        }
        idle = {hold for hold, lock in leases.items() if await self._is_idle(lock.gpu_id)}
        now = clock.now()
        self._idle_since = {hold: self._idle_since.get(hold, now) for hold in idle}
        return [_alert(leases[hold], now - since) for hold, since in self._idle_since.items() if now - since >= limit]

    async def _is_idle(self, gpu_id: str) -> bool:
        if clock.now() < self._not_before:
            return False
        try:
            uuid = await self._uuid(gpu_id)
            return uuid is not None and await self._nvml.utilization(uuid) == 0
        except NvmlError as error:
            if error.status == "no_nvml":
                self._not_before = clock.now() + self.NO_NVML_PAUSE
            return False

    async def _uuid(self, gpu_id: str) -> str | None:
        """Locks are called by UUID, or by NVML's index where `identity` is ``logical``."""
        if not gpu_id.isdecimal():
            return gpu_id if gpu_id.startswith("GPU-") else None
        devices = await self._nvml.devices()
        return next((device.uuid for device in devices if str(device.index) == gpu_id), None)


def _alert(lock: LockSnapshot, seconds: float) -> Alert:
    text = (
        f"{lock.key}: {lock.task_name} holds a GPU that has been at 0 % for {seconds:.0f} s; {lock.waiters} wait for it"
    )
    return Alert("holder_idle", "warning", lock.key, text, lock.holder_id or "", lock.task_name or "")
