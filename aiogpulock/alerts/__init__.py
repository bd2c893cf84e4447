"""Alerts: told once, repeated while they last, resolved when they end, and never in the way of a lock.

`Alerts` is an `alert_hook`; `GpuLockMonitor` uses one by itself. `send_test` is what ``aiogpulock alerts test`` calls.
The URLs of `gpu_lock_alerts.urls` are those of Apprise (extra ``[alerts]``).
"""

from aiogpulock.alerts.alerts import Alerts, send_test
from aiogpulock.alerts.channel import Sent

__all__ = ["Alerts", "Sent", "send_test"]
