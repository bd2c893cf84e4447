"""The monitor: finds what is dead, repairs it, and tells. `plan` decides, `repairs` acts, `monitor` goes round."""

from aiogpulock.monitor.monitor import GpuLockMonitor
from aiogpulock.monitor.plan import Repair
from aiogpulock.monitor.round import Round

__all__ = ["GpuLockMonitor", "Repair", "Round"]
